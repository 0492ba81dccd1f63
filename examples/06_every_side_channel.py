"""The seven kinds of side channels, each from real files to tokens with times, and to an answer of a model that takes it.

    python examples/06_every_side_channel.py [FOLDER]

The patches are fresh, so every answer is the base's own; `python -m evidence channels` trains them. What each encoder does and which files
it reads: docs/side_channels.md. recipes/playground_*.yaml are the recipes.
"""

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from pave import EncoderConfig, PatchConfig, SideChannelConfig, attach_patch
from pave.data.sources import read_source
from pave.evaluation.inference import VideoQA
from pave.playground import base_path
from pave.playground.clips import render_clip
from pave.playground.further import render_further
from pave.playground.world import draw_scene
from pave.side_channels import build_encoder
from pave.training import read_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
QUESTION = "which object moves first ?"
CAPTIONS = "1\n00:00:00,500 --> 00:00:02,000\na bell rings\n\n2\n00:00:05,000 --> 00:00:06,500\nsilence again\n"


def encoder_of(recipe: str) -> EncoderConfig:
    (channel,) = read_recipe(RECIPES / f"playground_{recipe}.yaml").patch.side_channels.values()
    return channel.encoder


def files(folder: Path) -> dict[str, tuple[str, str | None, EncoderConfig]]:
    """By channel: a video, the channel's own file (None: it is read from the video), and an encoder."""
    for world in ("space", "camera", "flicker", "sensor"):
        render_further(folder / world, world, "test", 1)
    heard = folder / "heard.mp4"
    render_clip(heard, draw_scene(seed=0, split="test", index=0))
    (folder / "words.srt").write_text(CAPTIONS)
    times = torch.arange(0.25, 8, 0.5, dtype=torch.float64)
    save_file({"features": torch.randn(16, 4, 32), "times": times}, folder / "stored.safetensors")
    clip = {world: str(folder / world / "clips/test/00000.mp4") for world in ("space", "camera", "flicker", "sensor")}
    stored = EncoderConfig(name="features", settings={"width": 32, "tokens_per_step": 4})
    return {
        "audio": (str(heard), None, encoder_of("audio")),
        "scene3d": (clip["space"], str(folder / "space/space/test/00000/scene.json"), encoder_of("scene3d")),
        "multiview": (clip["camera"], str(folder / "camera/camera/test/00000/views.json"), encoder_of("multiview")),
        "high_fps": (clip["flicker"], None, encoder_of("high_fps")),
        "sensor": (clip["sensor"], str(folder / "sensor/sensor/test/00000.csv"), encoder_of("sensor")),
        "text": (str(heard), str(folder / "words.srt"), EncoderConfig(name="text_hash")),
        "features": (str(heard), str(folder / "stored.safetensors"), stored),
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    processor = AutoProcessor.from_pretrained(base_path())
    for name, (video, own, config) in files(folder).items():
        encoder = build_encoder(config)
        features = encoder.encode(read_source(encoder, video, own))
        K, M, C = features.features_KMC.shape
        print(
            f"{name:<10} {K} steps from {features.times_K[0]:.2f} to {features.times_K[-1]:.2f} s, {M} tokens of width {C} each"
        )

        model = AutoModelForImageTextToText.from_pretrained(base_path())
        channel = SideChannelConfig(kind=name, width=C, encoder=config)
        attach_patch(model, PatchConfig(side_channels={name: channel}))
        qa = VideoQA(model.eval(), processor)
        answer = qa.ask(video, QUESTION, side_channels={} if own is None else {name: own}, max_new_tokens=4)
        print(f"           {QUESTION} {answer.text} (seen beside {answer.side_channels[name]})")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
