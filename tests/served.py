"""A server on the base inside the package with patches that act, asked by the real client."""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import torch

from pave import EncoderConfig, FusionConfig, LoraSettings, PatchConfig, SideChannelConfig, attach_patch, save_patch
from pave.data.media import write_video
from pave.inference.engine import Engine
from pave.inference.request import Request, Sampling
from pave.patching import patch_parameters
from pave.playground.clips import render_clip
from pave.playground.world import draw_scene
from pave.serving.limits import Limits
from pave.serving.server import Access, bound, make_server, make_services
from pave.utils.embedded import PLAYGROUND
from pave.video_llms.loading import load_base

QUESTION = "what sound is heard ?"
SHORT = {"max_new_tokens": 8}
_FUSION = FusionConfig(width=16, embed_width=16, num_heads=2)
CONFIGS = {
    "hearing": PatchConfig(
        side_channels={
            "audio": SideChannelConfig(width=16, encoder=EncoderConfig(name="log_mel", settings={"n_mels": 16}), fusion=_FUSION)
        },
        lora=LoraSettings(rank=2),
        storage_dtype="float32",
    ),
    "moving": PatchConfig(
        side_channels={
            "imu": SideChannelConfig(
                kind="sensor",
                width=14,
                encoder=EncoderConfig(name="sensor_windows", settings={"columns": ["x", "y"], "window_seconds": 0.5}),
                fusion=_FUSION,
            )
        },
        lora=LoraSettings(rank=2),
        storage_dtype="float32",
    ),
    "watching": PatchConfig(
        side_channels={
            "second": SideChannelConfig(
                kind="video",
                width=28,
                encoder=EncoderConfig(name="frames_pixels", settings={"detail": 2, "grid": 1}),
                fusion=_FUSION,
            )
        },
        lora=LoraSettings(rank=2),
        storage_dtype="float32",
    ),
}


def save_patches(folder: Path, *names: str, seed: int = 7, scale: float = 0.5) -> dict[str, Path]:
    """Folders of patches of the base inside the package, with random weights that are not zero."""
    places = {}
    for number, name in enumerate(names):
        model, processor = load_base(PLAYGROUND)
        attach_patch(model, CONFIGS[name], name=name)
        generator = torch.Generator().manual_seed(seed + number)
        with torch.no_grad():
            for parameter in patch_parameters(model, name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        places[name] = folder / name
        save_patch(model, places[name], name=name, processor=processor)
    return places


def write_world(folder: Path, clips: int = 2) -> None:
    """Clips of the playground, one of them silent, a longer one, a sensor's log and a sound."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(clips):
        render_clip(folder / f"{number}.mp4", draw_scene(5, "test", number))
    render_clip(folder / "silent.mp4", draw_scene(5, "test", 0, silent=True))
    rng = np.random.default_rng(0)
    write_video(folder / "long.mp4", rng.integers(0, 256, (24, 48, 48, 3), dtype=np.uint8), fps=2)
    rows = [f"{0.1 * i:.1f},{np.sin(i):.4f},{np.cos(i / 3):.4f}" for i in range(40)]
    (folder / "imu.csv").write_text("\n".join(["time,x,y", *rows]) + "\n", encoding="utf-8")


def data_url(path: Path, kind: str = "video/mp4") -> str:
    """A file as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(url: str, question: str = QUESTION) -> list[dict[str, Any]]:
    """Messages with one question about a video."""
    parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def own_answer(engine: Engine, video: Path | None, question: str = QUESTION, **fields: Any) -> str:
    """What the engine says without a server."""
    sampling = Sampling(**{**SHORT, **fields.pop("sampling", {})})
    (answer,) = engine.answer([Request(video, question, sampling=sampling, **fields)])
    assert not isinstance(answer, ValueError), answer
    return answer.text


class Running:
    """A server in a thread of its own."""

    def __init__(self, services: Any, url: str) -> None:
        self.services = services
        self.url = url

    def client(self, key: str = "none") -> openai.OpenAI:
        """The real client, which tries nothing twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


@contextlib.contextmanager
def running(engine: Engine, patches: dict[str, Path], access: Access | None = None, **limits: Any) -> Iterator[Running]:
    """Serve an engine on a free port of loopback until the block ends; patches come on and off its model."""
    access = access or Access()
    services = make_services(engine, patches, base=PLAYGROUND, access=access, limits=Limits(**limits))
    server = make_server(services, access)
    with bound("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Running(services, f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()
