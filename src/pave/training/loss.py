"""The next-token loss, with the language-model head run only where there is a label.

A prompt with video is thousands of tokens long and an answer a few; logits of the whole vocabulary over the prompt cost
gigabytes and are thrown away. Here the head sees the hidden states of the labelled positions alone.

Why a hook on the head and not the ``logits_to_keep`` argument: not every family has it or takes a mask for it, while every
family has output embeddings, and the one call of ``model`` that distributed wrappers and the patch rely on stays in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pave.patching.rows import current_rows

IGNORE = -100


def answer_loss(
    model: nn.Module, head: nn.Module, inputs: Mapping[str, Any], num_items: Tensor | int | None = None
) -> tuple[Tensor, Any]:
    """The loss that ``model(**inputs)`` would return, at a fraction of its memory.

    The token at position n is predicted from position n - 1, in float32; the sum over labelled tokens is divided by
    ``num_items``, or by their number in this batch. The labels still go through the model, because a gated patch must know
    where the question ends.

    Args:
        model: what is called, perhaps in a distributed wrapper.
        head: the output embeddings inside it (``get_output_embeddings()``).
        inputs: the model's arguments with ``labels`` (B, L), -100 where nothing is learnt.
        num_items: labelled tokens of the whole optimizer step, over accumulation and processes.

    Returns:
        The loss and the model's output, whose ``logits`` are those of the labelled positions, (tokens, vocabulary), row by row.

    Raises:
        ValueError: if there is no label, or the head is not run on one hidden state per token of the prompt.
    """
    labels_BL: Tensor = inputs["labels"]
    next_BL = F.pad(labels_BL, (0, 1), value=IGNORE)[:, 1:]
    keep_BL = next_BL != IGNORE
    targets = next_BL[keep_BL]
    if not len(targets):
        raise ValueError("the batch has no label: nothing could be learnt from it")

    def only_answers(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BLE, *rest = args
        rows = current_rows()
        longer = None if rows is None else rows.longer
        keep = keep_BL if longer is None else longer.stretch(keep_BL, False, False)
        if hidden_BLE.shape[:2] != keep.shape:
            raise ValueError(
                f"the language-model head was handed hidden states of shape {tuple(hidden_BLE.shape)} for labels of shape "
                f"{tuple(keep.shape)}: this base cannot be trained with the loss on answers only"
            )
        return (hidden_BLE[keep.to(hidden_BLE.device)], *rest)

    handle = head.register_forward_pre_hook(only_answers)
    try:
        return plain_loss(model, {**inputs, "shift_labels": targets}, num_items)
    finally:
        handle.remove()


def plain_loss(model: nn.Module, inputs: Mapping[str, Any], num_items: Tensor | int | None = None) -> tuple[Tensor, Any]:
    """The model's own loss, with logits over the whole prompt: for patches that lengthen the prompt."""
    items = {} if num_items is None else {"num_items_in_batch": num_items}
    outputs = model(**inputs, use_cache=False, **items)
    return (outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]), outputs


def row_losses(logits: Tensor, labels_BL: Tensor) -> list[tuple[float, int]]:
    """Summed loss and number of answer tokens of every row, from the logits of either loss.

    Args:
        logits: (B, L, vocabulary), or those of the labelled positions alone, (tokens, vocabulary).
        labels_BL: (B, L), -100 where nothing is learnt.
    """
    next_BL = F.pad(labels_BL, (0, 1), value=IGNORE)[:, 1:]
    keep_BL = next_BL != IGNORE
    kept = logits if logits.ndim == 2 else logits[keep_BL.to(logits.device)]
    losses = F.cross_entropy(kept.detach().float(), next_BL[keep_BL].to(logits.device), reduction="none").cpu()
    return [(float(row.double().sum()), len(row)) for row in losses.split(keep_BL.sum(dim=1).tolist())]
