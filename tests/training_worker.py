"""Run by torchrun in two processes on gloo: PatchTrainer over two processes, replicated (DDP) or sharded (FSDP2)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from pave.patching import patch_parameters
from pave.training import last_checkpoint
from tiny_trainers import Items, build, patch_config

FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"]}}


def let_accelerate_shard_on_a_cpu() -> None:
    """accelerate shards on accelerators only and replicates on CPUs without a word; torch itself shards on CPUs too."""
    make = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        make(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def trainer(kind, folder, dropout=0.0, **more):
    extra = FSDP if kind == "fsdp2" else {}
    made = build(
        folder, config=patch_config(dropout=dropout), dataset=Items(16, missing=range(4, 8)), batch_size=2, steps=4,
        trainer={"train_sampling_strategy": "sequential", **extra}, **more,
    )  # fmt: skip
    wanted = {"ddp": DistributedType.MULTI_CPU, "fsdp2": DistributedType.FSDP}[kind]
    assert made.accelerator.num_processes == 2 and made.accelerator.distributed_type == wanted
    return made


def weights(made):
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in patch_parameters(made.model)]


def train(kind: str, folder: Path) -> None:
    """Losses and the saved patch are compared with one process's by the test."""
    made = trainer(kind, folder / "run", eval_dataset=Items(6), save_every=2, keep_checkpoints=None)
    made.train()
    assert all(isinstance(p, DTensor) == (kind == "fsdp2") for p in patch_parameters(made.model))
    held_out = made.evaluate()["eval_loss"]
    made.finish(folder / "patch", {})
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    if made.args.should_save:
        (folder / "losses.json").write_text(json.dumps([*losses, held_out]))


def resume(kind: str, folder: Path) -> None:
    """Every process goes on with its own random state."""
    whole = trainer(kind, folder / "whole", dropout=0.2, save_every=2, keep_checkpoints=None)
    whole.train()
    again = trainer(kind, folder / "again", dropout=0.2, save_every=2, keep_checkpoints=None)
    again.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-2"))
    assert again.state.global_step == 4
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    assert last_checkpoint(folder / "whole").name == "checkpoint-4"


def main(kind: str, folder: str, *scenes: str) -> None:
    if kind == "fsdp2":
        let_accelerate_shard_on_a_cpu()
    for scene in scenes:
        globals()[scene](kind, Path(folder))
        dist.barrier()
        print(f"process {dist.get_rank()}: {kind} {scene} done", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
