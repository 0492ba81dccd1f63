"""From files and a question to an answer, with patches or without."""

from pave.inference.counterfactuals import Counterfactual
from pave.inference.video_qa import Answer, SideSummary, VideoQA, default_sampling, trained_sampling

__all__ = ["Answer", "Counterfactual", "SideSummary", "VideoQA", "default_sampling", "trained_sampling"]
