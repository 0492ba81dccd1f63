"""Time and memory of the fusion module: ours, a plain loop over videos, and the module's matrix products alone.

    python benchmarks/fusion.py                      # sizes of the paper, 0.5B and 7B, a few minutes on two cores
    python benchmarks/fusion.py --llm-width 896 --dtype float32 --quick
    python benchmarks/fusion.py --device cuda --dtype bfloat16
    python benchmarks/fusion.py --scaling            # K up to a million side tokens: time and peak memory
    python benchmarks/fusion.py --prefill            # a randomly initialised LLaVA-OneVision 0.5B, with and without a merged patch

Sizes: 32 frames of 196 tokens, D 512, 4 heads, 2 layers (the published module). *products* are the linear layers and the two products
of attention of every layer, on contiguous tensors of the shapes at hand, nothing else. *loop* is one video at a time: project its side
tokens, take each frame's chunk, attend, as the method describes it. Every number is the median over rounds in which the three take turns,
so that what else the machine does hits all of them; ratios are ours / products and ours / loop.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from prefill import measure_prefill, timed
from torch import Tensor

from pave.fusion import TemporalAlignedCrossAttention
from pave.tokens import SideTokens, VideoTokens

T, S, D, HEADS, LAYERS, SIDE_WIDTH = 32, 196, 512, 4, 2, 1024
SIDES = {"64 x 1": (64, 1), "300 x 4": (300, 4), "32 x 576": (32, 576), "2000 x 1": (2000, 1)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make(llm_width: int, dtype: torch.dtype, device: str) -> TemporalAlignedCrossAttention:
    """The published module with an output norm that is open, as in the middle of training."""
    torch.manual_seed(0)
    module = TemporalAlignedCrossAttention(
        side_width=SIDE_WIDTH, llm_width=llm_width, query_width=llm_width, width=D, embed_width=D, num_heads=HEADS,
        num_layers=LAYERS, alignment="index",
    )  # fmt: skip
    assert module.output_norm is not None
    torch.nn.init.ones_(module.output_norm.weight)
    return module.to(device, dtype)


def inputs(
    counts: list[int], K: int, M: int, llm_width: int, dtype: torch.dtype, device: str
) -> tuple[VideoTokens, SideTokens]:
    """Videos of different numbers of frames, each with side steps in proportion."""
    B, frames = len(counts), max(counts)
    valid_BT = torch.arange(frames)[None] < torch.tensor(counts)[:, None]
    video = VideoTokens(torch.randn(B, frames, S, llm_width, dtype=dtype).to(device), valid_BT.to(device), None, grid=(14, 14))
    steps = [max(1, K * count // T) for count in counts]
    valid_BK = torch.arange(max(steps))[None] < torch.tensor(steps)[:, None]
    embeds = torch.randn(B, max(steps), M, SIDE_WIDTH, dtype=dtype)
    return video, SideTokens(embeds.to(device), valid_BK.to(device), None)


def heads(tokens: Tensor) -> Tensor:
    """(frames, tokens, D) to (frames, heads, tokens, head width)."""
    return tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def loop(module: TemporalAlignedCrossAttention, video: VideoTokens, side: SideTokens) -> Tensor:
    """One video at a time, one frame after the other."""
    out = torch.zeros_like(video.post_projector_BTSE)
    assert module.query_embed is not None and module.output_mlp is not None and module.output_norm is not None
    rows = []
    for b in range(len(out)):
        frames, steps = int(video.valid_BT[b].sum()), int(side.valid_BK[b].sum())
        mapped = module.side_embed(side.embeds_BKMC[b, :steps])
        x = module.query_embed(video.post_projector_BTSE[b, :frames])
        share, rest = divmod(steps, frames)
        ends = [(t + 1) * share + min(t + 1, rest) for t in range(frames)]
        for layer in module.layers:
            query, key, value = layer.query(x), layer.key(mapped), layer.value(mapped)
            attended = []
            for t in range(frames):
                chunk = slice(ends[t - 1] if t else 0, ends[t])
                q, k, v = heads(query[t][None]), heads(key[chunk].flatten(0, 1)[None]), heads(value[chunk].flatten(0, 1)[None])
                attended.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[0])
            x = x + torch.stack(attended)
            x = x + layer.ffn(x)
        rows.append(module.output_norm(module.output_mlp(x)))
    for b, row in enumerate(rows):
        out = torch.index_put(out, (torch.tensor(b), torch.arange(len(row))), row) if row.requires_grad else _put(out, b, row)
    return out


def _put(out: Tensor, b: int, row: Tensor) -> Tensor:
    out[b, : len(row)] = row
    return out


def products(module: TemporalAlignedCrossAttention, video: VideoTokens, side: SideTokens, backward: bool) -> Callable[[], None]:
    """The matrix products of ours on real (not padded) tokens: each linear layer once, attention as two batched products a frame."""
    tokens = int(video.valid_BT.sum()) * S
    steps = int(side.valid_BK.sum()) * side.embeds_BKMC.shape[2]
    frames = int(video.valid_BT.sum())
    like = {"dtype": module.side_embed.weight.dtype, "device": module.side_embed.weight.device}
    assert module.query_embed is not None and module.output_mlp is not None
    linears: list[tuple[torch.nn.Linear, int]] = [(module.side_embed, steps), (module.query_embed, tokens)]
    for layer in module.layers:
        linears += [
            (layer.query, tokens),
            (layer.key, steps),
            (layer.value, steps),
            (layer.ffn[1], tokens),
            (layer.ffn[3], tokens),
        ]
    linears += [(module.output_mlp[0], tokens), (module.output_mlp[2], tokens)]
    per_frame = max(1, steps // frames)
    pairs = [(torch.randn(rows, linear.in_features, **like), linear.weight.detach()) for linear, rows in linears]
    q = torch.randn(frames * HEADS, S, D // HEADS, **like)
    k = torch.randn(frames * HEADS, per_frame, D // HEADS, **like)
    scores = torch.randn(frames * HEADS, S, per_frame, **like)

    def run() -> None:
        for x, weight in pairs:
            y = x @ weight.T
            if backward:
                y @ weight  # gradient of the input
                y.T @ x  # gradient of the weight
        for _ in range(LAYERS):
            for _ in range(3 if backward else 1):
                q @ k.transpose(1, 2)
                scores @ k

    return run


def with_backward(run: Callable[[], Tensor], module: torch.nn.Module) -> Callable[[], None]:
    """Forward and backward to every parameter; the video's tokens take a gradient as they do under LoRA below them."""

    def both() -> None:
        module.zero_grad(set_to_none=True)
        run().float().sum().backward()

    return both


def compare(llm_width: int, dtype_name: str, device: str, rounds: int, names: list[str]) -> list[dict[str, object]]:
    """One row for each size."""
    dtype = DTYPES[dtype_name]
    module = make(llm_width, dtype, device)
    rows: list[dict[str, object]] = []
    batches = {"1": [T], "8 ragged": [32, 8, 16, 32, 24, 12, 32, 20]}
    for side_name in names:
        K, M = SIDES[side_name]
        for batch_name, counts in batches.items():
            video, side = inputs(counts, K, M, llm_width, dtype, device)
            with torch.no_grad():
                ours, plain = module(video, side), loop(module, video, side)
                scale = float(plain.float().abs().max())
                difference = float((ours - plain).float().abs().max()) / scale
            for backward in (False, True):
                ways: dict[str, Callable[[], object]] = {
                    "ours": lambda v=video, s=side: module(v, s),
                    "loop": lambda v=video, s=side: loop(module, v, s),
                    "products": products(module, video, side, backward),
                }
                if backward:
                    ways |= {name: with_backward(ways[name], module) for name in ("ours", "loop")}  # type: ignore[arg-type]
                seconds: dict[str, list[float]] = {name: [] for name in ways}
                for round_number in range(rounds + 1):
                    for name, way in ways.items():
                        with torch.set_grad_enabled(backward and name != "products"):
                            taken = timed(way, device)
                        if round_number:
                            seconds[name].append(taken)
                median = {name: statistics.median(values) for name, values in seconds.items()}
                row = {
                    "E": llm_width, "dtype": dtype_name, "side": side_name, "batch": batch_name,
                    "pass": "forward+backward" if backward else "forward", "ours_ms": 1e3 * median["ours"],
                    "ours/products": statistics.median(a / b for a, b in zip(seconds["ours"], seconds["products"])),
                    "ours/loop": statistics.median(a / b for a, b in zip(seconds["ours"], seconds["loop"])),
                    "difference": difference,
                }  # fmt: skip
                rows.append(row)
                print(
                    f"{llm_width:>5} {dtype_name:<9} {side_name:<9} {batch_name:<9} {row['pass']:<17} {row['ours_ms']:>9.1f} "
                    f"{row['ours/products']:>14.2f} {row['ours/loop']:>10.2f} {difference:>11.1e}",
                    flush=True,
                )
    return rows


def one_scale(K: int, dtype_name: str) -> None:
    """In a process of its own: seconds and peak memory of one forward pass over K side steps of one token."""
    module = make(896, DTYPES[dtype_name], "cpu")
    video, side = inputs([T], K, 1, 896, DTYPES[dtype_name], "cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        module(video, SideTokens(side.embeds_BKMC[:, :64], side.valid_BK[:, :64], None))
        start = time.perf_counter()
        module(video, side)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    given = side.embeds_BKMC.numel() * side.embeds_BKMC.element_size()
    print(json.dumps({"K": K, "seconds": seconds, "extra_bytes": (peak - before) * 1024, "side_bytes": given}))


def scaling(dtype_name: str) -> list[dict[str, float]]:
    """Time and peak memory as K grows to a million."""
    rows = []
    print(f"{'K':>9} {'seconds':>9} {'us a step':>10} {'bytes a step beyond its own':>28}")
    for K in (1_000, 10_000, 100_000, 1_000_000):
        done = subprocess.run(
            [sys.executable, __file__, "--one-scale", str(K), "--dtype", dtype_name], capture_output=True, text=True, check=True
        )
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(f"{K:>9} {row['seconds']:>9.2f} {1e6 * row['seconds'] / K:>10.2f} {row['extra_bytes'] / K:>28.0f}", flush=True)
    return rows


def prefill(rounds: int, dtype_name: str, device: str) -> dict[str, object]:
    """Seconds of a prompt of 32 frames through a randomly initialised LLaVA-OneVision 0.5B, with a patch whose LoRA is merged."""
    from pave import PatchConfig

    compact = PatchConfig.compact(audio=128)
    merged = PatchConfig(side_channels=compact.side_channels, lora=None)  # merged LoRA costs nothing
    row = measure_prefill(merged, rounds=rounds, dtype=dtype_name, device=device)
    print(
        f"prefill of {row.tokens} tokens, 0.5B, {dtype_name}: base {row.base_seconds:.2f} s, patched / base {row.ratio:.4f}, "
        f"in the fusion {row.fusion_seconds:.2f} s"
    )
    return row.to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm-width", type=int, nargs="+", default=[896, 3584])
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the two smaller side streams only")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--prefill", action="store_true")
    parser.add_argument("--one-scale", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", help="a JSON file for the rows")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one_scale:
        return one_scale(given.one_scale, given.dtype[0])
    rows: object
    if given.scaling:
        rows = scaling(given.dtype[0])
    elif given.prefill:
        rows = prefill(given.rounds, given.dtype[0], given.device)
    else:
        print(
            f"{'E':>5} {'dtype':<9} {'side':<9} {'batch':<9} {'pass':<17} {'ours ms':>9} {'ours/products':>14} {'ours/loop':>10} {'difference':>11}"
        )
        names = list(SIDES)[:2] if given.quick else list(SIDES)
        rows = [
            r for E in given.llm_width for dtype in given.dtype for r in compare(E, dtype, given.device, given.rounds, names)
        ]
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump(
                {"torch": torch.__version__, "threads": given.threads, "device": given.device, "rows": rows}, file, indent=2
            )
    return None


if __name__ == "__main__":
    main()
