"""Sizes at the published dimensions, and operation counts against torch's own counter on models that really run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cases import CASES, patched, side_tokens, small_config
from pave import PatchConfig
from pave.patching.cost import patch_cost
from pave.video_llms.known import HUB_IDS, KNOWN_CONFIGS, load_config


@pytest.mark.parametrize(
    ("base", "preset", "fusion", "lora"),
    [
        # method.md's counts for the released module include value projections that it never uses: 2 x (512 x 512 + 512)
        ("llava-onevision-qwen2-7b", PatchConfig.paper(audio=1024), 8_996_352 - 2 * (512 * 512 + 512), 161_480_704),
        ("llava-onevision-qwen2-0.5b", PatchConfig.paper(audio=1024), 6_235_776 - 2 * (512 * 512 + 512), 35_192_832),
        ("llava-onevision-qwen2-7b", PatchConfig.compact(audio=1024), 4_077_568, 5_046_272),
    ],
)
def test_parameter_counts_at_the_published_sizes(base, preset, fusion, lora):
    cost = patch_cost(load_config(base), preset)
    assert (cost.fusion_parameters, cost.lora_parameters) == (fusion, lora)
    assert cost.llm_tokens == 32 * 196 + 1 + 64
    assert cost.patch_bytes == 2 * (fusion + lora)


@pytest.mark.parametrize("base", ["llava-onevision-qwen2-7b", "qwen2.5-vl-7b"])
def test_the_whole_compact_patch_is_at_most_20_megabytes_on_a_7b_base(base):
    cost = patch_cost(load_config(base), PatchConfig.compact(audio=1024))
    assert cost.patch_bytes <= 20_000_000
    gated = PatchConfig.compact(audio=1024)
    channel = gated.side_channels["audio"]
    gated = replace(gated, side_channels={"audio": replace(channel, fusion=replace(channel.fusion, gate=True))})
    assert patch_cost(load_config(base), gated).patch_bytes <= 20_000_000


def test_the_fusion_module_costs_about_a_thousandth():
    for base in KNOWN_CONFIGS:
        cost = patch_cost(load_config(base), PatchConfig.compact(audio=1024)).to_dict()
        assert cost["fusion_flops_percent"] < 0.1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("lora", [True, False, "dora"])
def test_operations_agree_with_torchs_counter(name, lora):
    case = type(CASES[name])(CASES[name].build, (8, 8))
    config = small_config(lora=bool(lora))
    if lora == "dora":
        config = replace(config, lora=replace(config.lora, use_dora=True))
    model, processor = patched(case, config)
    batch = case.batch(processor, ("what sound is heard in the video?",))
    steps, per_step = 16, 4
    side = side_tokens(videos=1, steps=steps, per_step=per_step)

    def count(**more):
        # the math kernel: torch's counter does not see the fused one of the CPU
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**batch, logits_to_keep=1, **more)
        return counter.get_total_flops()

    length = batch["input_ids"].shape[1]
    T = 8 if name == "llava_onevision" else 4
    text = length - T * 4 - (name == "llava_onevision")
    cost = patch_cost(model.config, config, num_frames=8, text_tokens=text, side_steps=steps,
                      side_tokens_per_step=per_step, grid=(2, 2))  # fmt: skip
    assert cost.llm_tokens == length
    base = count()
    assert cost.base_prefill_flops == pytest.approx(base, rel=0.03)
    added = count(side_channels={"audio": side}) - base
    assert cost.fusion_flops + cost.lora_flops == pytest.approx(added, rel=0.03)


def test_published_hub_ids_need_no_download():
    for hub_id, name in HUB_IDS.items():
        assert load_config(hub_id).to_dict() == load_config(name).to_dict()


def test_an_unknown_base_lists_the_built_in_ones(tmp_path):
    with pytest.raises(ValueError, match="no config of a base at .*; built in are: llava-onevision-qwen2-0.5b"):
        load_config(str(tmp_path / "nothing"))
