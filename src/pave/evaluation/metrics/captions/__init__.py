"""Caption scores: what the COCO caption evaluation gives, without Java except for METEOR.

Texts go through ``caption_tokens`` first: "The dog isn't here." becomes "the dog is n't here".
"""

from __future__ import annotations

from pave.evaluation.metrics.captions.meteor import check_meteor, meteor
from pave.evaluation.metrics.captions.ptb import caption_tokens
from pave.evaluation.metrics.captions.scores import bleu, cider, rouge_l

__all__ = ["bleu", "caption_tokens", "check_meteor", "cider", "meteor", "rouge_l"]
