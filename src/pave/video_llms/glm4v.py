"""GLM-4.1V, GLM-4.5V and GLM-4.6V: video tokens stand on *image* placeholders, frame by frame with a timestamp behind each."""

from __future__ import annotations

from typing import Any

from pave.video_llms.interface import ATTENTION_LINEARS, MLP_LINEARS, GridInterface


class Glm4vInterface(GridInterface):
    """A prompt with an image and a video at once is refused by the base itself, so every image placeholder is the video's."""

    model_types = ("glm4v", "glm46v", "glm4v_moe")
    frames_per_step = 2
    width_field = "out_hidden_size"  # the patches of a token are merged by a convolution before the projector

    def video_token_id(self, config: Any) -> int:
        return int(config.image_token_id)

    def decoder_linears(self, config: Any) -> tuple[str, ...]:
        mlp = MLP_LINEARS if config.model_type == "glm4v_moe" else ("gate_up_proj", "down_proj")
        return (*ATTENTION_LINEARS, *mlp)
