"""Finished runs of the evidence with answers as told."""

import os

from pave.evaluation.predictions import Prediction, PredictionFile


def leave(run, root, right, name="as it is", clips="", **settings):
    """A finished run whose answers to one question on each video are right or wrong as told, ``clips`` in front of the videos' names,
    ``settings`` in the file's first line."""
    folder = run.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    file = PredictionFile(folder / f"answers-{''.join(c if c.isalnum() or c in '.-' else '_' for c in name)}.jsonl", settings)
    file.append(
        [
            Prediction(
                id=f"{kind}{i}", type=kind, video=f"{clips}v{i}", question="?", references=("a",), prediction="a" if ok else "b"
            )
            for kind, values in right.items()
            for i, ok in enumerate(values)
        ]
    )
    file.finish(list(file.done))
    return run


def dies(*_):
    """What a process looks like that the system kills."""
    os._exit(9)
