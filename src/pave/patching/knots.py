"""Low-rank updates of one layer merged in the subspace that they span.

KnOTS (Stoica et al. 2024, arXiv 2410.19735): the updates, side by side, have one singular value decomposition,
``[U_1 ... U_n] = P S [V_1^T ... V_n^T]``, so that all of them are written in the same output directions ``P S``, and it is the ``V_i``
that are merged. They are merged as by TIES (Yadav et al. 2023, arXiv 2306.01708): of each only its largest entries are kept; each entry
has the sign of the sum; and is the mean of those that have this sign. The rank is at most the sum of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def knots(updates: Sequence[tuple[Tensor, Tensor]], density: float) -> tuple[Tensor, Tensor]:
    """Merge the updates of one layer.

    Args:
        updates: the factors A (rank, inputs) and B (outputs, rank) of each, scales and weights multiplied in.
        density: share of the entries of each ``V_i`` that is kept, above 0 and at most 1.

    Returns:
        The factors of the merged update, whose rank is the sum of the ranks; rows and columns behind its own rank are zero.

    Raises:
        ValueError: if the density is no such share.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is a share, above 0 and at most 1, got {density}")
    downs, up = [down for down, _ in updates], torch.cat([up for _, up in updates], dim=1)
    left, r_left = torch.linalg.qr(up)
    u, s, vh = torch.linalg.svd(r_left @ torch.block_diag(*downs), full_matrices=False)
    merged = ties(vh.split([down.shape[1] for down in downs], dim=1), density)
    missing = up.shape[1] - len(s)
    pad = torch.nn.functional.pad
    return pad(s[:, None] * merged, (0, 0, 0, missing)), pad(left @ u, (0, missing))


def ties(tensors: Sequence[Tensor], density: float) -> Tensor:
    """Tensors of one shape merged entry by entry; entries that nobody keeps, or whose sum is zero, are zero.

    Args:
        tensors: at least one.
        density: share of the entries of each that is kept, those of the largest amount.
    """
    kept = torch.stack([_largest(tensor, density) for tensor in tensors])
    total = kept.sum(dim=0)
    decided = total.abs() > 1e-9 * kept.abs().sum(dim=0)  # else rounding would choose a side
    agrees = (kept.sign() == total.sign()) & decided
    return torch.where(agrees, kept, 0.0).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def _largest(tensor: Tensor, density: float) -> Tensor:
    count = max(1, round(density * tensor.numel()))
    least = tensor.abs().flatten().kthvalue(tensor.numel() - count + 1).values
    return torch.where(tensor.abs() >= least, tensor, 0.0)
