"""Score two runs on the same samples and say how sure the difference is.

    python examples/03_evaluate.py [PATCH]

With a patch (for example ``runs/demo/audio/patch`` after ``pave demo``) it compares the base and the patch. Without one it
compares the base on eight frames and on two, which needs no training.
"""

import sys
import tempfile
from pathlib import Path

from pave.data.media import FrameSampling
from pave.data.samples import read_samples
from pave.evaluation.inference import VideoQA
from pave.evaluation.result import EvalResult, compare_results, rescore
from pave.evaluation.runner import evaluate
from pave.playground import base_path
from pave.playground.clips import render_clips, write_samples

CLIPS = 60


def show(name: str, result: EvalResult) -> None:
    print(f"\n{name}")
    for kind, score in [*result.by_type.items(), ("all", result.overall)]:
        low, high = 100 * score.interval.low, 100 * score.interval.high
        print(f"  {kind:<12} {100 * score.accuracy:5.1f} %   95 % interval {low:.1f} to {high:.1f}   n = {score.n_expected}")


def main(folder: Path, patch: str | None) -> None:
    for _ in render_clips(folder, "test", CLIPS, processes=0):
        pass
    write_samples(folder / "test.jsonl", "test", CLIPS, [["colour"], ["first_mover"], ["sound"]])
    samples = read_samples(folder / "test.jsonl")

    eight = FrameSampling(num_frames=8)
    qa = VideoQA.from_pretrained(base_path(), patch, sampling=eight, device="cpu")
    if patch is None:
        two = VideoQA(qa.model, qa.processor, sampling=FrameSampling(num_frames=2))
        runs = {"the base on two frames": (two, True), "the base on eight frames": (qa, True)}
    else:
        runs = {"the base": (qa, False), "the patch": (qa, True)}

    results = {}
    for name, (model, use_patch) in runs.items():
        # Answers are written batch by batch: an interrupted run goes on where it stopped.
        file = folder / f"{name}.jsonl"
        evaluate(model, samples, predictions=file, patch=use_patch, batch_size=30, max_new_tokens=4, progress=False)
        results[name] = rescore(file)  # scores come from the file alone, without a model
        show(name, results[name])

    (first, one), (second, other) = results.items()
    print(f"\n{second}, compared with {first}, on the same samples")
    for kind, pair in compare_results(one, other).items():
        low, high = 100 * pair.interval.low, 100 * pair.interval.high
        print(
            f"  {kind:<12} {100 * pair.difference:+5.1f} points   95 % interval {low:+.1f} to {high:+.1f}   p = {pair.p_value:.2g}"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), sys.argv[1] if len(sys.argv) > 1 else None)
