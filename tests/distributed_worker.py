"""Run by torchrun in two processes on gloo: gradients of a wrapped patched model, against one process on the whole batch."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from cases import CASES, patched, side_tokens, small_config
from pave import SideTokens
from pave.patching import patch_parameters


def run(model, batch, side):
    labels = batch["input_ids"].clone()
    labels[labels == batch["video_id"]] = -100
    given = {k: v for k, v in batch.items() if k != "video_id"}
    return model(**given, labels=labels, side_channels={"audio": side}).loss


def rows(case, processor, model, row):
    """One row of the batch; the two prompts are equally long, so the mean of both losses is the loss of the batch."""
    batch = case.batch(processor, ("what sound?", "what sound?"))
    if row is not None:
        grid = batch.get("video_grid_thw")
        if grid is not None:
            parts = batch.pop("pixel_values_videos").split(grid.prod(-1).tolist())
            batch = {k: v[row : row + 1] for k, v in batch.items()} | {"pixel_values_videos": parts[row]}
        else:
            batch = {k: v[row : row + 1] for k, v in batch.items()}
    return {**batch, "video_id": model.config.video_token_id}


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main(kind: str, name: str) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    assert world == 2
    case = type(CASES[name])(CASES[name].build, (4, 4))
    side = side_tokens()
    if os.environ.get("MISSING"):  # the second process's batch has no side channel at all
        valid = side.valid_BK.clone()
        valid[1] = False
        side = SideTokens(side.embeds_BKMC, valid, side.times_BK)

    config = small_config()
    if os.environ.get("DORA"):
        config = replace(config, lora=replace(config.lora, use_dora=True))
    reference, processor = patched(case, config)
    run(reference, rows(case, processor, reference, None), side).backward()
    expected = [p.grad for p in patch_parameters(reference)]

    model, _ = patched(case, config)
    if kind == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (world,))
        for layer in model.get_decoder().layers:
            fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    run(wrapped, rows(case, processor, model, rank), side.select([rank])).backward()
    for want, parameter in zip(expected, patch_parameters(model), strict=True):
        torch.testing.assert_close(full(parameter.grad), want, atol=2e-5, rtol=1e-3)
    assert any(float(w.abs().max()) > 1e-4 for w in expected)
    dist.barrier()
    if rank == 0:
        print(f"{kind} {name}: {len(expected)} gradients agree", flush=True)
    os._exit(0)  # gloo's threads may outlive the interpreter and abort it ("terminate called without an active exception")


if __name__ == "__main__":
    main(*sys.argv[1:])
