"""A folder in the layout of the golden ones, of other sizes, whose numbers are computed here by hand from the tensors.

Two prompts of different length in a batch, three layers everywhere, rope, side channels longer and shorter than the video,
embeddings with rows that the tokenizer does not know, a .bin adapter in float32. Nothing of the library's attachment is used: the
vision tower and the language model run as plain transformers models, prompts are spliced and LoRA is merged here.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from safetensors.torch import save_file

from fusion.slow_reference import slow_residual
from pave.patching.convert import fusion_from_reference, run_golden

GOLDEN = Path(__file__).parents[1] / "golden" / "whole_model_A"
FRAMES, GRID, ROWS, TOKENS = 3, 5, 272, 259
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 3}
VISION |= {"image_size": 16, "patch_size": 3, "num_hidden_layers_in_checkpoint": 3}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
FUSION = {"input_dim": 10, "output_dim": 32, "embed_dim": 20, "query_input_dim": 24, "cross_attn_hidden_dim": 48}
FUSION |= {"num_cross_attn_head": 3, "num_cross_attn_layer": 3, "use_3d_rope": True}
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LINEARS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
RANK, ALPHA = 5, 7


def fusion_weights() -> dict[str, torch.Tensor]:
    C, E, D = FUSION["input_dim"], FUSION["output_dim"], FUSION["cross_attn_hidden_dim"]
    shapes = {"input_mapping": (20, C), "query_input_mapping": (D, 24), "output_mapping.0": (2 * D, D)}
    shapes |= {"output_mapping.2": (E, 2 * D)}
    for n in range(3):
        shapes |= {f"cross_attn_layers.{n}.attn.{kind}_linear": (D, D if kind == "q" else 20) for kind in "qkv"}
    out = {}
    for name, shape in shapes.items():
        out[f"{name}.weight"], out[f"{name}.bias"] = torch.randn(shape) * 0.3, torch.randn(shape[0]) * 0.3
    for n in range(3):
        out[f"cross_attn_layers.{n}.ffn.0.weight"] = torch.randn(D)
        out[f"cross_attn_layers.{n}.ffn.0.bias"] = torch.randn(D)
        out[f"cross_attn_layers.{n}.ffn.1.weight"] = torch.randn(2 * D, D) * 0.2
        out[f"cross_attn_layers.{n}.ffn.3.weight"] = torch.randn(D, 2 * D) * 0.2
    return out | {"output_norm.weight": torch.randn(E) * 0.3, "output_norm.bias": torch.randn(E) * 0.3}


class Reference:
    """The model by hand: plain transformers models for the tower and the language model, everything else written out."""

    def __init__(self) -> None:
        tower = {key: value for key, value in VISION.items() if not key.startswith("num_hidden")}
        config = tf.SiglipVisionConfig(**tower, num_hidden_layers=3, vision_use_head=False)
        self.tower = tf.SiglipVisionModel(config).eval()
        self.llm = tf.Qwen2ForCausalLM(tf.Qwen2Config(**TEXT, vocab_size=ROWS, tie_word_embeddings=False)).eval()
        self.first, self.second = torch.nn.Linear(24, 32), torch.nn.Linear(32, 32)
        self.newline = torch.randn(32)
        for model in (self.tower, self.llm):
            for parameter in model.parameters():
                parameter.data = torch.randn(parameter.shape) * (0.2 if parameter.ndim > 1 else 0.5) + (parameter.ndim == 1)
        self.fusion = fusion_weights()
        self.lora = {}
        for n in range(3):
            for name in LINEARS:
                rows, columns = self.llm.get_submodule(f"model.layers.{n}.{name}").weight.shape
                self.lora[f"model.layers.{n}.{name}.lora_A.weight"] = torch.randn(RANK, columns) * 0.3
                self.lora[f"model.layers.{n}.{name}.lora_B.weight"] = torch.randn(rows, RANK) * 0.3

    def base_tensors(self) -> dict[str, torch.Tensor]:
        out = {
            f"model.vision_tower.vision_tower.vision_model.{key.removeprefix('vision_model.')}": value
            for key, value in self.tower.state_dict().items()
        }
        out |= dict(self.llm.state_dict())
        for n, linear in (("0", self.first), ("2", self.second)):
            out |= {f"model.mm_projector.{n}.weight": linear.weight, f"model.mm_projector.{n}.bias": linear.bias}
        return {key: value.detach().clone() for key, value in (out | {"model.image_newline": self.newline}).items()}

    def video(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(queries, video tokens), (T, rows, columns, width) each."""
        tokens = self.tower(frames, output_hidden_states=True).hidden_states[-1]

        def pool(x):
            grid = x.reshape(FRAMES, GRID, GRID, -1).permute(0, 3, 1, 2)
            side = math.ceil(GRID / 2)
            return F.interpolate(grid, size=(side, side), mode="bilinear").permute(0, 2, 3, 1)

        return pool(tokens), pool(self.second(F.gelu(self.first(tokens))))

    def residual(self, queries: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        module = fusion_from_reference({**FUSION}, self.fusion).fusion
        return slow_residual(module, queries.flatten(1, 2), side).view(FRAMES, 3, 3, -1)

    def prompt(self, ids: list[int], tokens: torch.Tensor, newline: str) -> torch.Tensor:
        at = ids.index(-200)
        if newline == "grid":
            tokens = torch.cat([tokens, self.newline.expand(FRAMES, 3, 1, 32)], dim=2).flatten(0, 2)
        else:
            tokens = torch.cat([tokens.flatten(0, 2), self.newline[None]])
        embed = self.llm.get_input_embeddings()
        return torch.cat([embed(torch.tensor(ids[:at])), tokens, embed(torch.tensor(ids[at + 1 :]))])

    def logits(self, embeds: torch.Tensor, lora: bool) -> torch.Tensor:
        merged = {}
        for key, b in self.lora.items():
            if lora and ".lora_B." in key:
                name = key.replace(".lora_B.weight", ".weight")
                a = self.lora[key.replace("lora_B", "lora_A")]
                merged[name] = self.llm.get_parameter(name) + ALPHA / RANK * b @ a
        return torch.func.functional_call(self.llm, merged, kwargs={"inputs_embeds": embeds[None]}).logits[0, :, :TOKENS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        return _write(tmp_path_factory.mktemp("other") / "model", Reference())


def _write(folder: Path, reference: Reference) -> Path:
    shutil.copytree(GOLDEN / "base", folder / "base")
    (folder / "patch").mkdir()
    config = json.loads((folder / "base" / "config.json").read_text()) | TEXT | {"vocab_size": ROWS, "rope_theta": 10000.0}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    save_file(reference.base_tensors(), folder / "base" / "model.safetensors")
    (folder / "vision_config.json").write_text(
        json.dumps({**VISION, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6})
    )
    (folder / "aggregator_config.json").write_text(json.dumps(FUSION))
    patch = {**config, "model_type": "pave_qwen2", "mm_newline_position": "grid", "vocab_size": TOKENS}
    (folder / "patch" / "config.json").write_text(json.dumps(patch | {"temporal_aggregator_type": "pmv5"}))
    adapter = json.loads((GOLDEN / "patch" / "adapter_config.json").read_text())
    adapter |= {"r": RANK, "lora_alpha": ALPHA, "target_modules": [name.rsplit(".", 1)[-1] for name in LINEARS]}
    (folder / "patch" / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({f"base_model.model.{key}": value for key, value in reference.lora.items()}, folder / "patch/adapter_model.bin")
    prefix = "base_model.model.model.temporal_aggregator."
    torch.save({prefix + key: value for key, value in reference.fusion.items()}, folder / "patch/non_lora_trainables.bin")

    ids = [[5, 9, -200, 40, 41, 42, 43], [7, -200, 50]]
    images, lengths = torch.randn(2, FRAMES, 3, 16, 16), [7, 2]
    features = torch.randn(2, 10, 7, 3, 3)
    features[1, :, 2:] = 0
    save_file(
        {
            "input_ids": torch.tensor([ids[0], ids[1] + [256] * 4]),
            "attention_mask": torch.tensor([[1] * 7, [1] * 3 + [0] * 4]),
            "images": images,
            "video_feats": features,
            "feat_frame_nums": torch.tensor(lengths),
        },
        folder / "inputs.safetensors",
    )
    variants = {
        "logits_base_grid": ("grid", False, False),
        "logits_base_one_token": ("one_token", False, False),
        "logits_patch": ("grid", True, True),
        "logits_patch_without_side_channel": ("grid", False, True),
        "logits_aggregator_only_no_lora": ("grid", True, False),
    }
    expected, greedy, residuals = {}, {"patch": []}, {}
    for name, (newline, fused, lora) in variants.items():
        rows = []
        for row in range(2):
            queries, tokens = reference.video(images[row])
            if fused:
                side = features[row, :, : lengths[row]].permute(1, 2, 3, 0).flatten(1, 2)
                residuals[row] = reference.residual(queries, side)
                tokens = tokens + residuals[row]
            embeds = reference.prompt(ids[row], tokens, newline)
            rows.append(reference.logits(embeds, lora))
            if name == "logits_patch":
                greedy["patch"].append({"ids": _continue(reference, embeds)})
        longest = max(map(len, rows))
        suffix = "_one_token" if newline == "one_token" else ""
        expected[name] = torch.stack([F.pad(x, (0, 0, 0, longest - len(x)), value=1e3) for x in rows])
        expected[f"position_index{suffix}"] = torch.arange(longest)
        expected[f"position_valid{suffix}"] = torch.tensor([[n < len(x) for n in range(longest)] for x in rows]).to(torch.uint8)
    save_file(expected, folder / "expected_logits.safetensors")
    inner = {f"patch_output_{row}": residuals[row].flatten(1, 2)[:, ::2].contiguous() for row in range(2)}
    save_file(inner | {"token_index_within_frame": torch.arange(0, 9, 2)}, folder / "intermediates.safetensors")
    (folder / "notes.json").write_text(json.dumps({"greedy_continuation": greedy}))
    return folder


def _continue(reference: Reference, embeds: torch.Tensor) -> list[int]:
    new: list[int] = []
    for _ in range(5):
        new.append(int(reference.logits(embeds, True)[-1].argmax()))
        embeds = torch.cat([embeds, reference.llm.get_input_embeddings()(torch.tensor(new[-1:]))])
    return new


def test_numbers_by_hand(folder):
    results = run_golden(folder)
    assert set(results) == {
        "greedy_continuation/patch",
        "logits_aggregator_only_no_lora",
        "logits_base_grid",
        "logits_base_one_token",
        "logits_patch",
        "logits_patch_without_side_channel",
        "patch_output_0",
        "patch_output_1",
    }
    assert max(results.values()) < 1e-4, results
