"""One layer of the fusion, and the side stream that all layers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pave.fusion.attention import FrameParts, Packing, group_frames, windowed_attention, windowed_attention_weights
from pave.fusion.rope import Rotation
from pave.fusion.temporal_alignment import Windows

_PART_BYTES = {"cpu": 16 * 2**20}
_PART_BYTES_ELSEWHERE = 512 * 2**20
"""Size of the largest tensor between input and output. On a processor larger blocks come as fresh pages from the system each time they are
made, which costs as much as a matrix product over them; elsewhere a part only bounds memory."""


class CrossAttentionLayer(nn.Module):
    """``x = x + attention(x, side)``, then ``x = x + FFN(x)``; no norm before attention and no output projection.

    Args:
        width: D.
        embed_width: width of the mapped side tokens.
        num_heads: N.
        share_key_value_projection: the released code's quirk: the key projection also makes the values (its checkpoints
            hold a value projection that is never used). There is no value projection then.
    """

    def __init__(self, width: int, embed_width: int, num_heads: int, *, share_key_value_projection: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(embed_width, width)
        self.value = None if share_key_value_projection else nn.Linear(embed_width, width)
        self.ffn = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width, bias=False),
            nn.GELU(),
            nn.Linear(2 * width, width, bias=False),
        )

    def forward(self, tokens: list[Tensor], stream: SideStream) -> list[Tensor]:
        """One layer over the (F, S, D) tokens of each part of the frames. The list given is used up: each part is let go once it is done."""
        key_BRMD, value_BRMD = self._project(stream)
        keys = stream.parts.windows(key_BRMD)
        values = None if value_BRMD is key_BRMD else stream.parts.windows(value_BRMD)
        masks = stream.parts.masks(key_BRMD.shape[2])
        for place, (key_FXD, mask) in enumerate(zip(keys, masks, strict=True)):
            query_FSD = self._query(tokens[place], key_BRMD.dtype, stream.query_rotation(place))
            value_FXD = key_FXD if values is None else next(values)
            token_FSD = tokens[place] + windowed_attention(query_FSD, key_FXD, value_FXD, mask, self.num_heads)
            tokens[place] = token_FSD + self.ffn(token_FSD)
        return tokens

    def attention_weights(self, tokens: list[Tensor], stream: SideStream) -> Tensor:
        """The weights that ``forward`` uses on these tokens, (B, T, N, S, R, M)."""
        key_BRMD, _ = self._project(stream)
        queries = [self._query(token, key_BRMD.dtype, stream.query_rotation(place)) for place, token in enumerate(tokens)]
        query_BTSD = stream.parts.join(queries).unflatten(0, stream.windows.length_BT.shape)
        return windowed_attention_weights(query_BTSD, key_BRMD, stream.parts.groups, self.num_heads)

    def _query(self, token_FSD: Tensor, dtype: torch.dtype, rotary: Rotation | None) -> Tensor:
        query_FSD = self.query(token_FSD)
        return (query_FSD if rotary is None else rotary.apply(query_FSD)).to(dtype)

    def _project(self, stream: SideStream) -> tuple[Tensor, Tensor]:
        """Keys and values (B, R, M, D) of all steps, once."""
        key_BRMD = self.key(stream.embeds)
        value_BRMD = key_BRMD if self.value is None else self.value(stream.embeds)
        return key_BRMD if stream.key_rotation is None else stream.key_rotation.apply(key_BRMD), value_BRMD


class SideStream:
    """The mapped side tokens of a batch with everything that all layers share about them.

    Attributes:
        embeds: (B, R, M, embed width): K mapped steps, then T resampled ones where there are any. Packed: one row of the steps kept.
        windows: which of them each frame reads.
        packing: what the row is made of; None where the batch is as it came.
        all_read: whether every frame of the row is known to read something.
        parts: the frames, packed or as they came in one row, some at a time.
        key_rotation: rotary angles of the steps, or None without rope.
    """

    def __init__(
        self,
        embeds: Tensor,
        windows: Windows,
        rotary: tuple[Rotation, Rotation] | None,
        packing: Packing | None,
        all_read: bool,
        frame_bytes: int,
    ) -> None:
        self.embeds = embeds
        self.windows = windows
        self.packing = packing
        self.all_read = all_read
        step_bytes = embeds[0, 0].numel() * embeds.element_size()
        most = _PART_BYTES.get(embeds.device.type, _PART_BYTES_ELSEWHERE)
        self.parts = FrameParts.of(group_frames(windows, packing), frame_bytes, step_bytes, most)
        self.key_rotation: Rotation | None = None
        self._query_rotations: list[Rotation] | None = None
        if rotary is not None:
            queries, self.key_rotation = rotary
            if packing is not None:
                queries, self.key_rotation = queries.map(packing.frames), self.key_rotation.map(packing.steps)
            cos, sin = (self.parts.cut(angle.flatten(0, 1)) for angle in (queries.cos, queries.sin))
            self._query_rotations = [Rotation(*angles) for angles in zip(cos, sin, strict=True)]

    def query_rotation(self, part: int) -> Rotation | None:
        """Rotary angles of the tokens of a part of the frames, or None without rope."""
        return None if self._query_rotations is None else self._query_rotations[part]
