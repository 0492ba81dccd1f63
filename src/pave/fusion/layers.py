"""One layer of the fusion, and the side stream that all layers share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from pave.fusion.attention import FrameGroup, windowed_attention, windowed_attention_weights
from pave.fusion.rope import Rotation
from pave.fusion.temporal_alignment import Windows


@dataclass(frozen=True)
class SideStream:
    """The mapped side tokens of a batch, and who reads them.

    Attributes:
        embeds_BRMD: (B, R, M, embed width): K mapped steps, then T resampled ones where there are any.
        windows: which of them each frame reads.
        groups: the same as gather indices.
        rotations: rotary angles of the video's tokens and of these; None without rope.
    """

    embeds_BRMD: Tensor
    windows: Windows
    groups: list[FrameGroup]
    rotations: tuple[Rotation, Rotation] | None


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

    def forward(self, token_BTSD: Tensor, stream: SideStream) -> Tensor:
        """The tokens (B, T, S, D) after this layer."""
        query_BTSD, key_BRMD, value_BRMD = self._project(token_BTSD, stream)
        token_BTSD = token_BTSD + windowed_attention(query_BTSD, key_BRMD, value_BRMD, stream.groups, self.num_heads)
        return token_BTSD + self.ffn(token_BTSD)

    def attention_weights(self, token_BTSD: Tensor, stream: SideStream) -> Tensor:
        """The weights that ``forward`` uses on these tokens, (B, T, N, S, R, M)."""
        query_BTSD, key_BRMD, _ = self._project(token_BTSD, stream)
        return windowed_attention_weights(query_BTSD, key_BRMD, stream.groups, self.num_heads)

    def _project(self, token_BTSD: Tensor, stream: SideStream) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values; with rope, queries and keys are turned, values are not."""
        query_BTSD, key_BRMD = self.query(token_BTSD), self.key(stream.embeds_BRMD)
        value_BRMD = key_BRMD if self.value is None else self.value(stream.embeds_BRMD)
        if stream.rotations is not None:
            of_queries, of_keys = stream.rotations
            query_BTSD, key_BRMD = of_queries.apply(query_BTSD), of_keys.apply(key_BRMD)
        return query_BTSD.to(key_BRMD.dtype), key_BRMD, value_BRMD
