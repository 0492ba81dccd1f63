"""Memory, tokens and operations of a training step against steps that really run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import SmolVLMConfig

from cases import Case, shake
from pave import FusionConfig, LoraSettings, PatchConfig, SideChannelConfig, SideTokens, attach_patch
from pave.data.sharing import Branch, share_rows
from pave.patching import patch_parameter_groups, patch_parameters
from pave.patching.training_cost import training_cost
from pave.patching.training_memory import SharedRows, StepSettings, StepShape
from pave.training.loss import answer_loss
from pave.video_llms import get_interface
from pave.video_llms.known import load_config
from tiny_models import tiny_llava_onevision, tiny_qwen2_5_vl

FRAMES, K, M, ANSWER, WIDTH = 32, 40, 4, 6, 64
LARGER = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
PATCH = PatchConfig(
    side_channels={"audio": SideChannelConfig(width=WIDTH, fusion=FusionConfig(width=WIDTH, embed_width=WIDTH, num_heads=4))},
    lora=LoraSettings(rank=4, targets=("q_proj", "v_proj")),
    storage_dtype="float32",
)


class Step:
    """A training step of a patched tiny base, and its shape."""

    def __init__(
        self, build, settings: StepSettings, videos: int = 2, patch: PatchConfig = PATCH, share: int = 1, **text
    ) -> None:
        self.model, processor = build(**text)
        self.model.to(getattr(torch, settings.base_dtype))
        shake(attach_patch(self.model, patch)).train()
        if settings.activation_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.settings = settings
        batch = Case(build, (FRAMES,) * videos).batch(processor, ("what sound is heard in the video?",) * videos)
        ids = batch["input_ids"]
        labels = torch.full_like(ids, -100)
        labels[:, -ANSWER:] = ids[:, -ANSWER:]
        times = (torch.arange(K).double() * FRAMES / K + 0.1).expand(videos, -1).clone()
        side = SideTokens(torch.randn(videos, K, M, WIDTH), times_BK=times)
        self.inputs = {**batch, "labels": labels, "side_channels": {"audio": side}}
        if share > 1:
            self._share(share)
        self.optimizer = torch.optim.AdamW(patch_parameters(self.model), 1e-3)
        video = FRAMES * 4 + 1 if build is tiny_llava_onevision else FRAMES // 2 * 4
        self.shape = StepShape(
            batch_size=videos * share,
            num_frames=FRAMES,
            shared=SharedRows(rows=videos, longest=share, mean_rows=videos) if share > 1 else None,
            text_tokens=(self.inputs["input_ids"].shape[1] - video) // share,
            answer_tokens=ANSWER,
            side_steps={"audio": K},
            side_tokens_per_step={"audio": M},
            grid=(2, 2),
        )
        self.cost = training_cost(self.model.config, patch, self.shape, settings)
        assert self.cost.tokens.row(share) == self.inputs["input_ids"].shape[1] and self.cost.tokens.video == video

    def _share(self, share: int) -> None:
        """The text behind the video once more for every further question."""
        batch, video = self.inputs, get_interface(self.model.config).is_video_token(self.model.config, self.inputs["input_ids"])
        end = int(video[0].nonzero().max()) + 1
        more = [
            [Branch(ids[end:].tolist(), labels[end:].tolist())] * (share - 1)
            for ids, labels in zip(batch["input_ids"], batch["labels"])
        ]
        self.inputs = share_rows(batch, [end] * len(more), more, None, 0)

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.mixed_precision):
            loss, _ = answer_loss(self.model, self.model.get_output_embeddings(), self.inputs)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    def measured_peak(self) -> int:
        """Bytes beyond what is there between two steps, as the allocator saw them."""
        self()  # gradients and optimizer states are there now
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as made:
            self()
        events = [e for e in made.profiler.kineto_results.events() if e.name() == "[memory]"]
        total = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            total += event.nbytes()
            peak = max(peak, total)
        return peak


@pytest.mark.parametrize("build", [tiny_llava_onevision, tiny_qwen2_5_vl])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(build, checkpointing):
    step = Step(build, StepSettings(base_dtype="float32", mixed_precision=False, activation_checkpointing=checkpointing))
    # the math kernel: torch's counter does not see the fused one of the CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    assert step.cost.step_flops * step.shape.batch_size == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_shared_videos_costs_what_it_takes(checkpointing):
    settings = StepSettings(base_dtype="float32", mixed_precision=False, activation_checkpointing=checkpointing)
    larger = Step(tiny_llava_onevision, settings, share=3, **LARGER)
    assert larger.inputs["branches"].max() == 3
    memory = larger.cost.memory
    assert memory.peak - memory.fixed == pytest.approx(larger.measured_peak(), rel=0.25)
    step = Step(tiny_llava_onevision, settings, share=3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    assert step.cost.step_flops * step.shape.batch_size == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(
    ("dtype", "mixed", "checkpointing", "videos"),
    [
        ("float32", False, False, 2),
        ("float32", False, True, 2),
        ("float32", False, False, 1),
        ("bfloat16", True, False, 2),
        ("bfloat16", True, True, 2),
        ("float32", True, True, 2),
    ],
)
def test_the_peak_is_within_a_quarter_of_what_the_allocator_sees(dtype, mixed, checkpointing, videos):
    settings = StepSettings(base_dtype=dtype, mixed_precision=mixed, activation_checkpointing=checkpointing)
    step = Step(tiny_llava_onevision, settings, videos, **LARGER)
    memory = step.cost.memory
    assert memory.peak - memory.fixed == pytest.approx(step.measured_peak(), rel=0.25)


def test_what_is_there_between_two_steps_is_counted_exactly():
    step = Step(tiny_llava_onevision, StepSettings(base_dtype="float32", mixed_precision=False))
    step()
    model, cost = step.model, step.cost
    own = patch_parameters(model)
    groups = patch_parameter_groups(model)
    assert cost.lora_parameters == sum(p.numel() for p in groups["lora"])
    assert cost.fusion_parameters == sum(p.numel() for p in own) - cost.lora_parameters
    ids = {id(p) for p in own}
    base = [p for p in model.parameters() if id(p) not in ids]
    assert cost.base_parameters == sum(p.numel() for p in base)
    assert cost.memory.base_weights == sum(p.nbytes for p in base)
    assert cost.memory.patch_weights == sum(p.nbytes for p in own)
    assert cost.memory.gradients == sum(p.grad.nbytes for p in own)
    states = [v for state in step.optimizer.state.values() for v in state.values() if v.ndim]
    assert cost.memory.optimizer == sum(v.nbytes for v in states)
    assert cost.patch_bytes == sum(p.nbytes for p in own)


def test_sizes_at_7b_by_hand():
    shape = StepShape(batch_size=2, answer_tokens=16, text_tokens=64)
    patch = replace(PatchConfig.paper(audio=1024), newline="grid")
    cost = training_cost(load_config("llava-onevision-qwen2-7b"), patch, shape)
    assert (cost.tokens.video, cost.tokens.extra, cost.tokens.total) == (6273, 32 * 14 - 1, 32 * 14 * 15 + 64)
    assert cost.lora_parameters == 161_480_704
    assert cost.memory.base_weights == 2 * 8_029_890_080 and cost.memory.optimizer == 8 * (
        cost.lora_parameters + cost.fusion_parameters
    )
    assert cost.memory.logits == 2 * 16 * 152_000 * (2 + 12)
    assert cost.memory.peak < cost.memory_other.peak  # with and without recomputed activations
    sharded = training_cost(load_config("llava-onevision-qwen2-7b"), patch, shape, StepSettings(shards=4))
    assert sharded.memory.base_weights == 8_029_890_080 // 2


def test_channels_that_lengthen_the_prompt_are_counted_as_tokens_with_logits():
    channel = replace(PATCH.side_channels["audio"], fusion=FusionConfig(kind="concat", width=WIDTH, embed_width=WIDTH))
    config = tiny_llava_onevision()[0].config
    shape = StepShape(num_frames=4, text_tokens=10, side_steps={"audio": 5}, side_tokens_per_step={"audio": 2})
    cost = training_cost(config, replace(PATCH, side_channels={"audio": channel}), shape)
    assert (cost.tokens.video, cost.tokens.extra, cost.tokens.total) == (17, 10, 37)
    assert cost.memory.logits == 37 * config.get_text_config().vocab_size * 14


def test_a_base_that_is_not_counted_is_refused():
    with pytest.raises(ValueError, match="training is counted for bases of type llava_onevision, .*, not for"):
        training_cost(SmolVLMConfig(), PATCH)
