"""What a patch is, as data: contradictions are refused where they are written."""

import subprocess
import sys

import pytest

from pave.config import FusionConfig, LoraSettings, PatchConfig, SideChannelConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": 4}, "only it takes them"),
        ({"tokens_per_frame": 4}, "only it takes them"),
        ({"query_source": "learnable", "num_frames": 4}, "needs num_frames and tokens_per_frame"),
        ({"query_source": "learnable", "num_frames": 0, "tokens_per_frame": 4}, "must be at least 1"),
        ({"width": 30}, r"width \(30\) must be a multiple of num_heads \(4\)"),
        ({"rope": True, "width": 48}, "rope needs a head width .* multiple of 8"),
        ({"alignment": "index", "neighbourhood_seconds": 1.0}, "neighbourhood_seconds needs alignment 'timestamps'"),
        ({"kind": "concat", "gate": True}, "gate scales a residual, and kind 'concat' adds none"),
        ({"neighbourhood_seconds": float("nan")}, "must not be negative"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
    ],
)
def test_fusion_options_that_contradict_each_other(values, message):
    with pytest.raises(ValueError, match=message):
        FusionConfig(**values)
    with pytest.raises(ValueError, match=f"^recipe.yaml: .*{message}"):
        FusionConfig.from_dict(values, "recipe.yaml")


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_alpha_is_a_positive_number(alpha):
    with pytest.raises(ValueError, match="alpha must be positive and finite"):
        LoraSettings(alpha=alpha)


BIG = 10**9


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (FusionConfig, {"width": BIG}, "width must be at most 65,536, got 1000000000"),
        (FusionConfig, {"embed_width": 10**400}, f"embed_width must be at most 65,536, got 1{'0' * 19}$"),
        (FusionConfig, {"num_layers": BIG}, "num_layers must be at most 256"),
        (FusionConfig, {"neighbourhood_frames": BIG}, "neighbourhood_frames must be at most 100,000"),
        (
            FusionConfig,
            {"num_layers": 64, "width": 2**13},
            "64 layers of width 8,192 and embed_width 256 are more than a patch can be",
        ),
        (
            FusionConfig,
            {"query_source": "learnable", "num_frames": BIG, "tokens_per_frame": 1},
            "num_frames must be at most 100,000",
        ),
        (
            FusionConfig,
            {"query_source": "learnable", "num_frames": 10**5, "tokens_per_frame": 10**5},
            "a table of 100,000 frames",
        ),
        (SideChannelConfig, {"width": BIG}, "width must be at most 1,048,576"),
        (
            SideChannelConfig,
            {"width": 2**20, "fusion": {"embed_width": 2**12}},
            r"width \(1,048,576\) times fusion.embed_width",
        ),
        (LoraSettings, {"rank": BIG}, "rank must be at most 4,096"),
        (LoraSettings, {"ranks": {"q_proj": BIG}}, "ranks.q_proj must be at most 4,096"),
    ],
)
def test_sizes_that_would_fill_the_memory_are_refused_before_anything_is_allocated(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls.from_dict(values)


def test_large_patches_are_taken():
    fusion = FusionConfig(width=4096, embed_width=4096, num_layers=32, num_heads=32)
    assert SideChannelConfig(width=2**17, fusion=fusion).width == 2**17 and LoraSettings(rank=1024).rank == 1024


def test_one_target_is_one_name_and_not_its_letters():
    assert LoraSettings(targets="q_proj").targets == ("q_proj",)
    assert LoraSettings(targets=["q_proj", "v_proj"]).targets == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ({"r": 8}, "rank"),
        ({"lora_alpha": 8.0}, "alpha"),
        ({"target_modules": ["q_proj"]}, "targets"),
        ({"lora_dropout": 0.1}, "dropout"),
        ({"ranks_": {}}, "ranks"),
    ],
)
def test_a_wrong_keyword_names_the_right_one(values, right):
    (key,) = values
    with pytest.raises(TypeError, match=f"^LoraSettings has no setting '{key}'; did you mean '{right}'"):
        LoraSettings(**values)
    with pytest.raises(ValueError, match=f"unknown key '{key}'; did you mean '{right}'"):
        LoraSettings.from_dict(values, "recipe.yaml")
    with pytest.raises(TypeError, match="FusionConfig has no setting 'zzz'; known: kind, alignment"):
        FusionConfig(zzz=1)


def test_a_channel_may_not_be_called_like_a_part_of_a_module_or_a_mapping():
    asked = "from torch import nn; print(*{name for thing in (nn.ModuleDict(), nn.Module(), {}) for name in dir(thing)})"
    taken = set(subprocess.check_output([sys.executable, "-c", asked], text=True).split())  # here others have added to them
    assert len(taken) > 100 and {"forward", "keys", "__class__", "_parameters"} <= taken
    for name in sorted(taken):
        with pytest.raises(ValueError, match=f"side channel '{name}': "):
            PatchConfig.from_dict({"side_channels": {name: {"width": 4}}})
    assert PatchConfig.compact(audio=4, depth=4, sound_2=4).side_channels.keys() == {"audio", "depth", "sound_2"}
