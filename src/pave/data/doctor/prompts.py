"""What the base's processor makes of a sample: the very batch that training would get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from pave.data.collator import PatchCollator
from pave.data.doctor.setup import Setup
from pave.data.items import PatchItem, SampleError
from pave.data.media import VideoClip
from pave.data.samples import Sample
from pave.data.sharing import IGNORE
from pave.side_channels.base import SideFeatures
from pave.video_llms.loading import load_processor


class PromptCheck:
    """Counts tokens.

    Args:
        setup: with a base.

    Raises:
        ValueError: if the base cannot be had.
    """

    def __init__(self, setup: Setup) -> None:
        assert setup.base is not None
        config, processor = load_processor(setup.base, revision=setup.revision)
        self._collator = PatchCollator(
            processor, config, setup.channels, max_length=setup.max_length, broken_features="missing"
        )
        self._most_of_answer = setup.max_answer_tokens

    def check(self, sample: Sample, clip: VideoClip, side: Mapping[str, SideFeatures | None]) -> Iterator[tuple[str, str]]:
        """Codes and messages. A sample without an answer is not looked at."""
        if all(answer is None for _, answer in sample.turns):
            return
        try:
            batch = self._collator([PatchItem(sample.id, clip.frames_FHWC, clip.times_F, sample.turns, side)])
        except SampleError as error:
            if error.code != "features-width":  # said of the file already
                yield error.code, " ".join(str(error).removeprefix(f"sample {sample.id!r}: ").split())
            return
        learnt = groupby(batch["labels"][0].tolist(), lambda label: label != IGNORE)
        longest = max(len(list(run)) for is_answer, run in learnt if is_answer)
        if longest > self._most_of_answer:
            yield "answer-long", f"an answer has {longest} tokens, the budget is {self._most_of_answer}"
