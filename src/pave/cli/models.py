"""Which models the command line loads when it is told little."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pave.data.media import FrameSampling
    from pave.evaluation.inference import VideoQA

logger = logging.getLogger(__name__)


def hide_loading_bars() -> None:
    """transformers draws bars while it loads; where standard error is no terminal they only litter a log."""
    import transformers

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def load(
    base: str | None,
    patch: str | None,
    device: str,
    dtype: str,
    sampling: FrameSampling | None,
    allow_base_mismatch: bool,
    encoders: Sequence[str] | None = None,
) -> VideoQA:
    """Base and patch, ready to answer. Without a base, the one inside the package, and a message that says so."""
    from pave.evaluation.inference import VideoQA
    from pave.utils.embedded import PLAYGROUND
    from pave.utils.threads import settle_threads

    hide_loading_bars()
    base = PLAYGROUND if base is None else base
    if base == PLAYGROUND:
        logger.info("using the small base inside pave, which knows the demo's miniature world only")
    qa = VideoQA.from_pretrained(
        base,
        patch,
        device=device,
        dtype=dtype,
        sampling=sampling,
        allow_base_mismatch=allow_base_mismatch,
        name=base,
        encoders=encoders or (),
    )
    if qa.model.device.type == "cpu":
        settle_threads(qa.model.num_parameters())
    return qa
