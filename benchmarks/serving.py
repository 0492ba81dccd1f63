"""A load on a server: many clients, a fifth of their requests hostile, and what patches that share a batch cost.

    python benchmarks/serving.py                    # 500 requests from 16 clients, a few minutes on two cores
    python benchmarks/serving.py --requests 100
    python benchmarks/serving.py --device cuda

The server (``pave serve``, a process of its own) has the base inside the package and two patches with random weights. *load*: every fifth
request is hostile (damaged or long media, paths and hosts that are not allowed, keys that are not known); every good answer is compared
with the engine's own, and every hostile request must be a 4xx that says why. Memory (of the server and its children) and open files are
those after a first, smaller load and at the end. *single* and *mixed*: good requests of one patch against those of the base, two patches and both
together, in turns, requests a second; the ratio is mixed over single.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch

from pave import EncoderConfig, FusionConfig, LoraSettings, PatchConfig, SideChannelConfig, attach_patch, save_patch
from pave.inference import Engine, Request, Sampling
from pave.patching import patch_parameters
from pave.playground.clips import render_clip
from pave.playground.world import draw_scene
from pave.utils.embedded import PLAYGROUND
from pave.video_llms.loading import load_base

QUESTIONS = ("what sound is heard ?", "which object moves first ?", "what colour is the circle ?")
USES: dict[str, Any] = {"base": None, "one": {"one": 1.0}, "two": {"two": 1.0}, "both": {"one": 0.6, "two": 0.8}}
CLIPS, NEW_TOKENS = 4, 12


def write_patches(folder: Path) -> dict[str, Path]:
    """Two audio patches that act."""
    encoder = EncoderConfig(name="log_mel", settings={"n_mels": 16})
    channel = SideChannelConfig(width=16, encoder=encoder, fusion=FusionConfig(width=16, embed_width=16, num_heads=2))
    places = {}
    for seed, name in enumerate(("one", "two")):
        model, processor = load_base(PLAYGROUND)
        attach_patch(model, PatchConfig(side_channels={"audio": channel}, lora=LoraSettings(rank=4)), name=name)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in patch_parameters(model, name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
        save_patch(model, folder / name, name=name, processor=processor)
        places[name] = folder / name
    return places


def body(clip: Path, question: str, use: str) -> dict[str, Any]:
    """A good request."""
    parts = [{"type": "video_url", "video_url": {"url": str(clip)}}, {"type": "text", "text": question}]
    patches = [{"name": name, "strength": strength} for name, strength in (USES[use] or {}).items()]
    return {"model": PLAYGROUND, "messages": [{"role": "user", "content": parts}], "patches": patches, "max_tokens": NEW_TOKENS}


def hostile(number: int, clip: Path) -> dict[str, Any]:
    """A bad request, of the kind that its number says."""
    damaged = base64.b64encode(clip.read_bytes()[: 500 + 97 * (number % 20)]).decode()
    urls = (
        f"data:video/mp4;base64,{damaged}",
        "/etc/passwd",
        f"{clip.parent}/../../etc/hostname",
        "http://127.0.0.1:1/latest/meta-data",
        "https://localhost/a.mp4",
        "file-" + "0" * 32,
        "data:video/mp4;base64,!!!!",
        str(clip.parent / "long.mp4"),
    )
    bad = body(clip, QUESTIONS[0], "one")
    bad["messages"][0]["content"][0]["video_url"]["url"] = urls[number % len(urls)]
    return {**bad, "tools": []} if number % 9 == 8 else bad


class Server:
    """``pave serve`` in a process of its own."""

    def __init__(self, patches: dict[str, Path], clips: Path, device: str) -> None:
        options = [f"--patch={name}={folder}" for name, folder in patches.items()]
        command = [
            sys.executable,
            "-m",
            "pave.cli",
            "serve",
            "--port=0",
            f"--device={device}",
            f"--allow-path={clips}",
            *options,
        ]
        self.process = subprocess.Popen([*command, "--limit=media_seconds=20"], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        errors = self.process.stderr
        self.url = json.loads(next(line for line in errors if '"listening"' in line))["url"]
        threading.Thread(target=lambda: [None for _ in errors], daemon=True).start()

    def footprint(self) -> tuple[float, int]:
        """Megabytes of the server and its children, and its open files."""
        found = subprocess.run(
            ["ps", "-o", "rss=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        own = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        assert own is not None
        kilobytes = int(own[1]) + sum(map(int, found.stdout.split()))
        return kilobytes / 1024, len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def ask_all(url: str, bodies: list[dict[str, Any]], clients: int) -> tuple[list[tuple[int, Any, float]], float]:
    """Status, answer and seconds of every request, and the seconds of all."""
    with httpx.Client(timeout=300, limits=httpx.Limits(max_connections=clients)) as client, ThreadPoolExecutor(clients) as pool:

        def ask(one: dict[str, Any]) -> tuple[int, Any, float]:
            began = time.perf_counter()
            answer = client.post(f"{url}/v1/chat/completions", json=one)
            return answer.status_code, answer.json(), time.perf_counter() - began

        began = time.perf_counter()
        return list(pool.map(ask, bodies)), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        clips = [folder / "clips" / f"{number}.mp4" for number in range(CLIPS)]
        for number, clip in enumerate(clips):
            clip.parent.mkdir(exist_ok=True)
            render_clip(clip, draw_scene(3, "test", number))
        patches = write_patches(folder / "patches")
        engine = Engine.from_pretrained(PLAYGROUND, patches, device=options.device)
        sampling = Sampling(max_new_tokens=NEW_TOKENS)
        cases = [(clip, question, use) for clip in clips for question in QUESTIONS for use in USES]
        asked = [Request(clip, question, patches=USES[use], sampling=sampling) for clip, question, use in cases]
        own = [getattr(answer, "text", answer) for answer in engine.answer(asked, batch_size=1)]
        server = Server(patches, folder / "clips", options.device)
        try:
            measure(server, cases, own, options.requests, options.clients)
        finally:
            print(f"SIGTERM: the server ended with status {server.end()}")


def measure(server: Server, cases: list[Any], own: list[Any], count: int, clients: int) -> None:
    """Everything that is printed."""
    order = [number % len(cases) for number in range(count)]

    def wanted(numbers: range) -> list[dict[str, Any]]:
        return [hostile(n // 5, cases[0][0]) if n % 5 == 4 else body(*cases[order[n]]) for n in numbers]

    ask_all(server.url, wanted(range(min(count, 160))), clients)
    before = server.footprint()
    results, seconds = ask_all(server.url, wanted(range(count)), clients)
    good = [(n, result) for n, result in enumerate(results) if n % 5 != 4]
    bad = [result for n, result in enumerate(results) if n % 5 == 4]
    right = sum(
        status == 200 and answer["choices"][0]["message"]["content"] == own[order[n]] for n, (status, answer, _) in good
    )
    said = sum(400 <= status < 500 and bool(answer["error"]["message"]) for status, answer, _ in bad)
    times = sorted(took for _, (_, _, took) in good)
    print(f"load: {count} requests from {clients} clients in {seconds:.1f} s, {count / seconds:.1f} a second")
    print(
        f"  good: {right} of {len(good)} are the engine's own answers; p50 {pick(times, 0.5):.3f} s, p99 {pick(times, 0.99):.3f} s"
    )
    print(f"  hostile: {said} of {len(bad)} refused with a reason: {dict(Counter(status for status, _, _ in bad))}")
    after = server.footprint()
    print(f"  memory {before[0]:.0f} -> {after[0]:.0f} MB, open files {before[1]} -> {after[1]}")
    single = [body(clip, question, "one") for clip, question, _ in cases]
    mixed = [body(*case) for case in cases]
    rates: dict[str, list[float]] = {"single": [], "mixed": []}
    for _ in range(5):
        for name, bodies in (("single", single), ("mixed", mixed)):
            rates[name].append(len(bodies) / ask_all(server.url, bodies, clients)[1])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    shown = ", ".join(f"{name} {rate:.1f}" for name, rate in medians.items())
    print(f"requests a second: {shown}; ratio {medians['mixed'] / medians['single']:.2f}")


def pick(ordered: list[float], share: float) -> float:
    """A quantile."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    main()
