"""Who acts on which row of a batch, and how strongly: said once for a call, read by every LoRA layer of the model.

The base's own code stands between the outermost ``forward`` and the LoRA layers, so the rows travel in a context variable. An
attribute on the model would mix up two threads that call one model; a ``threading.local`` cannot be deep-copied.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Strength = float | tuple[float, float]
"""Of a patch on a row: 0 is the base bit for bit, 1 as trained. A pair scales the residual and the LoRA update apart."""
Selection = str | Mapping[str, Strength] | None
"""Which patches act on one row: a name (as trained), names with strengths, or None for the base."""
Patches = Selection | Sequence[Selection]
"""For all rows of a call, or one entry a row."""


@dataclass(frozen=True)
class Use:
    """How strongly one patch acts on one row."""

    name: str
    strength: float = 1.0
    """Of the residual."""
    lora_strength: float = 1.0
    """Of the LoRA update."""

    @property
    def acts(self) -> bool:
        return bool(self.strength or self.lora_strength)

    def scaled(self, factor: float) -> Use:
        return Use(self.name, self.strength * factor, self.lora_strength * factor)


def read_selection(selection: Selection, attached: Sequence[str]) -> tuple[Use, ...]:
    """What a caller writes for one row.

    Args:
        selection: see ``Selection``.
        attached: names of the patches on the model.

    Raises:
        ValueError: if a name is unknown, a strength is no finite number of at least 0, or it is something else altogether.
    """
    if selection is None:
        return ()
    if isinstance(selection, str):
        selection = {selection: 1.0}
    if not isinstance(selection, Mapping):
        raise ValueError(
            f"patches: a row takes a name, a mapping from names to strengths, or None for the base, got {type(selection).__name__}"
        )
    unknown = [name for name in selection if name not in attached]
    if unknown:
        known = f"attached: {', '.join(attached)}" if attached else "none is attached"
        raise ValueError(f"patches: the model carries no patch {unknown[0]!r}; {known}")
    return tuple(_use(name, strength) for name, strength in selection.items())


def _use(name: str, strength: Strength) -> Use:
    pair = tuple(strength) if isinstance(strength, (tuple, list)) else (strength, strength)
    if len(pair) != 2:
        raise ValueError(f"patches: {name!r} takes a strength or a pair (residual, LoRA), got {strength!r}")
    return Use(name, *(check_strength(value, f"patches: the strength of {name!r}") for value in pair))


def check_strength(value: Any, what: str) -> float:
    """A strength as a number. Beyond 1 it warns: nobody has trained the patch to act that strongly.

    Raises:
        ValueError: if it is none, negative or not finite; ``what`` is named.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{what} must be a finite number that is not negative, got {value!r}")
    if number > 1.0:
        warnings.warn(f"{what} is {number:g}: beyond 1 the patch acts more strongly than it was trained to", stacklevel=4)
    return number


@dataclass(frozen=True)
class Plan:
    """The uses of every row of a call."""

    rows: tuple[tuple[Use, ...], ...]

    @classmethod
    def of(cls, patches: Patches, num_rows: int, attached: Sequence[str], factor: float = 1.0) -> Plan:
        """From what a caller writes.

        Args:
            patches: see ``Patches``.
            num_rows: of the batch.
            attached: names of the patches on the model.
            factor: scales every strength.

        Raises:
            ValueError: as ``read_selection`` does, or if there is not one entry a row.
        """
        if patches is None or isinstance(patches, (str, Mapping)):
            return cls((_scaled(read_selection(patches, attached), factor),) * num_rows)
        if len(patches) != num_rows:
            raise ValueError(
                f"patches: {len(patches)} entries for {num_rows} rows; give one entry for each row, or a single one for all of them"
            )
        return cls(tuple(_scaled(read_selection(entry, attached), factor) for entry in patches))

    def names(self) -> list[str]:
        """The patches that act on some row, in the order of their first one."""
        return list(dict.fromkeys(use.name for row in self.rows for use in row if use.acts))

    def strengths(self, name: str) -> list[float]:
        """Of a patch's residual, row by row."""
        return [sum(use.strength for use in row if use.name == name) for row in self.rows]

    def lora_strengths(self, name: str) -> list[float]:
        """Of a patch's LoRA update, row by row."""
        return [sum(use.lora_strength for use in row if use.name == name) for row in self.rows]


def _scaled(uses: tuple[Use, ...], factor: float) -> tuple[Use, ...]:
    return uses if factor == 1.0 else tuple(use.scaled(factor) for use in uses)


# --- one call ---------------------------------------------------------------------------------------------------------


class Rows:
    """What the modules below the outermost ``forward`` of ``owner`` have to know of a call.

    Args:
        owner: the patched model.
        weights: of every patch's LoRA update, row by row; a patch that is not named acts on no row.
        vocabulary: token ids that a row chooses from, None for all; see ``PatchConfig.vocabulary``.
        longer: the longer prompt of the call, where a patch adds tokens to it.
    """

    def __init__(
        self,
        owner: nn.Module,
        weights: Mapping[str, Sequence[float]],
        vocabulary: Sequence[int | None] = (),
        longer: Any = None,
    ) -> None:
        self.owner = owner
        self.weights = dict(weights)
        self.vocabulary = tuple(vocabulary)
        self.longer = longer
        self._indexed: dict[Any, tuple[Tensor | None, float | Tensor]] = {}

    def of(self, name: str, x: Tensor) -> tuple[Tensor | None, float | Tensor]:
        """The rows of ``x`` that a patch's update acts on, None for all of them, and its weight there: a number if they agree.

        Copies of a row of the call follow each other in ``x``: its beams, or its tokens where a base flattens them.

        Raises:
            ValueError: if ``x`` does not hold as many of each.
        """
        key = (name, len(x), x.device)
        if key not in self._indexed:  # a plain dictionary: two threads may both make an entry, and both are right
            self._indexed[key] = self._index(name, x)
        return self._indexed[key]

    def _index(self, name: str, x: Tensor) -> tuple[Tensor | None, float | Tensor]:
        weights = self.weights.get(name, ())
        acting = {weight for weight in weights if weight}
        if not acting or (len(acting) == 1 and all(weights)):
            return (None if acting else _no_rows(x)), (acting.pop() if acting else 0.0)
        if len(x) % len(weights):
            raise ValueError(
                f"a LoRA layer got an input of shape {tuple(x.shape)} for {len(weights)} prompts, so this base packs several into a row; "
                "rows that use different patches cannot share a batch here: pass them in separate batches"
            )
        each = [weight for weight in weights for _ in range(len(x) // len(weights))]
        chosen = [row for row, weight in enumerate(each) if weight]
        index = None if len(chosen) == len(x) else torch.tensor(chosen, dtype=torch.long, device=x.device)
        if len(acting) == 1:
            return index, acting.pop()
        return index, torch.tensor([each[row] for row in chosen], device=x.device)

    def __deepcopy__(self, memo: Any) -> Rows:
        return self  # nothing in it changes, and a copied cache still belongs to the same model


def _no_rows(x: Tensor) -> Tensor:
    return torch.zeros(0, dtype=torch.long, device=x.device)


_ROWS: ContextVar[Rows | None] = ContextVar("pave_rows", default=None)


def current_rows() -> Rows | None:
    """Of the call that this code runs in, if any."""
    return _ROWS.get()


@contextlib.contextmanager
def lora_rows(rows: Rows | None) -> Iterator[Rows | None]:
    """Make ``rows`` the current ones for the time of the block."""
    token = _ROWS.set(rows)
    try:
        yield rows
    finally:
        _ROWS.reset(token)


class InSameRows:
    """An activation-checkpointing function that recomputes in the rows of its first run.

    The recomputation happens during backward, after the call has ended and perhaps in a thread of the autograd engine, yet
    the LoRA layers must again act on the same rows.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.keywords: dict[str, Any] = getattr(function, "keywords", {})
        """Of the checkpointing itself, such as ``use_reentrant``."""

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        rows = current_rows()

        def run(*inner_args: Any, **inner_kwargs: Any) -> Any:
            with lora_rows(rows):
                return layer(*inner_args, **inner_kwargs)

        return self.function(run, *args, **kwargs)
