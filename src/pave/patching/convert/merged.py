"""One patch for the least latency: its LoRA in the base's own weights, or left to PEFT; what remains of the patch is fusion alone.

LoRA that is in the weights costs nothing in a call, and belongs to no row any more: every row gets it, whether it has the channel or
not, and no strength scales it. The base in the folder is not the base that the patch was trained on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pave.config import PatchConfig
from pave.patching import lora
from pave.patching.attach import detach_patch
from pave.patching.base_of import base_of_patch
from pave.patching.checkpoint import read_files, resolve_patch, write_files
from pave.patching.compress import check_out
from pave.patching.convert.export import write_adapter
from pave.patching.fingerprint import BaseFingerprint, fingerprint
from pave.patching.load import load_patch
from pave.patching.record import PatchRecord, read_record
from pave.utils.files import atomic_folder
from pave.version import __version__
from pave.video_llms.loading import load_base

MERGED_BASE, FUSION_PATCH, PEFT_ADAPTER = "base", "patch", "adapter"
"""Folders inside the one that is written."""
_BASES_OWN = PatchConfig(side_channels={})
"""The settings of a patch that are those of the base."""


@dataclass(frozen=True)
class MergedExport:
    """What was written."""

    folder: Path
    base: Path | None
    """A copy of the base with the update in its weights, for ``from_pretrained``; None where PEFT keeps it."""
    adapter: Path | None
    """PEFT's folder of the update, for ``PeftModel.from_pretrained``; None where it is in the weights."""
    patch: Path | None
    """The fusion modules as a patch without LoRA; None where the patch has no side channel."""


def export_merged(
    patch: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str = "auto",
    allow_base_mismatch: bool = False,
) -> MergedExport:
    """Write a copy of the base with a patch's LoRA folded into its weights, and beside it what remains: a patch without LoRA.

    ``load_patch(load_base(OUT/base)[0], OUT/patch)`` computes for a video with its channels what the patch computed on its base, up to the
    rounding of the weights' dtype.

    Args:
        patch: a folder or a hub id.
        out: where to; an older folder there is replaced whole.
        base: that the patch was trained on; default the one that it names, in its revision (``pave.patching.base_of.base_of_patch``).
        dtype: of the weights: "auto" as they are stored; or float32, bfloat16, float16.
        allow_base_mismatch: fold it into another base.

    Raises:
        ValueError: if the patch has no LoRA, or no channel but a newline or vocabulary of its own, no base is named, it is another one or
            quantised, or ``out`` would replace one of them.
    """
    source = resolve_patch(patch)
    record = _with_lora(source)
    name, revision = base_of_patch(source, str(patch)) if base is None else (str(base), None)
    for taken in (source, *([Path(name)] if Path(name).is_dir() else [])):
        check_out(taken, out)
    model, processor = load_base(name, revision=revision, dtype=dtype)
    if getattr(model, "is_quantized", False):
        raise ValueError(f"base {name!r} is quantised, and an update cannot be folded into its integers; give it in float")
    load_patch(model, source, name="folded", processor=processor, allow_base_mismatch=allow_base_mismatch)
    lora.fold(model, "folded")
    detach_patch(model)
    with atomic_folder(out) as work:
        model.save_pretrained(work / MERGED_BASE)
        processor.save_pretrained(work / MERGED_BASE)
        found = dataclasses.replace(
            fingerprint(model, processor), model_id=str((Path(out) / MERGED_BASE).resolve()), revision=None
        )
        rest = _fusion_alone(source, record, found, work)
    return MergedExport(Path(out), Path(out) / MERGED_BASE, None, Path(out) / FUSION_PATCH if rest else None)


def export_beside(patch: str | Path, out: str | Path) -> MergedExport:
    """Write a patch's LoRA as a folder of PEFT's own, and beside it what remains: a patch without LoRA. The base is not needed.

    ``PeftModel.from_pretrained(base, OUT/adapter)``, then ``load_patch(peft_model.get_base_model(), OUT/patch)``.

    Args:
        patch: a folder or a hub id.
        out: where to; an older folder there is replaced whole.

    Raises:
        ValueError: if the patch has no LoRA, or no channel but a newline or vocabulary of its own, or ``out`` would replace it.
    """
    source = resolve_patch(patch)
    record = _with_lora(source)
    check_out(source, out)
    adapter = read_files(source, record).adapter
    assert adapter is not None
    with atomic_folder(out) as work:
        (work / PEFT_ADAPTER).mkdir()
        write_adapter(source, work / PEFT_ADAPTER, adapter)
        rest = _fusion_alone(source, record, record.base, work)
    return MergedExport(Path(out), None, Path(out) / PEFT_ADAPTER, Path(out) / FUSION_PATCH if rest else None)


def _with_lora(source: Path) -> PatchRecord:
    record = read_record(source)
    if record.patch.lora is None:
        raise ValueError(f"{source} has no LoRA, so there is nothing to merge; load it as it is")
    lost = [name for name in ("newline", "vocabulary") if getattr(record.patch, name) != getattr(_BASES_OWN, name)]
    if lost and not record.patch.side_channels:
        raise ValueError(
            f"{source} has no side channel, so no patch would remain to keep its {' and '.join(lost)}, which change what the base computes; "
            "load it as it is"
        )
    return record


def _fusion_alone(source: Path, record: PatchRecord, base: BaseFingerprint, work: Path) -> bool:
    """Write the patch without its LoRA, where something remains of it."""
    if not record.patch.side_channels:
        return False
    rest = dataclasses.replace(
        record,
        pave_version=__version__,
        patch=dataclasses.replace(record.patch, lora=None),
        base=base,
        provenance={**record.provenance, "merged": {"files": dict(record.files)}},
    )
    write_files(work / FUSION_PATCH, rest, read_files(source, record).stored_fusion, None, lambda _: None)
    return True
