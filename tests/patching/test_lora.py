"""LoRA layers inside a base: the mode they are in."""

import torch

from cases import CASES, shake
from pave import LoraSettings, PatchConfig, attach_patch

CONFIG = PatchConfig(side_channels={}, lora=LoraSettings(rank=2, dropout=0.9), storage_dtype="float32")


def test_dropout_follows_the_mode_of_the_model_that_is_patched():
    """A patch attached to a model in eval mode must not drop anything; one in training mode must."""
    case = CASES["llava_onevision"]
    for training in (False, True):
        model, processor = case.build()
        batch = case.batch(processor)
        shake(attach_patch(model.train(training), CONFIG))
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, model(**batch).logits) != training
