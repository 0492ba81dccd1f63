"""What a patch is, as data: contradictions are refused where they are written."""

import pytest

from pave import FusionConfig, LoraSettings


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
