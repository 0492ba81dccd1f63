"""The worlds of the playground as training problems: one for each channel, with its encoder and its questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pave.config import EncoderConfig, FusionConfig, PatchConfig, SideChannelConfig
from pave.demo.plan import CHANCE, LORA, MIXTURE, SILENT, SOUND, audio_patch
from pave.playground.clips import render_clips, write_samples
from pave.playground.further import render_further, write_further_samples
from pave.playground.world import Split
from pave.side_channels import build_encoder
from pave.utils.files import atomic_write_text

SILENT_WEIGHTS = {kind: MIXTURE[kind] for kind in SILENT}
SILENT_TRAIN = [["colour|shape"], ["first_mover"], ["light"], ["light_vision"]]


@dataclass(frozen=True)
class ChannelWorld:
    """One side channel and the questions that need it."""

    channel: str
    """Its name in samples and patches."""
    kind: str
    source: str
    """The world of ``pave.playground``: "sound", or one of ``pave.playground.further``."""
    encoder: EncoderConfig
    weights: Mapping[str, float]
    """Shares in training of the question types that need the channel; the silent types have ``SILENT_WEIGHTS``."""
    chance: Mapping[str, float]
    """Accuracy of guessing among the answers that the frames leave open, for those types."""
    aligned: str | None
    """The type that needs a frame and the channel at the same moment."""
    standardize: bool = True
    steps: int = 350
    fusion: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the fusion's settings."""

    @property
    def own(self) -> tuple[str, ...]:
        """The question types that need the channel."""
        return tuple(self.weights)

    def patch(self, **fusion: Any) -> PatchConfig:
        """The channel's patch, of the demo's size, with changes to its fusion."""
        settings = {
            "width": 64,
            "embed_width": 64,
            "num_heads": 4,
            "num_layers": 2,
            "gate": True,
            "standardize": self.standardize,
        }
        made = FusionConfig(**{**settings, **self.fusion, **fusion})
        width = build_encoder(self.encoder).width
        return PatchConfig(
            side_channels={self.channel: SideChannelConfig(kind=self.kind, width=width, encoder=self.encoder, fusion=made)},
            lora=LORA,
        )


def _pixels(**settings: Any) -> dict[str, Any]:
    """The picture as one token, so that no attention has to find the place first."""
    return {"name": "frames_pixels", "settings": {"grid": 1, **settings}}


WORLDS = {
    "audio": ChannelWorld(
        channel="audio",
        kind="audio",
        source="sound",
        encoder=next(iter(audio_patch().side_channels.values())).encoder,
        weights={kind: MIXTURE[kind] for kind in SOUND},
        chance={kind: CHANCE[kind] for kind in SOUND},
        aligned="sound_vision",
        standardize=False,
    ),
    "sensor": ChannelWorld(
        channel="sensor",
        kind="sensor",
        source="sensor",
        encoder=EncoderConfig(
            name="sensor_windows", settings={"columns": ["reading", "shake"], "window_seconds": 1.0, "stride_seconds": 0.5}
        ),
        weights={"sensor": 2.25, "sensor_vision": 2.25},
        chance={"sensor": 1 / 2, "sensor_vision": 1 / 2},
        aligned="sensor_vision",
    ),
    "scene3d": ChannelWorld(
        channel="space",
        kind="scene3d",
        source="space",
        encoder=EncoderConfig(
            name="scene3d",
            settings={
                "encoder": {"name": "frames_pixels", "settings": {"fps": None, "grid": 6, "detail": 1}},
                "common_frame": "first_camera",
                "frequencies": 2,
            },
        ),
        weights={"nearer": 4.5},
        chance={"nearer": 1 / 2},
        aligned=None,
    ),
    "multiview": ChannelWorld(
        channel="camera",
        kind="multiview",
        source="camera",
        encoder=EncoderConfig(name="multiview", settings={"views": ["behind"], "encoder": _pixels(fps=2.0, detail=6)}),
        weights={"hidden_colour": 2.0, "hidden_shape": 1.5, "hidden_vision": 1.5},
        chance={"hidden_colour": 1 / 4, "hidden_shape": 1 / 3, "hidden_vision": 1 / 2},
        aligned="hidden_vision",
        steps=700,  # the base is used to answer with the colours it sees
    ),
    "high_fps": ChannelWorld(
        channel="dense",
        kind="high_fps",
        source="flicker",
        encoder=EncoderConfig.from_dict(_pixels(fps=None, detail=6)),
        weights={"flicker": 1.5, "flicker_count": 1.5, "flicker_vision": 1.5},
        chance={"flicker": 1 / 4, "flicker_count": 1 / 3, "flicker_vision": 1 / 2},
        aligned="flicker_vision",
    ),
}


def write_world(name: str, folder: Path, train: int, test: int, seed: int = 0) -> None:
    """Render a world and write ``train.jsonl`` and ``test.jsonl``. What is there already under the same manifest is kept.

    Args:
        name: of ``WORLDS``.
        folder: made where missing.
        train, test: clips.
        seed: of the world.
    """
    _render(WORLDS[name], folder, {"train": train, "test": test}, seed)
    _ask(WORLDS[name], folder, {"train": train, "test": test}, seed)


def _render(world: ChannelWorld, folder: Path, clips: Mapping[Split, int], seed: int) -> None:
    for split, count in clips.items():
        if world.source == "sound":
            for _ in render_clips(folder, split, count, seed=seed):
                pass
        else:
            render_further(folder, world.source, split, count, seed=seed)


def _ask(world: ChannelWorld, folder: Path, clips: Mapping[Split, int], seed: int) -> None:
    for split, count in clips.items():
        asked = [[kind] for kind in world.own] + (SILENT_TRAIN if split == "train" else [[kind] for kind in SILENT])
        file = folder / f"{split}.jsonl"
        if world.source == "sound":
            write_samples(file, split, count, asked, seed=seed)
        else:
            write_further_samples(file, world.source, split, count, asked, channel=world.channel, seed=seed)


def check_world(name: str, folder: Path, train: int, test: int, seed: int = 0) -> None:
    """Whether ``write_world`` would write the same questions on the same scenes into a folder now as it did then.

    Raises:
        ValueError: naming the file that it would not.
    """
    with TemporaryDirectory() as made:
        _render(WORLDS[name], Path(made), {"train": 0, "test": 0}, seed)  # the manifests alone
        _ask(WORLDS[name], Path(made), {"train": train, "test": test}, seed)
        for file in ("manifest-train.json", "manifest-test.json", "train.jsonl", "test.jsonl"):
            if not (folder / file).is_file() or (folder / file).read_bytes() != (Path(made) / file).read_bytes():
                raise ValueError(
                    f"{folder / file} is not what this version of pave writes, so runs made before and now would have other questions; "
                    "choose another --out, or remove the folder and its runs"
                )


def merge_worlds(names: list[str], folders: Mapping[str, Path], out: Path) -> None:
    """One ``train.jsonl`` and one ``test.jsonl`` over several worlds, each sample with the channel of its own world only.

    Ids get the world's name in front; samples of a world whose channel is read from the video itself (sound, dense frames) have
    the channels of the others set to null where those would be read from it as well.
    """
    import json

    for split in ("train", "test"):
        rows: list[str] = []
        for name in names:
            others = {WORLDS[other].channel: None for other in names if other != name}
            for line in (folders[name] / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                row["id"] = f"{name}-{row['id']}"
                row["video"] = str((folders[name] / row["video"]).resolve())
                side = {
                    k: v if v is None else str((folders[name] / v).resolve()) for k, v in row.get("side_channels", {}).items()
                }
                row["side_channels"] = {**others, **side}
                row["type"] = row["type"] if row["type"] in WORLDS[name].own else f"{name}:{row['type']}"
                rows.append(json.dumps(row))
        atomic_write_text(out / f"{split}.jsonl", "\n".join(rows) + "\n")
