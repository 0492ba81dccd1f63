"""``pave probe``: whether a channel's features hold the answers, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pave.cli.shared import JsonOption, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pave.data.answer_probe import ProbeScore


def command(
    recipe: Path = typer.Argument(..., help="The recipe, a YAML file, with its channels and training samples."),
    overrides: list[str] | None = typer.Argument(None, help="Changes to it, as for pave train."),
    streams: int = typer.Option(300, "--streams", min=10, help="Streams of a channel that are read; more are thinned out."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave probe recipe.yaml

    Say in seconds whether the features of each side channel hold the answers, by type of question: a linear probe, fitted on some
    training samples and scored on others. Near guessing, a patch will hardly learn it from these features; well above, it can, which
    does not yet mean that it will. Questions that need the picture as well are in no channel alone.
    """
    from pave.data.answer_probe import probe_samples
    from pave.training.probing import probe_data
    from pave.training.recipe import read_recipe
    from pave.utils.console import track

    plan = read_recipe(recipe, overrides or [])
    if not plan.patch.side_channels:
        raise ValueError(f"{recipe}: the patch has no side channel, so there are no features to probe")
    data, samples = probe_data(plan, recipe.parent)
    scores = probe_samples(samples, data, most=streams, watch=lambda rows: track(rows, "Reading streams"))
    return Result(probe_text(scores), {"recipe": str(recipe), "scores": [score.to_dict() for score in scores]})


def probe_text(scores: Sequence[ProbeScore]) -> str:
    """A table of what probes read, and what follows from it."""
    from pave.utils.console import aligned

    if not scores:
        return "nothing to probe: no type of question has answers that come up on two streams, on at least 10 streams"
    rows = [["channel", "questions", "streams", "answers", "probe", "guessing", ""]]
    for score in scores:
        probe, chance = "-", "-"
        if not score.several:
            probe = f"{100 * score.accuracy:.0f} % [{100 * score.low:.0f}, {100 * score.high:.0f}]"
            chance = f"{100 * score.chance:.0f} %"
        rows.append([score.channel, score.name, str(score.streams), str(score.answers), probe, chance, score.verdict])
    return aligned(rows)
