"""PatchTrainer on real tiny bases: what it optimises, what it saves, and that a resumed run is the uninterrupted one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pave.patching import attach_patch, load_patch, patch_parameter_groups, patch_parameters
from pave.tokens import QuestionTokens
from pave.training.arguments import TrainingConfig
from pave.training.callbacks import NonFiniteError
from pave.training.checkpoints import last_checkpoint
from pave.training.groups import parameter_groups
from pave.training.sampler import Stage
from pave.training.trainer import PatchTrainer
from tiny_models import tiny_llava_onevision, tiny_qwen2_5_vl
from tiny_trainers import Items, base, build, patch_config, weights


def test_groups_are_complete_disjoint_and_at_their_own_rates():
    model, _ = tiny_llava_onevision()
    attach_patch(model, patch_config(gate=True))
    args = TrainingConfig(
        learning_rate=1e-3, output_norm_multiplier=20, lora_learning_rate=2e-4, gate_learning_rate=5e-5, weight_decay=0.1
    ).arguments("unused", 10)
    groups = parameter_groups(model, args)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}
    assert {(g["role"], g["lr"]) for g in groups} == {("fusion", 1e-3), ("output_norm", 2e-2), ("lora", 2e-4), ("gate", 5e-5)}
    for group in groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}
    norm = {id(p) for p in patch_parameter_groups(model)["output_norm"]}
    assert {id(p) for g in groups if g["role"] == "output_norm" for p in g["params"]} == norm


def test_multiplier_one_is_one_rate_for_all_of_the_fusion():
    rates = TrainingConfig(learning_rate=3e-4, output_norm_multiplier=1).arguments("unused", 1).role_learning_rates()
    assert set(rates.values()) == {3e-4}


@pytest.mark.parametrize("family", [tiny_llava_onevision, tiny_qwen2_5_vl])
def test_training_learns_and_leaves_the_base_alone(tmp_path, family):
    trainer = build(tmp_path, family, steps=40, learning_rate=2e-2)
    model = trainer.model
    trainable = {id(p) for p in patch_parameters(model)}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if id(p) not in trainable}
    config = model.config.to_json_string()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    after = dict(model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(after[name].grad is None for name in before)
    assert model.config.to_json_string() == config


def test_side_channel_reaches_the_model_through_the_trainer(tmp_path):
    trainer = build(tmp_path, steps=80)
    trainer.train()
    model = trainer.model.eval()
    items = [item for item in Items().items if item.side["audio"] is not None]
    batch = trainer.data_collator(items)
    ids = batch.pop("sample_ids")
    assert ids == [item.id for item in items]

    def loss(**changes):
        with torch.no_grad():
            return model(**{**batch, **changes}).loss.item()

    swapped = batch["side_channels"]["audio"].select([*range(1, len(items)), 0])
    assert loss() < 0.5 * loss(side_channels={"audio": swapped})


@pytest.mark.parametrize("kind", ["concat", "interleave"])
@pytest.mark.parametrize("family", [tiny_llava_onevision, tiny_qwen2_5_vl])
def test_patches_that_lengthen_the_prompt_train_too(tmp_path, family, kind):
    trainer = build(tmp_path, family, config=patch_config(kind=kind), steps=10)
    before = weights(trainer.model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(trainer.model), strict=True))


def test_gated_patch_does_not_read_the_answer(tmp_path):
    """The gate reads the question up to the first label; the loss on answers only must not hide the labels from it."""
    trainer = build(tmp_path, config=patch_config(gate=True), steps=1)
    model = trainer.model
    batch = trainer.data_collator(Items(2).items)
    del batch["sample_ids"]
    seen = []
    gate = next(m for name, m in model.named_modules() if name.endswith("gate"))
    gate.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    trainer.compute_loss(model, batch)
    (args, kwargs), prompt = seen[0], (batch["labels"] == -100).cumprod(dim=1).bool() & batch["attention_mask"].bool()
    question = next(x for x in (*args, *kwargs.values()) if isinstance(x, QuestionTokens))
    assert torch.equal(question.valid_BL, prompt & (batch["input_ids"] != model.config.video_token_id))


@pytest.mark.parametrize("family", [tiny_llava_onevision, tiny_qwen2_5_vl])
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, family):
    stages = [Stage(steps=3, weights={"loud": 1}), Stage(steps=4, weights={"loud": 1, "quiet": 2})]
    common = {"family": family, "config": patch_config(dropout=0.2), "steps": 7, "stages": stages, "save_every": 2}
    common |= {"batch_size": 2, "accumulation": 2, "keep_checkpoints": None}
    whole = build(tmp_path / "whole", **common)
    whole.train()
    resumed = build(tmp_path / "resumed", **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.state.global_step == 7
    assert all(torch.equal(a, b) for a, b in zip(weights(whole.model), weights(resumed.model), strict=True))
    other_seed = build(tmp_path / "other", **common, seed=1)
    other_seed.train()
    assert not all(torch.equal(a, b) for a, b in zip(weights(whole.model), weights(other_seed.model), strict=True))


def test_default_order_of_samples_resumes_too(tmp_path):
    common = {"steps": 7, "save_every": 3, "keep_checkpoints": None, "config": patch_config(dropout=0.1)}  # 4 steps are a pass
    whole = build(tmp_path / "whole", **common)
    whole.train()
    resumed = build(tmp_path / "resumed", **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole.model), weights(resumed.model), strict=True))


def test_accumulation_equals_the_larger_batch(tmp_path):
    """Batches hold answers of different lengths, so a mean of means would differ."""
    stages = [Stage(steps=4, weights={"loud": 3, "quiet": 1})]
    large = build(tmp_path / "large", steps=4, stages=stages, batch_size=8, accumulation=1)
    small = build(tmp_path / "small", steps=4, stages=stages, batch_size=2, accumulation=4)
    large.train(), small.train()
    for a, b in zip(weights(large.model), weights(small.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
    losses = [[x["loss"] for x in t.state.log_history if "loss" in x] for t in (large, small)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_decoding_in_worker_processes_changes_nothing(tmp_path):
    plain = build(tmp_path / "plain", steps=3)
    workers = build(tmp_path / "workers", steps=3, workers=2)
    plain.train(), workers.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(plain.model), weights(workers.model), strict=True))


@pytest.mark.parametrize("family", [tiny_llava_onevision, tiny_qwen2_5_vl])
def test_activation_checkpointing_changes_nothing(tmp_path, family):
    plain = build(tmp_path / "plain", family, steps=3)
    recomputed = build(tmp_path / "recomputed", family, steps=3, activation_checkpointing=True)
    plain.train(), recomputed.train()
    for a, b in zip(weights(plain.model), weights(recomputed.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_checkpoint_is_a_patch_without_the_base(tmp_path):
    trainer = build(tmp_path, steps=2, save_every=2)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    names = {path.name for path in checkpoint.rglob("*")}
    assert {
        "patch_config.json",
        "patch.safetensors",
        "adapter_model.safetensors",
        "optimizer.pt",
        "trainer_state.json",
    } <= names
    assert not names & {"model.safetensors", "pytorch_model.bin", "training_args.bin"}
    assert json.loads((checkpoint / "patch_config.json").read_text())["provenance"]["step"] == 2
    model, _ = base()
    load_patch(model, checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer.model), weights(model), strict=True))


@pytest.mark.parametrize("kind", ["cross_attention", "concat"])
def test_evaluation_loss_is_the_mean_over_all_answer_tokens_however_they_are_batched(tmp_path, kind):
    held_out = Items(6)
    trainers = [build(tmp_path, config=patch_config(kind=kind), eval_dataset=held_out, batch_size=size) for size in (1, 4, 6)]
    for trainer in trainers:
        with torch.no_grad():
            for parameter in patch_parameters(trainer.model):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    model, collator = trainers[0].model.eval(), trainers[0].data_collator
    losses, counts = [], []
    for item in held_out.items:
        batch = collator([item])
        batch.pop("sample_ids")
        with torch.no_grad():
            losses.append(model(**batch).loss.item())
        counts.append(int((batch["labels"] != -100).sum()))
    assert len(set(counts)) > 1
    for trainer in trainers:
        for _ in range(2):
            assert trainer.evaluate()["eval_loss"] == pytest.approx(np.average(losses, weights=counts), rel=1e-4)


def test_the_best_patch_comes_back(tmp_path):
    trainer = build(
        tmp_path,
        steps=40,
        eval_dataset=Items(6, swapped=True),  # the better the training samples are learnt, the worse
        eval_every=10,
        save_every=10,
        learning_rate=3e-2,
        keep_checkpoints=None,
        trainer={"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"},
    )
    trainer.train()
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(losses, key=losses.get)
    assert best != max(losses), losses
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-5)


def test_unfinished_checkpoint_is_passed_over(tmp_path):
    trainer = build(tmp_path, steps=4, save_every=2)
    trainer.train()
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:50])
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    state.unlink()
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_resuming_with_another_patch_is_refused(tmp_path):
    build(tmp_path / "a", steps=2, save_every=2).train()
    other = build(tmp_path / "b", steps=4, config=patch_config(targets=("k_proj",)))
    with pytest.raises(ValueError, match=r"lora\.targets"):
        other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))


def test_nan_loss_stops_and_names_the_samples(tmp_path):
    trainer = build(tmp_path, steps=4, save_every=1)
    good = weights(trainer.model)
    with torch.no_grad():
        trainer.model.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"loss is nan for the samples sample-\d+, sample-\d+, sample-\d+, sample-\d+"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(good, weights(trainer.model), strict=True))
    assert last_checkpoint(tmp_path) is None


def test_infinite_gradient_stops_before_the_step(tmp_path):
    trainer = build(tmp_path, steps=4)
    good = weights(trainer.model)
    patch_parameters(trainer.model)[0].register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteError, match=r"step 1: a gradient is not finite, samples sample-"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(good, weights(trainer.model), strict=True))


def test_model_without_a_patch_is_refused(tmp_path):
    model, _ = tiny_llava_onevision()
    with pytest.raises(ValueError, match="carries no patch"):
        PatchTrainer(model, TrainingConfig().arguments(str(tmp_path), 1), data_collator=None)


def test_save_model_writes_a_patch_beside_the_checkpoints_and_never_over_them(tmp_path):
    trainer = build(tmp_path / "run", steps=2, save_every=1, keep_checkpoints=None)
    trainer.train()
    trainer.save_model()
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-1", "checkpoint-2", "patch"}
    for folder in (tmp_path / "run" / "patch", tmp_path / "elsewhere"):
        model, _ = base()
        load_patch(model, folder)
        assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(trainer.model), strict=True))
    with pytest.raises(ValueError, match=r"run: saving a patch replaces the folder, which holds checkpoint-1 and 2 more; name"):
        trainer.save_model(str(tmp_path / "run"))
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"


class Hub:
    """Keeps what is uploaded in folders: the hub cannot be reached from a test."""

    root: Path

    def create_repo(self, repo_id, **_):
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, repo_id, folder_path, path_in_repo="", commit_message, **_):
        shutil.copytree(folder_path, self.root / repo_id / path_in_repo, dirs_exist_ok=True)
        with (self.root / "messages.txt").open("a") as file:
            file.write(f"{commit_message}\n")
        return SimpleNamespace(done=lambda: True, is_done=lambda: True, result=lambda: None)


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint"])
def test_what_is_pushed_is_a_repository_that_load_patch_reads(tmp_path, monkeypatch, strategy):
    import huggingface_hub

    monkeypatch.setattr(Hub, "root", tmp_path / "hub", raising=False)
    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr("transformers.trainer.hf_api", Hub)
    further = {"push_to_hub": True, "hub_model_id": "me/my-patch", "hub_strategy": strategy, "hub_always_push": True}
    trainer = build(tmp_path / "run", steps=2, save_every=1, trainer=further)
    trainer.train()
    repository = tmp_path / "hub" / "me" / "my-patch"
    assert repository.exists() == (strategy != "end")
    trainer.push_to_hub()
    names = {path.name for path in repository.iterdir()}
    checkpoint = {"last-checkpoint"} if strategy == "checkpoint" else set()
    assert names == {"README.md", "lora", "patch.safetensors", "patch_config.json"} | checkpoint
    model, _ = base()
    load_patch(model, repository)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(trainer.model), strict=True))
    messages = (tmp_path / "hub" / "messages.txt").read_text().splitlines()
    steps = [f"Training in progress, step {step}" for step in (1, 2)]
    pushed = {"end": [], "every_save": steps, "checkpoint": [text + end for text in steps for end in ("", ", checkpoint")]}
    assert messages == [*pushed[strategy], "End of training"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-1", "checkpoint-2", "patch"}
    with pytest.raises(ValueError, match="a patch is uploaded with its own card; tags would not be in it"):
        trainer.push_to_hub(tags=["x"])


def test_the_newest_checkpoint_outlives_a_run_that_keeps_one_and_the_best(tmp_path):
    """transformers would delete it at the end of training."""
    further = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = build(
        tmp_path, steps=4, save_every=1, eval_every=1, keep_checkpoints=1, eval_dataset=Items(6, swapped=True), trainer=further
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint).name
    assert best != "checkpoint-4" and {path.name for path in tmp_path.iterdir()} == {best, "checkpoint-4"}
