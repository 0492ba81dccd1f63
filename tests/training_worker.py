"""Run by torchrun in two processes on gloo: PatchTrainer over two processes, replicated (DDP) or sharded (FSDP2)."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from pave.data.items import SampleError
from pave.patching import patch_parameters
from pave.training import CheckpointError, NonFiniteError, last_checkpoint
from pave.training.together import OtherProcessError
from tiny_models import tiny_llava_onevision
from tiny_trainers import Items, build, patch_config, shared_videos, two_tasks

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
    """Step 1 gives the second process a batch in which no sample has its side channel."""
    extra = FSDP if kind == "fsdp2" else {}
    made = build(
        folder, config=patch_config(dropout=dropout), dataset=Items(16, missing=(2, 3)), batch_size=2, steps=4,
        trainer={"train_sampling_strategy": "sequential", **extra}, **more,
    )  # fmt: skip
    wanted = {"ddp": DistributedType.MULTI_CPU, "fsdp2": DistributedType.FSDP}[kind]
    assert made.accelerator.num_processes == 2 and made.accelerator.distributed_type == wanted
    return made


def weights(made):
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach().clone() for p in patch_parameters(made.model)]


def train(kind: str, folder: Path) -> None:
    """Losses and the saved patch are compared with one process's by the test."""
    made = trainer(kind, folder / "run", eval_dataset=Items(6), save_every=2, keep_checkpoints=None, log_every=3)
    mean = made.train().training_loss  # its last step comes after the last log entry
    assert all(isinstance(p, DTensor) == (kind == "fsdp2") for p in patch_parameters(made.model))
    held_out = made.evaluate()["eval_loss"]
    made.finish(folder / "patch", {})
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    if made.args.should_save:
        (folder / "losses.json").write_text(json.dumps([*losses, held_out, mean]))


def resume(kind: str, folder: Path) -> None:
    """Every process goes on with its own random state."""
    whole = trainer(kind, folder / "whole", dropout=0.2, save_every=2, keep_checkpoints=None)
    whole.train()
    again = trainer(kind, folder / "again", dropout=0.2, save_every=2, keep_checkpoints=None)
    again.train(resume_from_checkpoint=str(folder / "whole" / "checkpoint-2"))
    assert again.state.global_step == 4
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    assert last_checkpoint(folder / "whole").name == "checkpoint-4"


def tasks(kind: str, folder: Path) -> None:
    """Passes of one task over both processes, and channels taken away from some of their samples; then with LoRA frozen."""
    for name, train in (("tasks", None), ("frozen", ["fusion"])):
        made = build(folder / name, **two_tasks(train=train), batch_size=2, trainer=FSDP if kind == "fsdp2" else {})
        assert made.accelerator.num_processes == 2
        made.train()
        found = made.evaluate()
        made.finish(folder / f"{name}_patch", {})
        if made.args.should_save:
            (folder / f"{name}.json").write_text(json.dumps({key: found[key] for key in found if key.endswith("_loss")}))


def shared(kind: str, folder: Path) -> None:
    """Questions that share a video's row, in two forward passes a step; then once more from the middle."""
    made = build(
        folder / "shared", **shared_videos(), batch_size=4, accumulation=2, save_every=3, keep_checkpoints=None,
        trainer=FSDP if kind == "fsdp2" else {},
    )  # fmt: skip
    first = list(made._train_sampler)[:4]
    assert "branches" in made.data_collator([made.train_dataset[index] for index in first])
    made.train()
    made.finish(folder / "shared_patch", {})
    again = build(
        folder / "shared_again", **shared_videos(), batch_size=4, accumulation=2, trainer=FSDP if kind == "fsdp2" else {}
    )
    again.train(resume_from_checkpoint=str(folder / "shared" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(weights(made), weights(again), strict=True))
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    if made.args.should_save:
        (folder / "shared.json").write_text(json.dumps([*losses, made.evaluate()["eval_loss"]]))
    else:
        made.evaluate()


def half(kind: str, folder: Path) -> None:
    """A base in bfloat16 under a patch in float32."""

    def base_in_half():
        model, processor = tiny_llava_onevision()
        return model.bfloat16(), processor

    made = trainer(kind, folder / "half", family=base_in_half, save_every=4)
    made.train()
    assert {p.dtype for p in weights(made)} == {torch.float32}
    assert all(math.isfinite(entry["loss"]) for entry in made.state.log_history if "loss" in entry)
    assert last_checkpoint(folder / "half").name == "checkpoint-4"


def fails(made, kind_of_error, pattern, folder, step):
    """Training ends with this error in every process, none waits for another, and the earlier checkpoint is whole."""
    try:
        made.train()
    except kind_of_error as error:
        assert re.search(pattern, str(error)), str(error)
    else:
        raise AssertionError("it went on")
    assert last_checkpoint(folder).name == f"checkpoint-{step}"


def nan_loss(kind: str, folder: Path) -> None:
    """One process meets a NaN in the first of two forward passes of step 2; its gradient is finite."""
    made = trainer(kind, folder / "nan", accumulation=2, save_every=1)
    compute, calls, good = made.compute_loss, [], []

    def compute_loss(*args, **kwargs):
        calls.append(1)
        poisoned = len(calls) == 3 and dist.get_rank() == 1
        if poisoned:
            good.extend(weights_here(made))
        loss = compute(*args, **kwargs)
        if poisoned:
            made._guard._losses[-1] = (torch.tensor(float("nan")), made._guard._losses[-1][1])
        return loss

    made.compute_loss = compute_loss
    fails(
        made, NonFiniteError, r"step 2: process 1: the loss is nan for the samples sample-\d+, sample-\d+;", folder / "nan", 1
    )
    assert all(torch.equal(a, b) for a, b in zip(good, weights_here(made), strict=False))


def nan_gradient(kind: str, folder: Path) -> None:
    """A gradient of one process is infinite while every loss is finite: all see it after the exchange."""
    made = trainer(kind, folder / "gradient", save_every=1)
    hook = lambda grad: grad * (float("inf") if made.state.global_step == 1 and dist.get_rank() == 1 else 1.0)  # noqa: E731
    head = made.model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: output.register_hook(hook) and None)
    pattern = r"step 2: process 0: a gradient is not finite, samples sample-\d+, sample-\d+; process 1: a gradient"
    fails(made, NonFiniteError, pattern, folder / "gradient", 1)


def nan_feature(kind: str, folder: Path) -> None:
    """The sample that the second process reads for step 3 is broken."""
    made = trainer(kind, folder / "feature", save_every=1)
    made.train_dataset.items[10].side["audio"].features_KMC[2, 0, 1] = float("nan")
    own = dist.get_rank() == 1
    error, pattern = (SampleError, "") if own else (OtherProcessError, r"the run stops because of process 1: SampleError: ")
    pattern += (
        r"sample 'sample-10': the features of side channel 'audio' hold NaN or infinity in 1 of 6 steps, the first is step 2"
    )
    fails(made, error, pattern, folder / "feature", 1)


def full_disk(kind: str, folder: Path) -> None:
    """The second process cannot write its part of the second checkpoint."""
    made = trainer(kind, folder / "full", save_every=1)
    save = made._save_checkpoint

    def save_checkpoint(*args):
        if made.state.global_step == 2 and dist.get_rank() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        save(*args)

    made._save_checkpoint = save_checkpoint
    pattern = r"checkpoint-2: the checkpoint could not be written \(process 1: .*\); .*checkpoint-1 is whole"
    fails(made, CheckpointError, pattern, folder / "full", 1)
    dist.barrier()  # the first process has cleaned up
    assert [path.name for path in (folder / "full").iterdir()] == ["checkpoint-1"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def refused(kind: str, folder: Path) -> None:
    """Sharding that accelerate would leave out without a word."""
    try:
        build(folder / "refused", trainer=FSDP)
    except ValueError as error:
        assert "fsdp was asked for, but accelerate runs 2 process(es) on cpu as MULTI_CPU: it shards over" in str(error)
    else:
        raise AssertionError("it was accepted")


def weights_here(made):
    return [p.to_local().clone() if isinstance(p, DTensor) else p.detach().clone() for p in patch_parameters(made.model)]


def main(kind: str, folder: str, *scenes: str) -> None:
    if kind == "fsdp2":
        let_accelerate_shard_on_a_cpu()
    for scene in scenes:
        globals()[scene](kind, Path(folder))
        dist.barrier()
        print(f"process {dist.get_rank()}: {kind} {scene} done", flush=True)
    dist.barrier()
    os._exit(0)  # gloo's threads may outlive the interpreter and abort it ("terminate called without an active exception")


if __name__ == "__main__":
    main(*sys.argv[1:])
