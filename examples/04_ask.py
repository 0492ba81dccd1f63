"""Ask a Video LLM about a video file, with a patch beside the bare base if there is one.

    python examples/04_ask.py [VIDEO] [PATCH]

Without a video it renders one, without a patch the base answers alone. On the command line:
``pave ask VIDEO "what sound is heard ?" --patch PATCH --compare``.
"""

import sys
import tempfile
from pathlib import Path

from pave.evaluation.inference import VideoQA
from pave.playground import base_path
from pave.playground.clips import render_clip
from pave.playground.world import draw_scene

QUESTIONS = ["which object moves first ?", "which light flashes first ?", "what sound is heard ?"]


def main(folder: Path, video: str | None, patch: str | None) -> None:
    if video is None:
        scene = draw_scene(seed=0, split="test", index=3)
        video = str(folder / "clip.mp4")
        render_clip(Path(video), scene)
        print(
            f"in the clip: {scene.mover_at(0).name} moves first, {scene.flashes[0].kind} flashes, {scene.sounds[0].kind} sounds"
        )

    # One object holds the base, its processor and the patch, and knows which frames to look at. A large base on a GPU:
    # VideoQA.from_pretrained("llava-hf/llava-onevision-qwen2-7b-ov-hf", patch, device="cuda", dtype="bfloat16")
    qa = VideoQA.from_pretrained(base_path(), patch, device="cpu")
    for question in QUESTIONS:
        print(question)
        for name in ("base", "patch")[: 1 if patch is None else 2]:
            answer = qa.ask(video, question, patch=name == "patch", max_new_tokens=4)
            heard = "".join(f"; {channel}: {side}" for channel, side in answer.side_channels.items())
            print(f"  {name}: {answer.text:<16} ({len(answer.frame_times)} frames{heard}; {answer.seconds:.2f} s)")
    if patch is None:
        print("the base was never taught to hear: its answer to the last question is a guess")


if __name__ == "__main__":
    given = [*sys.argv[1:], None, None]
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), given[0], given[1])
