"""From files and a question to an answer, with patches or without."""

from pave.inference.counterfactuals import Counterfactual, Lender
from pave.inference.engine import Engine
from pave.inference.reading import ReadRequest, default_sampling, trained_sampling
from pave.inference.request import DEFAULT, Answer, Request, Sampling, SideSummary
from pave.inference.video_qa import VideoQA

__all__ = [
    "DEFAULT",
    "Answer",
    "Counterfactual",
    "Engine",
    "Lender",
    "ReadRequest",
    "Request",
    "Sampling",
    "SideSummary",
    "VideoQA",
    "default_sampling",
    "trained_sampling",
]
