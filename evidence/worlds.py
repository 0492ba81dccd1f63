"""The worlds of the playground as training problems: one for each channel, with its recipe, clips and questions."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from pave.config import EncoderConfig, PatchConfig
from pave.demo.plan import CHANCE, MIXTURE, SILENT, SOUND
from pave.playground.clips import render_clips, write_samples
from pave.playground.further import render_further, write_further_samples
from pave.playground.world import Split
from pave.side_channels import build_encoder
from pave.training.recipe import Recipe, read_recipe
from pave.utils.files import atomic_write_text
from pave.utils.processes import side_by_side

logger = logging.getLogger(f"pave.{__name__}")

RECIPES = Path(__file__).parents[1] / "recipes"
SILENT_WEIGHTS = {kind: MIXTURE[kind] for kind in SILENT}
_SILENT_TRAIN = [["colour|shape"], ["first_mover"], ["light"], ["light_vision"]]
_COMPLETE = "complete"
"""An empty file in the folder of a world that is all there."""


@dataclass(frozen=True)
class ChannelWorld:
    """One side channel and the questions that need it; patch, steps and shares of questions are those of its recipe."""

    name: str
    source: str
    """The world of ``pave.playground``: "sound", or one of ``pave.playground.further``."""
    chance: Mapping[str, float]
    """By question type that needs the channel, the accuracy of guessing among the answers that the frames leave
    open."""
    aligned: str | None
    """The type that needs a frame and the channel at the same moment."""

    @cached_property
    def recipe(self) -> Recipe:
        """``recipes/playground_NAME.yaml``."""
        return read_recipe(RECIPES / f"playground_{self.name}.yaml")

    @property
    def own(self) -> tuple[str, ...]:
        """The question types that need the channel."""
        return tuple(self.chance)

    @property
    def weights(self) -> dict[str, float]:
        """Shares in training of the question types that need the channel; the silent types have ``SILENT_WEIGHTS``."""
        (stage,) = self.recipe.data.stages
        return {kind: stage.weights[kind] for kind in self.own}

    @property
    def steps(self) -> int:
        """Optimizer steps of the patch."""
        (stage,) = self.recipe.data.stages
        assert stage.steps is not None
        return stage.steps

    @property
    def channel(self) -> str:
        """Its name in samples and patches."""
        (name,) = self.recipe.patch.side_channels
        return name

    def patch(self, encoder: EncoderConfig | None = None, **fusion: object) -> PatchConfig:
        """The recipe's patch, with another encoder and changes to the settings of its fusion."""
        patch = self.recipe.patch
        channel = patch.side_channels[self.channel]
        encoder = encoder or channel.encoder
        changed = replace(
            channel,
            encoder=encoder,
            width=build_encoder(encoder).width,
            fusion=replace(channel.fusion, **fusion),  # type: ignore[arg-type]
        )
        return replace(patch, side_channels={self.channel: changed})


WORLDS = {
    world.name: world
    for world in (
        ChannelWorld("audio", "sound", {kind: CHANCE[kind] for kind in SOUND}, aligned="sound_vision"),
        ChannelWorld("sensor", "sensor", {"sensor": 1 / 2, "sensor_vision": 1 / 2}, aligned="sensor_vision"),
        ChannelWorld("scene3d", "space", {"nearer": 1 / 2}, aligned=None),
        ChannelWorld(
            "multiview",
            "camera",
            {"hidden_colour": 1 / 4, "hidden_shape": 1 / 3, "hidden_vision": 1 / 2},
            aligned="hidden_vision",
        ),
        ChannelWorld(
            "high_fps",
            "flicker",
            {"flicker": 1 / 4, "flicker_count": 1 / 3, "flicker_vision": 1 / 2},
            aligned="flicker_vision",
        ),
    )
}


def data_folder(world: str, root: Path, train: int, test: int) -> Path:
    """Where the samples of one world, or of several joined by "+", are."""
    return root / "data" / f"{world.replace('+', '_')}-{train}-{test}"


def make_worlds(worlds: Iterable[str], root: Path, train: int, test: int, processes: int) -> dict[str, Path]:
    """The folders with the samples of worlds; what is missing is rendered side by side.

    Args:
        worlds: names, several worlds in one joined by "+".
        root: folder of the reproduction.
        train, test: clips.
        processes: how many at most.

    Raises:
        ValueError: if a world is there, but would be made otherwise now.
        RuntimeError: naming the world that failed.
    """
    folders = {world: data_folder(world, root, train, test) for world in worlds}
    single = {name: data_folder(name, root, train, test) for world in folders for name in world.split("+")}
    missing = {name: folder for name, folder in single.items() if not (folder / _COMPLETE).exists()}
    for name in single.keys() - missing.keys():
        check_world(name, single[name], train, test)
    if missing:
        logger.info("rendering %d clips of each world: %s", train + test, ", ".join(missing))
        pieces = [(f"world {name}", (name, folder, train, test)) for name, folder in missing.items()]
        for _ in side_by_side(write_world, pieces, processes):
            pass
    for world in folders.keys() - single.keys():
        merge_worlds(world.split("+"), single, folders[world])
    return folders


def write_world(name: str, folder: Path, train: int, test: int, seed: int = 0) -> None:
    """Render a world and write ``train.jsonl`` and ``test.jsonl``. What is there under the same manifest is kept.

    Args:
        name: key of ``WORLDS``.
        folder: made where missing.
        train, test: clips.
        seed: of the world.
    """
    _render(WORLDS[name], folder, {"train": train, "test": test}, seed)
    _write_questions(WORLDS[name], folder, {"train": train, "test": test}, seed)
    (folder / _COMPLETE).touch()


def _render(world: ChannelWorld, folder: Path, clips: Mapping[Split, int], seed: int) -> None:
    for split, count in clips.items():
        if world.source != "sound":
            render_further(folder, world.source, split, count, seed=seed)
            continue
        for _ in render_clips(folder, split, count, seed=seed, processes=0):
            pass


def _write_questions(world: ChannelWorld, folder: Path, clips: Mapping[Split, int], seed: int) -> None:
    for split, count in clips.items():
        asked = [[kind] for kind in world.own] + (_SILENT_TRAIN if split == "train" else [[kind] for kind in SILENT])
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
    with TemporaryDirectory() as temporary:
        new = Path(temporary)
        _render(WORLDS[name], new, {"train": 0, "test": 0}, seed)  # the manifests alone
        _write_questions(WORLDS[name], new, {"train": train, "test": test}, seed)
        for file in ("manifest-train.json", "manifest-test.json", "train.jsonl", "test.jsonl"):
            if not (folder / file).is_file() or (folder / file).read_bytes() != (new / file).read_bytes():
                raise ValueError(
                    f"{folder / file} is not what this version of pave writes, so runs made before and now would have "
                    "other questions; choose another --out, or remove the folder and its runs"
                )


def merge_worlds(names: list[str], folders: Mapping[str, Path], out: Path) -> None:
    """One ``train.jsonl`` and one ``test.jsonl`` over several worlds, a sample with its own world's channel only.

    Ids get the world's name in front. Channels of the other worlds are set to null, as those that are read from the
    video itself (sound, dense frames) would be found in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows: list[str] = []
        for name in names:
            absent = {WORLDS[other].channel: None for other in names if other != name}
            for line in (folders[name] / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                given = {key: _absolute(folders[name], value) for key, value in row.get("side_channels", {}).items()}
                kind = row["type"] if row["type"] in WORLDS[name].own else f"{name}:{row['type']}"
                changes = {
                    "id": f"{name}-{row['id']}",
                    "video": _absolute(folders[name], row["video"]),
                    "side_channels": {**absent, **given},
                    "type": kind,
                }
                rows.append(json.dumps({**row, **changes}))
        atomic_write_text(out / f"{split}.jsonl", "\n".join(rows) + "\n")


def _absolute(folder: Path, file: str | None) -> str | None:
    return None if file is None else str((folder / file).resolve())
