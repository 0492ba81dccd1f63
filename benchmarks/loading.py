"""How long a patch takes to load onto a base of 7B shapes: all of it, reading and checking its files, and the rest.

    python benchmarks/loading.py              # LLaVA-OneVision 7B, the compact patch; half a minute
    python benchmarks/loading.py --profile    # and where the rest goes

The base's weights are memory that nobody wrote to, so that 15 GB of them take no memory. The files of the patch are in the disk's
cache after the first round, which is not counted. *Reading* is ``read_record`` and ``read_files``: bytes, hashes, checks. Times are those of
the processor, on one thread, so that what else the machine does is not in them.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from pave import PatchConfig, attach_patch, load_patch, save_patch, unload_patch
from pave.patching.checkpoint import read_files
from pave.patching.record import read_record
from pave.video_llms.known import KNOWN_CONFIGS


def unwritten(name: str) -> Any:
    """A base of these shapes in bfloat16."""
    config = transformers.AutoConfig.for_model(**KNOWN_CONFIGS[name])
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    return model.to_empty(device="cpu").eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=sorted(KNOWN_CONFIGS), default="llava-onevision-qwen2-7b")
    parser.add_argument("--width", type=int, default=1024, help="of the side features")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = unwritten(options.base)
    attach_patch(model, PatchConfig.compact(audio=options.width), name="saved")
    with tempfile.TemporaryDirectory() as work:
        folder = save_patch(model, Path(work) / "patch", name="saved")
        unload_patch(model, "saved")
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        whole, reading = [], []
        for _ in range(options.rounds + 1):
            start = time.process_time()
            load_patch(model, folder, name="loaded")
            whole.append(time.process_time() - start)
            unload_patch(model, "loaded")
            start = time.process_time()
            read_files(folder, read_record(folder))
            reading.append(time.process_time() - start)
        total, files = statistics.median(whole[1:]), statistics.median(reading[1:])
        print(f"{options.base}, {len(list(model.modules()))} modules; a patch of {size / 1e6:.1f} MB")
        print(f"loading {1e3 * total:.0f} ms: reading {1e3 * files:.0f} ms, the rest {1e3 * (total - files):.0f} ms")
        if options.profile:
            with cProfile.Profile() as profile:
                load_patch(model, folder, name="loaded")
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
