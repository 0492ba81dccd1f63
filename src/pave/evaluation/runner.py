"""Answer a list of samples and score the answers."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pave.data.samples import Sample
from pave.evaluation.contents import other_content
from pave.evaluation.costs import forget_cost, record_cost
from pave.evaluation.counterfactuals import Counterfactual
from pave.evaluation.inference import Answer, VideoQA
from pave.evaluation.predictions import Prediction, PredictionFile, as_prediction, check_same_sample
from pave.evaluation.result import EvalResult, check_scorable, score_predictions
from pave.evaluation.shards import Shard
from pave.patching import fingerprint, is_patched, patch_name, patch_slot
from pave.patching.lora import state_dict as lora_state_dict
from pave.utils.console import track
from pave.utils.content import changed_file

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)


def evaluate(
    qa: VideoQA,
    samples: Sequence[Sample],
    *,
    predictions: str | Path | None = None,
    patch: bool = True,
    counterfactual: Counterfactual | None = None,
    lenders: Sequence[Sample] | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    shard: Shard | None = None,
    progress: bool = True,
) -> EvalResult:
    """Answer every sample and score the answers. A sample that cannot be answered counts as wrong and is listed.

    The order of work is fixed (``plan_batches``), so that a run that is interrupted and goes on makes the very batches of an
    uninterrupted one.

    Args:
        qa: the model.
        samples: all that are expected; each needs an answer to compare with. Samples of a benchmark are scored by its rules.
        predictions: file that answers are written to batch by batch; what that took is written beside it (``costs``). A run that finds its own unfinished file goes on with it,
            and tries samples again that failed.
        patch: False scores the base alone.
        counterfactual: a change to the side streams first (``pave.evaluation.counterfactuals``).
        lenders: samples whose streams such a change may borrow, ``samples`` among them; default ``samples``. Parts of an evaluation
            must all be given the samples of the whole.
        batch_size: samples answered at a time.
        max_new_tokens: most tokens of an answer.
        seed: of the bootstrap behind intervals of scores such as CIDEr.
        settings: further facts to record with the predictions.
        shard: recorded too, where ``samples`` are a part of those of an evaluation (``take_shard``).
        progress: show it.

    Raises:
        ValueError: before any work, if a sample has no answer or cannot be scored, an id comes twice, or ``predictions`` belongs to
            another run or to other samples. An answer to a file that was changed or replaced since is asked for again, with a warning.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    qa.use_counterfactual(counterfactual, samples if lenders is None else lenders)
    wanted = [as_prediction(sample) for sample in samples]
    check_scorable(wanted)
    file = None
    if predictions is not None:
        facts = {**(settings or {}), **model_facts(qa, patch), "max_new_tokens": max_new_tokens}
        file = PredictionFile(predictions, facts, None if shard is None else shard.to_dict())
        foreign = sorted(set(file.done).difference(want.id for want in wanted))
        if foreign:
            raise ValueError(
                f"{file.path} holds answers to {len(foreign)} samples that are not asked for now, such as {foreign[0]!r}; choose "
                "another output folder, or remove the file to start over"
            )
        for want in wanted:
            if want.id in file.done:
                check_same_sample(file.done[want.id], want, file.path)
        file.expect(len(wanted))
        if not file.done:
            forget_cost(file.path)
    goes_on = bool(file and file.done)
    done = _still_right(qa, file, samples) if file else {}
    batches = [b for b in plan_batches(wanted, batch_size) if any(wanted[i].id not in done for i in b)]
    qa.acting_watch.clear()
    start = time.monotonic()
    label = f"Answering {len(samples)} samples" + ("" if counterfactual is None else f", {counterfactual}")
    for batch in track(batches, label, enabled=progress):
        some = [samples[i] for i in batch]
        before = [qa.content_of(sample) for sample in some]
        answers = qa.answer_samples(some, patch=patch, max_new_tokens=max_new_tokens)
        after = [qa.content_of(sample) for sample in some]
        found = [
            answer if x == y else changed_file(s.video) for s, answer, x, y in zip(some, answers, before, after, strict=True)
        ]
        fresh = [
            replace(_filled(wanted[i], answer), content=content)
            for i, answer, content in zip(batch, found, before, strict=True)
        ]
        done |= {p.id: p for p in fresh}
        if file:
            file.append(fresh)
    for sentence in qa.acting_watch.sentences().values():
        logger.warning("%s", sentence)
    if file and batches:
        record_cost(file.path, qa.model, patch, sum(map(len, batches)), time.monotonic() - start, goes_on)
    ordered = file.finish([want.id for want in wanted]) if file else [done[want.id] for want in wanted]
    return score_predictions(ordered, file.settings if file else dict(settings or {}), seed=seed)


def _still_right(qa: VideoQA, file: PredictionFile, samples: Sequence[Sample]) -> dict[str, Prediction]:
    """The answers of a file that need not be asked again, by sample id: those to files that are the same still."""
    answered = {p.id: p for p in file.done.values() if p.prediction is not None}
    stale = {}
    for sample in samples:
        if sample.id in answered:
            before = answered[sample.id].content
            role = other_content(before, qa.content_of(sample)) if before else "video"
            if role is not None:
                stale[sample.id] = role
    if stale:
        first, role = next(iter(stale.items()))
        logger.warning(
            "%s: the files of %d of %d answered samples are not known to be those that were asked about, such as the %s of sample %r; "
            "these samples are asked again",
            file.path,
            len(stale),
            len(answered),
            role,
            first,
        )
    return {name: prediction for name, prediction in answered.items() if name not in stale}


def plan_batches(wanted: Sequence[Prediction], batch_size: int) -> list[list[int]]:
    """Indices into ``wanted``, cut into batches.

    Samples about one video follow each other, so that it is decoded once; among them the short prompts come first. Videos of
    different length are parted later, when their frames are known.
    """
    first: dict[str, int] = {}
    for number, want in enumerate(wanted):
        first.setdefault(want.video, number)
    lengths = [len(want.question) + sum(map(len, want.choices)) for want in wanted]
    order = sorted(range(len(wanted)), key=lambda i: (first[wanted[i].video], lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def model_facts(qa: VideoQA, patch: bool = True) -> dict[str, Any]:
    """What identifies the model and how it looks at videos, for the record."""
    return {
        "frames": qa.sampling.to_dict(),
        "base_weights": fingerprint(qa.model).weights,
        "dtype": str(qa.model.dtype).removeprefix("torch."),
        "patch_weights": patch_hash(qa.model) if patch and is_patched(qa.model) else None,
        **({"encoders": qa.encoder_names} if patch and qa.channels else {}),
        **({"vision": qa.vision.storage} if qa.vision is not None and qa.vision.storage != "exact" else {}),
        **({"counterfactual": f"{qa.counterfactual}, seed {qa.counterfactual.seed}"} if patch and qa.counterfactual else {}),
    }


def patch_hash(model: Any) -> str:
    """A hash over the attached patch: every tensor, its config and its strength."""
    slot = patch_slot(model)
    tensors = dict(slot.fusions.state_dict())
    if slot.config.lora is not None:
        tensors |= lora_state_dict(model, patch_name(model))
    digest = hashlib.sha256(json.dumps([slot.config.to_dict(), model.patch_strength], sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _filled(want: Prediction, answer: Answer | ValueError) -> Prediction:
    if isinstance(answer, ValueError):
        return replace(want, error=" ".join(str(answer).split()))
    return replace(want, prediction=answer.text)
