"""Side features of any unit and spread, brought to mean 0 and standard deviation 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """``(x - mean) / deviation`` for every feature, with numbers that are measured once and then kept, not learnt.

    A side channel may mix metres, accelerations and shares; without this, a linear layer hears the large ones only and learns the
    small ones last. A fresh module changes nothing.

    Args:
        width: C, the width of the side features.
    """

    mean_C: Tensor
    deviation_C: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(width))
        self.register_buffer("deviation_C", torch.ones(width))

    def measure(self, features_NC: Tensor) -> None:
        """Take mean and standard deviation (population) of each feature over ``features_NC``, (N, C); rows that are not finite are
        left out. A feature that does not vary keeps the deviation 1, so that it becomes 0.

        Raises:
            ValueError: if there is no finite row, or the width is another one.
        """
        if features_NC.ndim != 2 or features_NC.shape[1] != len(self.mean_C):
            raise ValueError(
                f"standardize: features of shape {tuple(features_NC.shape)}, but the patch takes width {len(self.mean_C)}"
            )
        values = features_NC.double()
        values = values[torch.isfinite(values).all(dim=1)]
        if not len(values):
            raise ValueError("standardize: there is no finite feature to measure")
        mean_C, deviation_C = values.mean(dim=0), values.std(dim=0, correction=0)
        varies_C = deviation_C > 1e-6 * values.abs().amax(dim=0)
        self.mean_C.copy_(mean_C)
        self.deviation_C.copy_(torch.where(varies_C, deviation_C, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """The same shape, (..., C), in float32 or wider: features with a large mean would lose their digits in 16 bits."""
        wide = features if features.dtype == torch.float64 else features.float()
        return (wide - self.mean_C.to(wide.dtype)) / self.deviation_C.to(wide.dtype)
