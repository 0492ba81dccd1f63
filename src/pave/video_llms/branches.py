"""Several questions about one video in one row: the video's tokens once, then one branch of text for each question.

A row is *common prefix, branch 1, branch 2, ...*. Every branch sees the prefix and, causally, itself, and its positions go on behind
the prefix, so that each question is computed as if it stood alone behind the video.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pave.video_llms import get_interface

PADDING, PREFIX = -1, 0
"""Values of ``branches`` (B, L); the branches themselves count from 1."""
ATTENTIONS = ("sdpa", "eager")
"""Implementations of attention that take any mask. Flash attention takes none, and flex attention one of its own kind."""


def branch_mask(branches_BL: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """Which token sees which, as the attention of transformers takes it, (B, 1, L, L).

    Args:
        branches_BL: ``PREFIX``, the number of a branch, or ``PADDING``.
        implementation: one of ``ATTENTIONS``.
        dtype: of the mask that is added for ``eager``; for ``sdpa`` it is boolean.
    """
    L = branches_BL.shape[1]
    seen_BLL = (branches_BL[:, None, :] == PREFIX) | (branches_BL[:, None, :] == branches_BL[:, :, None])
    seen_B1LL = (seen_BLL & torch.ones(L, L, dtype=torch.bool, device=branches_BL.device).tril())[:, None]
    if implementation == "sdpa":
        return seen_B1LL
    nothing = torch.zeros((), dtype=dtype, device=branches_BL.device)
    return torch.where(seen_B1LL, nothing, torch.finfo(dtype).min)


def check_base_shares(config: Any, *, loaded: bool = True) -> None:
    """Refuse a base that cannot keep questions in one row apart.

    Args:
        config: the base's config; of the loaded model, so that it says which attention runs.
        loaded: whether it is; else attention is not looked at.

    Raises:
        ValueError: if the family is not described for it, has layers that are no full attention, or runs an attention that takes
            no mask.
    """
    text = config.get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention"})
    reason = None
    if not get_interface(config).shares_videos:
        reason = f"that is not described and tested for {config.model_type!r}"
    elif others:
        reason = f"{config.model_type!r} has layers of {others[0]}, which know no such mask"
    elif loaded and text._attn_implementation not in ATTENTIONS:
        reason = f"the attention {text._attn_implementation!r} takes no such mask; load the base with {' or '.join(ATTENTIONS)}"
    if reason is not None:
        raise ValueError(f"several questions cannot share a video's tokens (data.share_videos): {reason}")
