"""Attach a patch to a frozen Video LLM: it starts as an exact identity, can be switched off, saved, taken off and loaded.

    python examples/01_attach_a_patch.py [FOLDER]

Works on any supported base; here it is the small one inside the package, and the video is rendered. The sound is handed to
the model by hand, to show what enters a call. ``PatchCollator`` and ``VideoQA`` do this for you (see 04_ask.py).
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from pave import EncoderConfig, PatchConfig, SideTokens, attach_patch, detach_patch, load_patch, save_patch
from pave.data.media import FrameSampling, read_audio, read_frames
from pave.patching import patch_parameters
from pave.playground import base_path
from pave.playground.clips import render_clip
from pave.playground.world import draw_scene
from pave.side_channels import build_encoder


@torch.no_grad()
def main(folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(base_path()).eval()
    processor = AutoProcessor.from_pretrained(base_path())
    video = folder / "clip.mp4"
    render_clip(video, draw_scene(seed=0, split="test", index=0))

    # The base's own inputs: frames and a question.
    clip = read_frames(video, FrameSampling(num_frames=8))
    question = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what sound is heard ?"}]}
    prompt = processor.apply_chat_template([question], add_generation_prompt=True)
    batch = processor(text=[prompt], videos=[clip.frames_FHWC], do_sample_frames=False, return_tensors="pt")

    # What the patch adds: side tokens, each step with its time, and the times of the frames on the same clock.
    encoder = build_encoder(EncoderConfig(name="log_mel"))
    sound = read_audio(video, encoder.sample_rate)
    features = encoder.encode(sound)
    side = SideTokens.from_videos([features.features_KMC], [features.times_K])
    heard = {"side_channels": {"audio": side}, "frame_times": clip.times_F[None]}
    print(f"{len(clip.times_F)} frames from {clip.times_F[0]:.2f} to {clip.times_F[-1]:.2f} s; {side}")

    base_logits = model(**batch).logits
    attach_patch(model, PatchConfig.compact(audio=encoder.width))
    print("a fresh patch gives the base's logits, bit for bit:", torch.equal(model(**batch, **heard).logits, base_logits))

    torch.manual_seed(0)
    for parameter in patch_parameters(model):  # stands in for training
        parameter += 0.05 * torch.randn_like(parameter)
    acting = model(**batch, **heard).logits
    print(f"a patch that is not fresh changes them by up to {(acting - base_logits).abs().max():.2f}")
    with model.patch_disabled():
        print("disabled, it is the base again:", torch.equal(model(**batch, **heard).logits, base_logits))
    print("without its sound, it is the base too:", torch.equal(model(**batch).logits, base_logits))

    saved = save_patch(model, folder / "patch", processor=processor, storage_dtype="float32")
    for file in sorted(path for path in saved.rglob("*") if path.is_file()):
        print(f"  {file.relative_to(folder)}: {file.stat().st_size:,} bytes")
    detach_patch(model)
    print("detached, the base's logits are back:", torch.equal(model(**batch).logits, base_logits))
    load_patch(model, saved, processor=processor)
    print("loaded again, it acts as before:", torch.equal(model(**batch, **heard).logits, acting))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
