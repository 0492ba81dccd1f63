"""What several patches on one base cost: a mixed batch against a batch of one patch, memory, and loading a patch.

    python benchmarks/many_patches.py                              # LLaVA-OneVision 0.5B's language model, a few minutes on two cores
    python benchmarks/many_patches.py --layers 4 --frames 1        # a minute
    python benchmarks/many_patches.py --device cuda --dtype bfloat16 --frames 8

A randomly initialised language model of LLaVA-OneVision 0.5B and 8 prompts with a video that is encoded already. *one*: every row uses
one patch. *four*: two rows each of four patches. *base*: no row uses a patch. Prefill is the whole prompt, fusion included; decoding
hands the cache of one step to the next. Every number is the median over rounds in which the three take turns, so that what else the
machine does hits all of them; ratios are rows a second of *four* over those of *one*.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from pave import PatchConfig, SideTokens, attach_patch, load_patch, save_patch, unload_patch
from pave.patching import EncodedVideo, patch_parameters
from pave.patching.checkpoint import read_files, read_record
from pave.video_llms import VideoLayout
from pave.video_llms.known import KNOWN_CONFIGS

ROWS, NAMES, WIDTH, TEXT = 8, ("a", "b", "c", "d"), 128, 32
PLANS: dict[str, Any] = {
    "base": [None] * ROWS,
    "one": ["a"] * ROWS,
    "four": [name for name in NAMES for _ in range(2)],
}


def build(layers: int, dtype: torch.dtype, device: str) -> Any:
    values = KNOWN_CONFIGS["llava-onevision-qwen2-0.5b"]
    config = transformers.AutoConfig.for_model(
        **{
            **values,
            "vision_config": {**values["vision_config"], "num_hidden_layers": 1},  # it is not run
            "text_config": {**values["text_config"], "num_hidden_layers": layers, "vocab_size": 152000},
        }
    )
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval().requires_grad_(False)


def prompts(model: Any, frames: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The arguments of a call of ``ROWS`` prompts, each with a video of ``frames`` frames and its sound."""
    layout = VideoLayout(frames, (14, 14), trailing=1)
    tokens = torch.randn(ROWS, layout.num_tokens, model.config.get_text_config().hidden_size).to(device, dtype)
    video = torch.full((ROWS, layout.num_tokens), model.config.video_token_id)
    ids = torch.cat([video, torch.randint(0, 1000, (ROWS, TEXT))], dim=1).to(device)
    times = (torch.arange(frames).double() + 0.5).expand(ROWS, -1)
    side = SideTokens(torch.randn(ROWS, 2 * frames, 1, WIDTH), times_BK=(torch.arange(2 * frames) / 2 + 0.25).expand(ROWS, -1))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "vision_features": EncodedVideo.of_tensors({"pooler_output": tokens}, "video", [layout] * ROWS, dtype),
        "side_channels": {"audio": side},
        "frame_times": times,
    }


def wait(device: str) -> float:
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


@torch.no_grad()
def one_round(model: Any, call: dict[str, Any], plan: Any, steps: int, device: str) -> tuple[float, float]:
    """Seconds of the prefill, and of decoding."""
    start = wait(device)
    output = model(**call, patches=plan, use_cache=True, logits_to_keep=1)
    filled = wait(device)
    mask = call["attention_mask"]
    for _ in range(steps):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        ids = output.logits[:, -1].argmax(-1)[:, None]
        output = model(input_ids=ids, attention_mask=mask, past_key_values=output.past_key_values)
    return filled - start, wait(device) - filled


def bytes_of(model: Any) -> int:
    return sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())


def memory(model: Any) -> None:
    """The tensors of the model are those of the base and of its patches, and go again."""
    base = bytes_of(model)
    for name in NAMES:
        attach_patch(model, PatchConfig.compact(audio=WIDTH), name=name)
    own = [sum(p.nbytes for p in patch_parameters(model, name)) for name in NAMES]
    buffers = sum(b.nbytes for b in model.pave_patches.buffers())
    print(f"base {base / 1e6:.1f} MB, each patch {own[0] / 1e6:.1f} MB, with four {bytes_of(model) / 1e6:.1f} MB", end="")
    print(f" (base + patches: {(base + sum(own) + buffers) / 1e6:.1f} MB)")


def loading(model: Any, rounds: int) -> None:
    """A patch from a disk whose pages are in memory: all of it, and all but reading and checking the files."""
    with tempfile.TemporaryDirectory() as work:
        folder = save_patch(model, Path(work) / "patch", name="a")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        whole, reading = [], []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            load_patch(model, folder, name="loaded")
            whole.append(time.perf_counter() - start)
            start = time.perf_counter()
            read_files(folder, read_record(folder))
            reading.append(time.perf_counter() - start)
            unload_patch(model, "loaded")
    total, files = statistics.median(whole[1:]), statistics.median(reading[1:])
    print(f"loading a patch of {size / 1e6:.1f} MB: {1e3 * total:.0f} ms, of which reading {1e3 * files:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--steps", type=int, default=16, help="tokens that are decoded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    model = build(options.layers, dtype, options.device)
    memory(model)
    call = prompts(model, options.frames, dtype, options.device)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in PLANS}
    for number in range(options.rounds + 1):
        for name in PLANS if number % 2 else reversed(PLANS):
            taken = one_round(model, call, PLANS[name], options.steps, options.device)
            if number:
                seconds[name].append(taken)
    print(f"{options.layers} layers, {ROWS} rows of {call['input_ids'].shape[1]} tokens, {options.dtype}, {options.device}")
    for part, what in enumerate((f"prefill of {ROWS} rows", f"{options.steps} steps of decoding")):
        medians = {name: statistics.median(pair[part] for pair in pairs) for name, pairs in seconds.items()}
        ratio = statistics.median(o[part] / f[part] for o, f in zip(seconds["one"], seconds["four"], strict=True))
        print(f"{what}: " + ", ".join(f"{name} {s:.3f} s" for name, s in medians.items()) + f"; four / one {ratio:.3f}")
    loading(model, options.rounds)


if __name__ == "__main__":
    main()
