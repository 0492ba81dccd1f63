"""Which base a patch was trained on, and where that is."""

from __future__ import annotations

import re
from pathlib import Path

from pave.patching.base_facts import compare, config_facts
from pave.patching.fingerprint import BaseFingerprint, differences, fingerprint, weights_compared
from pave.patching.record import read_record
from pave.utils.embedded import PLAYGROUND, is_playground
from pave.video_llms.loading import load_base, load_processor

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def base_of_patch(folder: Path, shown: str | None = None) -> tuple[str, str | None]:
    """The base that a patch was trained on, from its own record: (folder or hub id, revision).

    The small base inside the package is known by its fingerprint, wherever it lay when the patch was trained. A folder is looked for
    where the record says, and from the folders that the patch lies in if that is a relative path. ``load_patch`` compares fingerprints
    in any case.

    Args:
        folder: of the patch.
        shown: what to call it in errors.

    Raises:
        ValueError: if the folder holds no patch, or its base is not here.
    """
    record = read_record(folder).base
    known = record.model_id
    if is_playground(known) or _is_playground(record):
        return PLAYGROUND, None
    if known is None:
        raise ValueError(f"{shown or folder}: the patch does not say which base it was trained on; give it as base (--base)")
    places = [Path(known), *(parent / known for parent in folder.resolve().parents)]
    place = next((place for place in places if place.is_dir()), None)
    if place is not None:
        return str(place), None
    if Path(known).is_absolute() or not _HUB_ID.fullmatch(known):
        raise ValueError(
            f"{shown or folder}: the patch was trained on the base {known!r}, and there is no such folder; give the base (--base)"
        )
    return known, record.revision


def _is_playground(record: BaseFingerprint) -> bool:
    config, processor = load_processor(PLAYGROUND)
    if compare("", record.architecture, config_facts(config), one_sided=False):
        return False
    found = fingerprint(load_base(PLAYGROUND)[0], processor)
    return weights_compared(record, found) and not differences(record, found)
