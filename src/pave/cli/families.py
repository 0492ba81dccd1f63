"""``pave families``: which base models a patch can be attached to, and what was verified on each."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from pave.cli.shared import JsonOption, Result
from pave.utils.console import aligned

if TYPE_CHECKING:
    from pave.video_llms.verified import VerifiedFamily


def command(
    model_type: str | None = typer.Argument(None, help="One type of base (its config's model_type), in full."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave families qwen3_vl

    List the types of base models that patches can be attached to, with what the conformance suite verified on a tiny model of
    each type's real classes: checks passed, and checks that the base itself cannot meet even without a patch.
    """
    from pave.video_llms import NOT_SUPPORTED
    from pave.video_llms.verified import transformers_version, verified_families

    families = verified_families()
    if model_type is not None:
        families = [family for family in families if family.model_type == model_type]
        if not families:
            reason = NOT_SUPPORTED.get(model_type, "pave families lists the types that are")
            raise ValueError(f"base models of type {model_type!r} are not supported: {reason}")
    data = {"transformers": transformers_version(), "families": [asdict(family) for family in families]}
    text = _table(families) if model_type is None else _in_full(families[0])
    return Result(f"{text}\n\nverified with transformers {transformers_version()}", data)


def _table(families: list[VerifiedFamily]) -> str:
    rows = [("type", "class", "frames per step", "stored vision", "passed", "limits of the base")]
    for family in families:
        count = len(family.passed) + len(family.limits) + len(family.open)
        frames = str(family.facts.get("frames_per_step", ""))
        passed = f"{len(family.passed)} of {count}" if count else "not verified"
        vision = "yes" if family.stores_vision else ""
        rows.append((family.model_type, family.model_class, frames, vision, passed, str(len(family.limits) or "")))
    return aligned(rows)


def _in_full(family: VerifiedFamily) -> str:
    facts = family.facts
    lines = [f"{family.model_type}: {family.model_class or 'described outside the library, nothing recorded'}"]
    if facts:
        lines += [
            f"time steps: one per {facts['frames_per_step']} sampled frame(s)"
            + ("; frame_times say which frames make a video" if facts["frame_counts_from_frame_times"] else ""),
            f"linear layers of the language model: {', '.join(facts['linears'])}",
            f"tried with transformers {facts['since']} and later",
        ]
        if facts["packages"]:
            lines.append(f"transformers needs: {', '.join(facts['packages'])}")
        if facts["stacked"]:
            lines.append("the processor stacks videos: those of a batch need the same number of frames")
    lines += ["", *(f"passed   {check}" for check in family.passed)]
    lines += [f"limit    {check}: {reason}" for check, reason in family.limits.items()]
    lines += [f"{state:<8} {check}" for check, state in family.open.items()]
    return "\n".join(lines)
