"""A patched model inside what people wrap around models: DDP, FSDP2, torch.compile, the default Trainer."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from cases import CASES, patched, shake, side_tokens, small_config
from pave import SideTokens, attach_patch, detach_patch
from pave.patching import patch_parameters

WORKER = Path(__file__).parents[1] / "distributed_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "missing", "dora"),
    [
        ("ddp", "llava_onevision", "", ""),
        ("ddp", "qwen2_5_vl", "1", "1"),
        ("fsdp2", "llava_onevision", "1", ""),
        ("fsdp2", "llava_onevision", "1", "1"),
        ("fsdp2", "qwen2_5_vl", "", ""),
    ],
)
def test_two_processes_have_the_gradients_of_one(kind, name, missing, dora):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WORKER), kind, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MISSING": missing, "DORA": dora, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert f"{kind} {name}:" in done.stdout and "gradients agree" in done.stdout


@pytest.mark.parametrize("name", CASES)
def test_compiled_it_computes_the_same(name):
    case = CASES[name]
    model, processor = patched(case)
    batch = case.batch(processor)
    side = side_tokens()
    valid = side.valid_BK.clone()
    valid[0] = False
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for given in ({"audio": side}, None, {"audio": SideTokens(side.embeds_BKMC, valid, side.times_BK)}):
            expected = model(**batch, side_channels=given).logits
            torch.testing.assert_close(compiled(**batch, side_channels=given).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("first", ["dispatch", "attach"])
def test_a_base_spread_by_accelerate_sees_the_side_channels(name, first, tmp_path):
    """accelerate hides the class's forward behind one on the instance; past it the side channels would be lost in silence."""
    accelerate = pytest.importorskip("accelerate")
    case = CASES[name]
    model, processor = patched(case)
    batch = case.batch(processor)
    given = {"side_channels": {"audio": side_tokens()}}
    spread, _ = case.build()
    with torch.no_grad():
        base, expected = spread(**{k: v for k, v in batch.items() if k != "frame_times"}).logits, model(**batch, **given).logits
        tokens = model.generate(**batch, **given, max_new_tokens=3, do_sample=False)
        for step in (first, "attach" if first == "dispatch" else "dispatch"):
            if step == "attach":
                shake(attach_patch(spread, small_config()))
            else:
                places = {**{n: "cpu" for n, _ in spread.named_children() if n != "lm_head"}, "lm_head": "disk"}
                accelerate.dispatch_model(spread, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
        assert "forward" in spread.__dict__
        assert torch.equal(spread(**batch, **given).logits, expected)
        assert not torch.allclose(expected, base, atol=1e-3)
        assert torch.equal(spread.generate(**batch, **given, max_new_tokens=3, do_sample=False), tokens)
        assert "side_channels" in inspect.signature(spread.forward).parameters  # what the Trainer looks at
        with spread.patch_disabled():
            assert torch.equal(spread(**batch, **given).logits, base)
        detach_patch(spread)
        batch.pop("frame_times")
        assert torch.equal(spread(**batch).logits, base)
        assert "side_channels" not in inspect.signature(spread.forward).parameters


def test_a_forward_bound_to_the_instance_is_refused():
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # of tests that were here before
    case = CASES["llava_onevision"]
    model, _ = case.build()
    prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    with pytest.raises(ValueError, match="was replaced on the instance .* before it is prepared"):
        attach_patch(prepared, small_config())
    assert all(p.requires_grad for p in model.parameters())
    model, _ = patched(case)
    accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    with pytest.raises(ValueError, match="was replaced on the instance"):
        detach_patch(model)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


class Rows(torch.utils.data.Dataset):
    """Items with a column that no model takes, which the default Trainer drops, and side channels, which must arrive."""

    def __init__(self, case, processor):
        batch = case.batch(processor)
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        grid = batch.get("video_grid_thw")
        pixels = batch.pop("pixel_values_videos")
        parts = pixels.unbind(0) if grid is None else pixels.split(grid.prod(-1).tolist())
        self.items = [
            {**{k: v[row] for k, v in batch.items()}, "pixel_values_videos": parts[row], "labels": labels[row]}
            | {"side_channels": {"audio": side_tokens().select([row])}, "comment": "dropped"}
            for row in range(2)
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def collate(items):
    join = torch.cat if items[0]["pixel_values_videos"].ndim == 2 else torch.stack
    sides = [item["side_channels"]["audio"] for item in items]
    joined = SideTokens(*(torch.cat([getattr(s, n) for s in sides]) for n in ("embeds_BKMC", "valid_BK", "times_BK")))
    rest = [k for k in items[0] if k not in ("pixel_values_videos", "side_channels")]
    return {
        **{k: torch.stack([item[k] for item in items]) for k in rest},
        "pixel_values_videos": join([item["pixel_values_videos"] for item in items]),
        "side_channels": {"audio": joined},
    }


@pytest.mark.parametrize("name", CASES)
def test_the_default_trainer_hands_over_the_side_channels(name, tmp_path):
    case = CASES[name]
    model, processor = patched(case, small_config(), trained=False)
    before = [p.clone() for p in patch_parameters(model)]
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    assert args.remove_unused_columns
    seen = []
    model.pave_patches["default"].fusions["audio"].register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    trainer = transformers.Trainer(model, args, train_dataset=Rows(case, processor), data_collator=collate)
    trainer.train()
    assert len(seen) == 3 and all(len(s) == 2 and s.present_B().all() for s in seen)
    moved = [not torch.equal(a, b) for a, b in zip(before, patch_parameters(model), strict=True)]
    assert all(moved)
