"""What the frequencies of a few readings at uneven times are: crossings, and a periodogram in bands."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import numpy as np
from numpy.typing import NDArray

BANDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Edges in Hz, an octave each."""
FREQUENCIES = ("crossings", "centroid", "peak", "bands")
"""What is said of them, in this order; bands are several numbers."""
_MOST_FREQUENCIES = 4096
_ROUNDING = 1e-9
"""Relative, of frequencies that are as good as on an edge."""
_CONSTANT = 64 * np.finfo(np.float64).eps
"""A deviation that small beside the values is rounding."""


class Spectrum:
    """Numbers about the frequencies of a column's values in a window, without filling gaps or moving readings to a grid.

    Of values x_i at times t_i, i = 1 ... n, with median distance d:

    - **crossings**: sign changes of ``x_i - mean(x)`` between neighbours, divided by ``t_n - t_1``: a sine of f Hz has 2 f a second.
    - **power** at f: ``|sum_i w_i (x_i - m) exp(-2 pi j f t_i)|^2``, the classical periodogram (Schuster 1898), which needs no even
      distances; w_i is a Hann taper over the values' own time, ``sin(pi (t_i - t_1 + d) / (t_n - t_1 + 2 d))^2``, and m the mean under
      it. f takes the multiples of ``1 / (2 window_seconds)`` from the first edge on and below the last one, up to ``1 / (2 d)``: slower
      readings say nothing of higher ones.
    - **bands**: the power between two neighbouring edges as a share of all of it.
    - **centroid**: ``sum(power log2 f) / sum(power)``, in octaves above 1 Hz: 0 is 1 Hz, 3 is 8 Hz, -1 half a Hz.
    - **peak**: log2 of the f with most power, likewise.

    A band between two multiples has no frequency and would be 0 whatever happens. Edges of one's own are refused then; those of ``BANDS``
    are kept, so that a column has as many numbers in windows of any length: the first band, from 0.25 to 0.5 Hz, is 0 in windows of 1 s.

    Fewer than four values, and values that do not change, have no frequencies: all numbers are 0.

    Args:
        window_seconds: length of the window, which decides how fine frequencies are told apart.
        edges: of the bands in Hz, ascending.

    Raises:
        ValueError: if the edges do not ascend from above 0, ask for more than 4,096 frequencies, or hold none between two of them.
    """

    def __init__(self, window_seconds: float, edges: Sequence[float]) -> None:
        self.edges = tuple(map(float, edges))
        if (
            len(self.edges) < 2
            or self.edges[0] <= 0
            or not all(a < b < float("inf") for a, b in zip(self.edges, self.edges[1:]))
        ):
            raise ValueError(f"bands must be at least two ascending numbers of Hz above 0, got {list(edges)}")
        step = 1 / (2 * window_seconds)
        if (self.edges[-1] - self.edges[0]) / step > _MOST_FREQUENCIES:
            raise ValueError(
                f"bands up to {self.edges[-1]:g} Hz in windows of {window_seconds:g} s are more than {_MOST_FREQUENCIES:,} frequencies; use "
                "shorter windows or lower bands"
            )
        first, last = np.ceil(self.edges[0] / step - _ROUNDING), np.ceil(self.edges[-1] / step - _ROUNDING)
        self.frequencies_F: NDArray[np.float64] = np.arange(first, last, dtype=np.float64) * step
        self.band_of_F = np.searchsorted(self.edges, self.frequencies_F * (1 + _ROUNDING), side="right") - 1
        empty = sorted(set(range(len(self.edges) - 1)) - set(self.band_of_F.tolist()))
        if empty and self.edges != BANDS:
            low, high = self.edges[empty[0] : empty[0] + 2]
            raise ValueError(
                f"the band from {low:g} to {high:g} Hz holds none of the frequencies that windows of {window_seconds:g} s tell apart, the "
                f"multiples of {step:g} Hz; use longer windows or wider bands"
            )

    @property
    def widths(self) -> dict[str, int]:
        """How many numbers each of ``FREQUENCIES`` is."""
        return {name: len(self.edges) - 1 if name == "bands" else 1 for name in FREQUENCIES}

    def describe(self, times_n: NDArray[np.float64], values_n: NDArray[np.float64]) -> dict[str, list[float]]:
        """The numbers of ``FREQUENCIES``; times ascend and values are finite."""
        deviation_n = values_n - values_n.mean()
        if len(values_n) < 4 or np.abs(deviation_n).max() <= _CONSTANT * np.abs(values_n).max():
            return {name: [0.0] * width for name, width in self.widths.items()}
        signs = np.sign(deviation_n)
        changes = np.count_nonzero(np.diff(signs[signs != 0]))
        numbers = {name: [0.0] * width for name, width in self.widths.items()}
        numbers["crossings"] = [changes / float(times_n[-1] - times_n[0])]
        distance = float(np.median(np.diff(times_n)))
        heard_F = self.frequencies_F <= 1 / (2 * distance) * (1 + _ROUNDING)
        if not heard_F.any():
            return numbers
        power_F = _power(times_n, values_n, self.frequencies_F[heard_F], distance)
        octave_F, total = np.log2(self.frequencies_F[heard_F]), float(power_F.sum())
        if total > 0:
            numbers["centroid"] = [float(power_F @ octave_F) / total]
            numbers["peak"] = [log2(float(self.frequencies_F[heard_F][power_F.argmax()]))]
            shares = np.bincount(self.band_of_F[heard_F], power_F, minlength=len(self.edges) - 1) / total
            numbers["bands"] = shares.tolist()
        return numbers


def _power(
    times_n: NDArray[np.float64], values_n: NDArray[np.float64], frequencies_F: NDArray[np.float64], distance: float
) -> NDArray[np.float64]:
    since_n = times_n - times_n[0]
    taper_n = np.sin(np.pi * (since_n + distance) / (since_n[-1] + 2 * distance)) ** 2
    tapered_n = taper_n * (values_n - taper_n @ values_n / taper_n.sum())
    tapered_n = tapered_n / np.abs(tapered_n).max()  # shares do not depend on it, and squares of large numbers overflow
    power_F = np.empty(len(frequencies_F))
    rows = max(1, 2**20 // len(times_n))  # frequencies at once: a matrix of at most 16 MB
    for begin in range(0, len(frequencies_F), rows):
        turns_Fn = np.outer(frequencies_F[begin : begin + rows], since_n)
        power_F[begin : begin + rows] = np.abs(np.exp(-2j * np.pi * turns_Fn) @ tapered_n) ** 2
    return power_F
