"""The backward pass goes no further down than to what is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pave.training.loss import answer_loss
from tiny_models import tiny_llava_onevision, tiny_qwen2_5_vl
from tiny_trainers import Items, build, patch_config, weights

VIDEO_ONLY = replace(patch_config(), side_channels={}, missing_channel="lora_only")


class Reach:
    """One step of a trainer: which modules had an input or an output in the graph, and how much autograd kept."""

    def __init__(self, folder, family, config, freeze_layers=0, checkpointing=False, **training):
        trainer = build(folder, family, config, steps=1, activation_checkpointing=checkpointing, **training)
        model = self.model = trainer.model
        self.layers = model.get_decoder().layers
        for layer in self.layers[:freeze_layers]:
            layer.requires_grad_(False)
        self.grown: dict[str, bool] = {}
        names = {module: name for name, module in model.named_modules()}
        handles = [m.register_forward_hook(lambda m, args, out: self._note(names[m], out)) for m in names if names[m]]
        trainer.train()
        for handle in handles:
            handle.remove()
        batch = trainer.data_collator([Items().items[0], Items().items[1]])
        batch.pop("sample_ids")
        model.train()
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            self.loss, _ = answer_loss(model, model.get_output_embeddings(), batch)
        self.kept = sum(t.nbytes for t in kept.values())

    def _note(self, name, output):
        tensors = [output] if isinstance(output, torch.Tensor) else []
        tensors = tensors or [
            t for t in (output.values() if hasattr(output, "values") else output) if isinstance(t, torch.Tensor)
        ]
        self.grown[name] = self.grown.get(name, False) or any(t.requires_grad for t in tensors)

    def of_layers(self):
        names = {id(module): name for name, module in self.model.named_modules()}
        return [self.grown[names[id(layer)]] for layer in self.layers]

    def of_vision(self):
        return {
            name: grown for name, grown in self.grown.items() if any(part in name for part in ("vision", "visual", "projector"))
        }


@pytest.mark.parametrize("family", [tiny_llava_onevision, tiny_qwen2_5_vl])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_graph_begins_at_the_first_thing_that_is_trained(tmp_path, family, checkpointing):
    common = {"family": family, "checkpointing": checkpointing}
    whole = Reach(tmp_path / "whole", config=patch_config(), **common)
    lora = Reach(tmp_path / "lora", config=patch_config(), train=("lora",), **common)
    alone = Reach(tmp_path / "alone", config=VIDEO_ONLY, **common)
    upper = Reach(tmp_path / "upper", config=VIDEO_ONLY, freeze_layers=1, **common)
    for reach in (whole, lora, alone, upper):
        assert not any(reach.of_vision().values()) and len(reach.of_vision()) > 10
        assert reach.loss.requires_grad
    first = "model.language_model.layers.0"
    assert [reach.grown[f"{first}.input_layernorm"] for reach in (whole, lora, alone, upper)] == [True, False, False, False]
    assert [reach.of_layers() for reach in (whole, lora, alone)] == [[True, True]] * 3
    assert upper.of_layers() == [False, True]
    fusion = [name for name in whole.grown if name.startswith("pave_patches.")]
    assert all(whole.grown[name] for name in fusion) and not any(lora.grown[name] for name in fusion)
    assert alone.kept <= lora.kept < whole.kept and upper.kept <= alone.kept
    assert checkpointing or upper.kept < 0.7 * alone.kept  # recomputing keeps every layer's input anyway


def test_reentrant_checkpointing_still_gets_its_gradients(tmp_path):
    """It makes none where no input requires one."""
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = build(tmp_path, config=VIDEO_ONLY, steps=1, trainer=settings)
    before = weights(trainer.model)
    trainer.train()
    assert not all(torch.equal(a, b) for a, b in zip(before, weights(trainer.model), strict=True))
