"""``pave extract``: fill a feature store, or clean it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pave.cli.shared import (
    FAILED,
    MOST_PROCESSES,
    BaseOption,
    DtypeOption,
    EncodersOption,
    JsonOption,
    PatchOption,
    Result,
    rank_of_process,
    storage_dtype,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pave.data.samples import Sample
    from pave.data.store import CollectReport, ExtractReport, FeatureStore
    from pave.data.vision import Encoder, StorageDtype

    Job = tuple[Sequence[Sample], dict[str, Encoder], Path]
    """Samples, encoders by channel, and the store."""


def command(
    sources: list[Path] = typer.Argument(..., help="Recipes (.yaml), or files of samples (.jsonl) together with --patch."),
    store: Path | None = typer.Option(None, "--store", help="The feature store, a folder. Default: data.store of the recipe."),
    patch: str | None = PatchOption,
    own: list[str] | None = EncodersOption,
    root: Path | None = typer.Option(
        None, "--root", help="Folder that paths in .jsonl files start from. Default: each file's own."
    ),
    vision: str | None = typer.Option(
        None,
        "--vision",
        help="Also the base's frozen vision features, kept exact, or rounded to bfloat16 or float16. Default: as a recipe says.",
    ),
    base: str | None = BaseOption,
    frames: int | None = typer.Option(
        None, "--frames", min=1, help="For .jsonl files with --vision: frames of a video, as for pave eval."
    ),
    dtype: str = DtypeOption,
    processes: int = typer.Option(1, "--processes", min=1, max=MOST_PROCESSES, help="Child processes that decode and encode."),
    timeout: float = typer.Option(300.0, "--timeout", min=0.1, help="Seconds that one file may take."),
    batch_size: int = typer.Option(
        1, "--batch-size", min=1, help="Streams encoded together. More than 1 may change features within rounding."
    ),
    device: str = typer.Option(
        "auto", "--device", help="auto (all CUDA devices in turn, else the CPU), cpu, cuda, cuda:1, ..."
    ),
    ray: bool = typer.Option(False, "--ray", help="Let Ray Data run the processes, here or on a cluster (extra: ray)."),
    gc: bool = typer.Option(
        False, "--gc", help="Extract nothing: list and remove what these samples do not need, pack the rest."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="With --gc: list only."),
    json_output: bool = JsonOption,
) -> Result:
    """\b
    pave extract recipe.yaml --processes 4
    pave extract test.jsonl --patch my-patch --store features

    Run the frozen side encoders, and where asked for the base's vision tower, once over all samples and keep what they give, by content: nothing is made twice, and a changed
    file, setting or set of weights is made anew. An interrupted run goes on when it is started again. Files that cannot be read
    are listed, and the exit code is 1. Under torchrun every rank takes its share: rank 0 prints what it made on standard output, the
    others on standard error.
    """
    from pave.cli.models import hide_loading_bars
    from pave.data.store import FeatureStore, Plan, collect, extract, plan_features

    if dry_run and not gc:
        raise ValueError("--dry-run goes with --gc")
    hide_loading_bars()
    storage, own = storage_dtype(vision), own or []
    if (base is not None or frames is not None) and any(source.suffix in (".yaml", ".yml") for source in sources):
        raise ValueError("--base and --frames are for .jsonl files with --vision; a recipe names its own base and frames")
    jobs = [
        _recipe_job(source, store, storage, own)
        if source.suffix in (".yaml", ".yml")
        else _samples_job(source, store, patch, root, base, frames, dtype, storage, own)
        for source in sources
    ]
    folders = {str(folder) for _, _, folder in jobs}
    if len(folders) > 1:
        raise ValueError(f"the recipes name different feature stores ({', '.join(sorted(folders))}); give --store")
    opened = FeatureStore(folders.pop(), create=not gc)
    hashes, plan = opened.hashes(), Plan()
    for samples, encoders, _ in jobs:
        plan_features(samples, encoders, hashes, plan)
    if gc:
        _list(collect(opened, plan, remove=False), dry_run)
        found = collect(opened, plan, remove=not dry_run)
        return Result(_collected(found, dry_run), {"store": str(opened.folder), **found.to_dict()})
    rank, world_size = rank_of_process()
    report = extract(
        plan,
        opened,
        processes=processes,
        devices=_devices(device),
        timeout=timeout,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        ray=ray,
    )
    sizes = [vars(size) for size in opened.sizes()]
    data = {"store": str(opened.folder), "rank": rank, "world_size": world_size, **report.to_dict(), "sizes": sizes}
    return Result(_text(report, opened, rank, world_size), data, exit_code=FAILED if report.failures else 0)


def _recipe_job(source: Path, store: Path | None, storage: StorageDtype | None, own: Sequence[str] = ()) -> Job:
    """What a recipe reads from its store."""
    from pave.data.store import VISION
    from pave.side_channels import build_encoder
    from pave.training.recipe import read_recipe
    from pave.training.run import base_of, base_vision
    from pave.training.tasks import read_task

    recipe = read_recipe(source)
    data, folder = recipe.data, source.parent
    if store is None and data.store is None:
        raise ValueError(f"{source}: the recipe has no data.store; set it, or give --store")
    channels = list(recipe.patch.side_channels)
    files = [
        (name, file, task) for name, task in data.all_tasks().items() for file in (task.train, task.eval) if file is not None
    ]
    samples = [sample for name, file, task in files for sample in read_task(name, file, task, folder, channels)]
    own = [*recipe.own_encoders(folder), *own]
    encoders: dict[str, Encoder] = {name: build_encoder(c.encoder, own) for name, c in recipe.patch.side_channels.items()}
    if storage is not None or data.vision == "store":
        encoders[VISION] = base_vision(recipe, base_of(recipe, folder), storage)
    if not encoders:
        raise ValueError(f"{source}: there is no side channel and data.vision is not 'store', so there is nothing to extract")
    return samples, encoders, store or folder / str(data.store)


def _samples_job(
    source: Path,
    store: Path | None,
    patch: str | None,
    root: Path | None,
    base: str | None,
    frames: int | None,
    dtype: str,
    storage: StorageDtype | None,
    own: Sequence[str],
) -> Job:
    """What ``pave eval`` reads from a store for a file of samples."""
    from pave.data.media import FrameSampling
    from pave.data.samples import read_samples
    from pave.data.store import VISION
    from pave.data.vision import BaseVision
    from pave.evaluation.inference import default_sampling, trained_sampling
    from pave.patching import read_record, resolve_patch
    from pave.side_channels import build_encoder
    from pave.utils.embedded import PLAYGROUND
    from pave.video_llms.loading import load_processor

    if store is None or (patch is None and storage is None):
        raise ValueError(
            f"{source}: a file of samples needs --patch, whose encoders are run, and --store; or --vision and --store"
        )
    record = None if patch is None else read_record(resolve_patch(patch))
    channels = {} if record is None else record.patch.side_channels
    encoders: dict[str, Encoder] = {name: build_encoder(channel.encoder, own) for name, channel in channels.items()}
    if storage is not None:
        where = PLAYGROUND if base is None else base
        sampling = FrameSampling(num_frames=frames) if frames else None
        if sampling is None and record is not None:
            sampling = trained_sampling(record.provenance)
        sampling = sampling or default_sampling(load_processor(where)[1])
        features = record is not None and record.patch.reads_pre_projector
        encoders[VISION] = BaseVision(where, sampling, dtype=dtype, storage=storage, pre_projector=features)
    if not encoders:
        raise ValueError(f"{source}: there is no side channel and no --vision, so there is nothing to extract")
    return read_samples(source, data_root=root), encoders, store


def _devices(device: str) -> list[str]:
    import torch

    if device not in ("auto", "cuda"):
        return [device]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not count:
        raise ValueError("device 'cuda' cannot be used: there is no CUDA device")
    if not count:
        return ["cpu"]
    local = os.environ.get("LOCAL_RANK")
    return [f"cuda:{i}" for i in range(count)] if local is None else [f"cuda:{int(local) % count}"]


def _text(report: ExtractReport, store: FeatureStore, rank: int, world_size: int) -> str:
    of_rank = f" (rank {rank} of {world_size}; the others make {report.foreign})" if world_size > 1 else ""
    without = f", {report.without_channel} of them without the channel" if report.without_channel else ""
    lines = [
        f"{report.wanted} features wanted, {report.present} were there, {report.extracted} made{without}{of_rank}",
        f"{report.seconds:.1f} s, {report.per_second:.2f} a second; {100 * report.decode_share:.0f} % of the work was decoding",
    ]
    for size in store.sizes():
        lines.append(f"{size.name} {size.id}: {size.entries} entries in {size.shards} shards, {size.num_bytes / 1e6:.1f} MB")
    if report.failures:
        lines.append(f"{len(report.failures)} files failed:")
        lines += [f"  {f.channel} of {len(f.samples)} samples: {f.message}" for f in report.failures]
    return "\n".join(lines)


def _list(report: CollectReport, dry_run: bool) -> None:
    for encoder, entry in report.removed:
        print(f"{'would remove' if dry_run else 'removing'} {encoder}/{entry.key} of {entry.file}", file=sys.stderr)


def _collected(report: CollectReport, dry_run: bool) -> str:
    lines = [f"{len(report.removed)} entries {'would go' if dry_run else 'removed'}, {report.kept} kept"]
    if report.shards_after is not None and report.bytes_after is not None:
        lines.append(
            f"{report.shards_before} shards of {report.bytes_before / 1e6:.1f} MB became {report.shards_after} of "
            f"{report.bytes_after / 1e6:.1f} MB"
        )
    return "\n".join(lines)
