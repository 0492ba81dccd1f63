"""GLM-4.1V, GLM-4.5V and GLM-4.6V: video tokens stand on *image* placeholders, frame by frame with a timestamp behind each."""

from __future__ import annotations

from typing import Any

from torch import nn

from pave.video_llms import stand_ins
from pave.video_llms.interface import ATTENTION_LINEARS, MLP_LINEARS, GridInterface
from pave.video_llms.stand_ins import StandIn


class Glm4vInterface(GridInterface):
    """A prompt with an image and a video at once is refused by the base itself, so every image placeholder is the video's."""

    model_types = ("glm4v", "glm46v", "glm4v_moe")
    frames_per_step = 2
    width_field = "out_hidden_size"  # the patches of a token are merged by a convolution before the projector

    def vision_stand_ins(self, inner: Any) -> dict[nn.Module, StandIn]:
        tower = inner.visual
        norms = (tower.post_conv_layernorm, tower.embeddings, tower.post_layernorm)
        merged = stand_ins.rows_of_width(tower.config.out_hidden_size)
        return {**super().vision_stand_ins(inner), **stand_ins.layers_of(norms), tower.downsample: merged}

    def video_token_id(self, config: Any) -> int:
        return int(config.image_token_id)

    def decoder_linears(self, config: Any) -> tuple[str, ...]:
        mlp = MLP_LINEARS if config.model_type == "glm4v_moe" else ("gate_up_proj", "down_proj")
        return (*ATTENTION_LINEARS, *mlp)
