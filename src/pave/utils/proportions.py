"""How sure a share of right answers is."""

from __future__ import annotations

import math
from statistics import NormalDist

NORMAL_95 = NormalDist().inv_cdf(0.975)
"""Standard deviations of a normal distribution either side of which 95 % lie."""


def wilson(p: float, n: float, quantile: float = NORMAL_95) -> tuple[float, float]:
    """Low and high end of Wilson's score interval (Wilson 1927) of a proportion ``p`` of ``n`` independent trials."""
    z2 = quantile**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return 0.0 if p <= 0 else max(0.0, centre - half), 1.0 if p >= 1 else min(1.0, centre + half)
