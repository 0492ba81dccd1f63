"""Channel dropout: in training, a video sometimes lacks a side channel that it has, so that a patch stays good without it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch

from pave.config import PatchConfig
from pave.tokens import SideTokens


def dropout_rates(given: float | Mapping[str, float], patch: PatchConfig) -> dict[str, float]:
    """The probability of every channel to be taken away; empty where none is.

    Under ``missing_channel: base`` a video without any channel is exactly the base: nothing can be learnt from it, and its answer
    would only thin out the step. A patch of one channel is therefore refused there.

    Args:
        given: one for all channels, or by channel.
        patch: the patch.

    Raises:
        ValueError: naming a channel that the patch lacks, a number that is no probability below 1, or a patch that cannot learn so.
    """
    rates = dict(given) if isinstance(given, Mapping) else dict.fromkeys(patch.side_channels, float(given))
    for name, rate in rates.items():
        if name not in patch.side_channels:
            raise ValueError(
                f"training.channel_dropout: the patch has no side channel {name!r}; it has: {', '.join(patch.side_channels) or 'none'}"
            )
        if not 0 <= rate < 1:
            raise ValueError(f"training.channel_dropout is a probability, at least 0 and below 1, got {rate}")
    rates = {name: rate for name, rate in rates.items() if rate}
    if not patch.side_channels and given:
        raise ValueError("training.channel_dropout takes side channels away, but the patch has none; leave it out")
    if rates and patch.missing_channel == "base" and len(patch.side_channels) == 1:
        raise ValueError(
            f"training.channel_dropout would take away {next(iter(rates))!r}, the only channel, and under missing_channel 'base' such a "
            "video is exactly the base and nothing is learnt from it; set patch.missing_channel to 'lora_only', or leave it out"
        )
    return rates


def check_not_shared(rates: Mapping[str, float], share_videos: int | None) -> None:
    """Refuse questions that share a video where channels are taken away: that is drawn sample by sample, and they have one video.

    Args:
        rates: what ``dropout_rates`` gave.
        share_videos: most questions in a row.

    Raises:
        ValueError: if both are on.
    """
    if rates and share_videos is not None:
        raise ValueError(
            "training.channel_dropout draws for every question whether a channel is taken away, and with data.share_videos several "
            "questions have one video; give only one of them"
        )


def drop_channels(
    sides: Mapping[str, SideTokens],
    rates: Mapping[str, float],
    sample_ids: Sequence[str],
    *,
    seed: int,
    step: int,
    keep_one: bool,
) -> dict[str, SideTokens]:
    """Take channels away from the videos of a training batch.

    What is taken from a sample is a function of the seed, the step, the sample's id and the channel, and of nothing else: a resumed run
    takes the same, and so does one that cuts a step into other batches or over other processes.

    Args:
        sides: tokens of every channel, one row per sample.
        rates: probability by channel.
        sample_ids: of the rows.
        seed: of the run.
        step: optimizer steps taken so far.
        keep_one: a video keeps at least one of the channels that it has: where all would be taken away, the one of which this was least
            likely stays (all alike, over the steps, whatever the rates).

    Returns:
        All channels; a row without a valid step lacks the channel, as in the collator's batches.
    """
    here = {name: side.present_B().tolist() for name, side in sides.items()}
    taken: dict[str, list[bool]] = {name: [False] * len(sample_ids) for name in sides}
    for row, sample_id in enumerate(sample_ids):
        present = [name for name in sides if here[name][row]]
        # below 1 where the channel is to be taken away; then uniform between 0 and 1, whatever the rate
        drawn = {name: _uniform(seed, step, sample_id, name) / rates[name] for name in present if rates.get(name)}
        chosen = [name for name in drawn if drawn[name] < 1]
        if keep_one and chosen and len(chosen) == len(present):
            chosen.remove(max(chosen, key=drawn.__getitem__))
        for name in chosen:
            taken[name][row] = True
    out = {}
    for name, side in sides.items():
        kept_B1 = ~torch.tensor(taken[name], dtype=torch.bool, device=side.valid_BK.device)[:, None]
        out[name] = SideTokens(side.embeds_BKMC, side.valid_BK & kept_B1, side.times_BK) if any(taken[name]) else side
    return out


def _uniform(*key: object) -> float:
    """A number in [0, 1) that the key alone decides."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
