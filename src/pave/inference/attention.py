"""What a patch does to a video while it answers: where its tokens look, how far its gates open, how much each token changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pave.fusion import ResidualFusion, TemporalAlignedCrossAttention
from pave.tokens import SideTokens, VideoTokens

MOST_WEIGHTS = 2**25
"""Of attention of one layer that are held at a time. They are dense, so long videos with long streams have more."""


@dataclass(frozen=True, eq=False)
class FusionCall:
    """One call of a fusion module that adds a residual."""

    module: ResidualFusion
    video: VideoTokens
    side: SideTokens
    residual_BTSE: Tensor
    """As the patch was trained, whatever its strength is."""
    gate_BTS: Tensor | None
    """From 0 to 2, part of the residual already; None without a gate."""


@contextlib.contextmanager
def watched(fusions: Mapping[str, nn.Module]) -> Iterator[dict[str, FusionCall]]:
    """Collect, by name, what each module that adds a residual was called with last, and what it gave.

    Args:
        fusions: by name. Of those that add tokens of their own nothing is collected.
    """
    calls: dict[str, FusionCall] = {}
    gates: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name, fusion in fusions.items():
            if not isinstance(fusion, ResidualFusion):
                continue

            def keep(module: Any, arguments: tuple[Any, ...], residual: Tensor, name: str = name) -> None:
                calls[name] = FusionCall(module, arguments[0], arguments[1], residual, gates.pop(name, None))

            stack.callback(fusion.register_forward_hook(keep).remove)
            gate = getattr(fusion, "gate", None)
            if gate is not None:

                def keep_gate(module: Any, arguments: tuple[Any, ...], gate_BTS1: Tensor, name: str = name) -> None:
                    gates[name] = gate_BTS1[..., 0]

                stack.callback(gate.register_forward_hook(keep_gate).remove)
        yield calls


def attention_weights(call: FusionCall, steps: int) -> NDArray[np.float64] | None:
    """What the tokens of the first video of a call attend to in every layer: softmax(q k / sqrt(H)), (layers, T, N, S, K, M).

    T are the time steps of the base, in which it may have merged frames. The weights of a token on all side tokens sum to 1, or to 0
    where its frame reads nothing. None where the module is no cross-attention.

    Args:
        call: see ``watched``.
        steps: K, the side steps of the video itself.
    """
    fusion = call.module
    if not isinstance(fusion, TemporalAlignedCrossAttention):
        return None
    maps = [_first(fusion.attention_map(call.video, call.side, layer=number), call) for number in range(len(fusion.layers))]
    return np.stack(maps)[..., :steps, :]


@dataclass(frozen=True, eq=False)
class FusionView:
    """What one channel of a patch does to one video, by time steps T of the base and its S tokens in each."""

    change_TS: NDArray[np.float64]
    """The length of what is added to a token as the patch was trained, over the length of the token."""
    gate_TS: NDArray[np.float64] | None
    """From 0, shut, to 2; None without a gate."""
    attention_TK: NDArray[np.float64] | None
    """The weights of the last layer, averaged over heads and over the tokens of a time step and summed over the tokens of a side step: a
    row sums to 1, or to 0 where the time step reads nothing. None without cross-attention, and where there are more than ``MOST_WEIGHTS``."""


def view_of(call: FusionCall, steps: int) -> FusionView:
    """The first video of a call.

    Args:
        call: see ``watched``.
        steps: K, the side steps of the video itself.
    """
    token_TS, residual_TS = (_first(x.float().norm(dim=-1), call) for x in (call.video.post_projector_BTSE, call.residual_BTSE))
    return FusionView(
        change_TS=residual_TS / np.maximum(token_TS, np.finfo(np.float32).tiny),
        gate_TS=None if call.gate_BTS is None else _first(call.gate_BTS, call),
        attention_TK=_mean_attention(call, steps),
    )


def _mean_attention(call: FusionCall, steps: int) -> NDArray[np.float64] | None:
    fusion = call.module
    if not isinstance(fusion, TemporalAlignedCrossAttention):
        return None
    tokens, side = call.video.post_projector_BTSE.shape[1:3], call.side.embeds_BKMC.shape[1:3]
    if fusion.num_heads * tokens.numel() * side.numel() > MOST_WEIGHTS:
        return None
    return mean_attention(_first(fusion.attention_map(call.video, call.side), call)[..., :steps, :])


def mean_attention(weight_TNSKM: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of one layer, averaged over heads and tokens and summed over the tokens of a side step: (T, K)."""
    mean_TK: NDArray[np.float64] = weight_TNSKM.sum(axis=-1).mean(axis=(1, 2))
    return mean_TK


def by_frame(values_T: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    """Values of time steps for frames: frames that the base merged share those of their step."""
    shared: NDArray[np.float64] = values_T[np.arange(frames) * len(values_T) // frames]
    return shared


def _first(values: Tensor, call: FusionCall) -> NDArray[np.float64]:
    """Of values (B, T, ...) those of the first video, without padding."""
    first: NDArray[np.float64] = values[0, : int(call.video.valid_BT[0].sum())].detach().double().cpu().numpy()
    return first
