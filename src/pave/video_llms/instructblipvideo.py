"""InstructBLIP for video: a Q-Former turns every frame into the same number of tokens, which form no grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pave.video_llms.interface import VideoLayout, VideoLLMInterface


class InstructBlipVideoInterface(VideoLLMInterface):
    model_types = ("instructblipvideo",)
    projector_path = "language_projection"
    vision_not_stored = "what enters its projector depends on the question, not on the video alone"

    def pre_projector_width(self, config: Any) -> int:
        return int(config.qformer_config.hidden_size)

    def layouts(
        self, config: Any, arguments: Mapping[str, Any], frame_counts: Sequence[int] | None = None
    ) -> list[VideoLayout]:
        videos, frames = arguments["pixel_values"].shape[:2]
        return [VideoLayout(steps=frames, grid=(1, config.num_query_tokens))] * videos

    def pre_projector(
        self, inner: Any, captured: Tensor, layouts: Sequence[VideoLayout], arguments: Mapping[str, Any]
    ) -> list[Tensor]:
        return self.split(captured, layouts)

    def generate(self, model: Any, original: Callable[..., Any], args: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
        """The base's own method takes pixels and nothing in their place, so its few lines behind the encoder stand here."""
        given = dict(inputs)
        video = given.pop("mm_encoder_outputs")["video"].pooler_output
        ids, embeds = given.pop("input_ids"), given.pop("inputs_embeds", None)
        for name in ("qformer_input_ids", "qformer_attention_mask", "interpolate_pos_encoding"):
            given.pop(name, None)
        embeds = model.get_input_embeddings()(ids) if embeds is None else embeds
        places = model.get_placeholder_mask(ids, inputs_embeds=embeds)
        given["inputs_embeds"] = embeds.masked_scatter(places, video.to(embeds.device, embeds.dtype))
        if given.get("attention_mask") is None:
            given["attention_mask"] = torch.ones_like(ids)
        if not model.language_model.config.is_encoder_decoder:
            given["input_ids"] = ids
        return model.language_model.generate(**given)
