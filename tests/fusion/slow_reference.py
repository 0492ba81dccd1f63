"""The fusion module again, slowly: one video at a time, plain loops over frames, heads and channels.

Written from the description of the method alone. It shares no code with ``pave.fusion``; it reads a module's options and
weights and nothing else, so the two can be compared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def make_module(seed: int = 0, *, dtype: torch.dtype = torch.float64, **options):
    """A module whose parameters are all random: a fresh one is zero, which would compare equal to anything."""
    from pave.fusion import TemporalAlignedCrossAttention

    sizes = {"side_width": 5, "llm_width": 12, "query_width": 6, "width": 16, "embed_width": 7, "num_layers": 2, "num_heads": 2}
    module = TemporalAlignedCrossAttention(**{**sizes, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim > 1 else 1.0))
    return module.to(dtype).eval()


def reads_by_index(T: int, K: int, n: int) -> list[list[dict[int, float]]]:
    """For each frame, what it reads: each entry is one token step, as a mixture {side step: weight}."""
    if K == 0:
        return [[] for _ in range(T)]
    if K < T:
        mixtures = []
        for i in range(T):
            position = i * (K - 1) / (T - 1)
            low = math.floor(position)
            mixtures.append(mixture(low, min(low + 1, K - 1), position - low))
        chunks = [[m] for m in mixtures]
    else:
        a, r = divmod(K, T)
        chunks, k = [], 0
        for t in range(T):
            size = a + 1 if t < r else a
            chunks.append([{k + j: 1.0} for j in range(size)])
            k += size
    return [[m for u in range(max(0, t - n), min(T, t + n + 1)) for m in chunks[u]] for t in range(T)]


def mixture(left: int, right: int, weight: float) -> dict[int, float]:
    if left == right:
        return {left: 1.0}
    return {left: 1 - weight, right: weight}


def interval(frame_times: list[float], t: int) -> tuple[float, float]:
    """Halfway to the neighbours of another time; outwards at the ends by half of the only gap."""
    here = frame_times[t]
    earlier = [x for x in frame_times if x < here]
    later = [x for x in frame_times if x > here]
    if not earlier and not later:
        return -math.inf, math.inf
    below = (max(earlier) + here) / 2 if earlier else here - (min(later) - here) / 2
    above = (here + min(later)) / 2 if later else here + (here - max(earlier)) / 2
    return below, above


def reads_by_time(
    frame_times: list[float], side_times: list[float], n: int, seconds: float, empty_frames: str
) -> list[list[dict[int, float]]]:
    order = sorted(range(len(frame_times)), key=lambda t: frame_times[t])
    steps = sorted(range(len(side_times)), key=lambda k: side_times[k])
    result = []
    for here in frame_times:
        places = [p for p, t in enumerate(order) if frame_times[t] == here]
        first, final = order[max(0, places[0] - n)], order[min(len(order) - 1, places[-1] + n)]
        below, above = interval(frame_times, first)[0] - seconds, interval(frame_times, final)[1] + seconds
        reads = [{k: 1.0} for k in steps if below <= side_times[k] < above]
        if not reads and steps and empty_frames == "nearest":
            reads = [{min(steps, key=lambda k: (abs(side_times[k] - here), side_times[k])): 1.0}]
        if not reads and steps and empty_frames == "interpolate":
            before = [k for k in steps if side_times[k] < here]
            after = [k for k in steps if side_times[k] >= here]
            if before and after:
                left, right = before[-1], after[0]
                reads = [mixture(left, right, (here - side_times[left]) / (side_times[right] - side_times[left]))]
            else:
                reads = [{(before[-1] if before else after[0]): 1.0}]
        result.append(reads)
    return result


def slow_residual(
    module,
    queries_TSC: Tensor,
    side_KMC: Tensor,
    frame_times: list[float] | None = None,
    side_times: list[float] | None = None,
    prompt_LE: Tensor | None = None,
    n: int = 0,
    seconds: float = 0.0,
    empty_frames: str = "skip",
) -> Tensor:
    """The residual of one video, (T, S, E); frames that read nothing get zeros."""
    w = module.state_dict()
    T, S = queries_TSC.shape[:2]
    K = len(side_KMC)
    if module.alignment == "index":
        reads = reads_by_index(T, K, n)
    else:
        reads = reads_by_time(frame_times, side_times, n, seconds, empty_frames)
    mapped = [linear(step, w, "side_embed") for step in side_KMC]
    frames = []
    for t in range(T):
        token = w["query_table"][t] if "query_table" in w else linear(queries_TSC[t], w, "query_embed")
        if not reads[t]:
            frames.append(torch.zeros(S, module.llm_width, dtype=token.dtype))
            continue
        steps = [sum(weight * mapped[k] for k, weight in mix.items()) for mix in reads[t]]
        turn = None
        if module.rope:
            made = False
            if module.alignment == "timestamps" and empty_frames == "interpolate":
                made = not reads_by_time(frame_times, side_times, n, seconds, "skip")[t]
            turn = slow_positions(module, t, reads, T, K, S, side_KMC.shape[1], frame_times, side_times, n, made)
        for i in range(len(module.layers)):
            token = slow_layer(module, token, steps, w, f"layers.{i}", turn)
        frames.append(slow_output(module, token, w, prompt_LE))
    return torch.stack(frames)


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def slow_layer(module, token_SD, steps, w, name, turn) -> Tensor:
    query = linear(token_SD, w, f"{name}.query")
    keys, values, key_positions = [], [], []
    for place, step in enumerate(steps):
        for m in range(len(step)):
            keys.append(linear(step[m], w, f"{name}.key"))
            values.append(linear(step[m], w, f"{name}.value" if f"{name}.value.weight" in w else f"{name}.key"))
            if turn is not None:
                key_positions.append((turn["keys"][place], *turn["key_grid"][m]))
    H = token_SD.shape[1] // module.num_heads
    rows = []
    for s in range(len(token_SD)):
        heads = []
        for h in range(module.num_heads):
            part = slice(h * H, (h + 1) * H)
            q = query[s, part]
            ks = [key[part] for key in keys]
            if turn is not None:
                q = rotate(q, (turn["query"], *turn["query_grid"][s]))
                ks = [rotate(k, position) for k, position in zip(ks, key_positions)]
            scores = torch.stack([torch.dot(q, k) / math.sqrt(H) for k in ks])
            weights = torch.exp(scores - scores.max())
            weights = weights / weights.sum()
            heads.append(sum(weight * value[part] for weight, value in zip(weights, values)))
        rows.append(torch.cat(heads))
    token = token_SD + torch.stack(rows)
    norm = functional.layer_norm(token, token.shape[-1:], w[f"{name}.ffn.0.weight"], w[f"{name}.ffn.0.bias"], 1e-5)
    return token + exact_gelu(norm @ w[f"{name}.ffn.1.weight"].T) @ w[f"{name}.ffn.3.weight"].T


def slow_output(module, token, w, prompt_LE) -> Tensor:
    out = token
    if "output_mlp.0.weight" in w:
        out = linear(exact_gelu(linear(out, w, "output_mlp.0")), w, "output_mlp.2")
    if "output_norm.weight" in w:
        centred = out - out.mean(dim=-1, keepdim=True)
        out = centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-5)
        out = out * w["output_norm.weight"] + w["output_norm.bias"]
    if "gate.to_scalar.weight" in w:
        asked = linear(standardise(prompt_LE.mean(dim=0)), w, "gate.from_question")
        seen = standardise(token) @ w["gate.from_token.weight"].T
        out = out * 2 * torch.sigmoid(linear(exact_gelu(seen + asked), w, "gate.to_scalar"))
    return out


def exact_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def standardise(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-5)


def rotate(x: Tensor, position: tuple[float, float, float]) -> Tensor:
    """Rotate-half with the frequencies split over time, row and column."""
    half = len(x) // 2
    spatial = 3 * len(x) // 16
    bounds = (half - 2 * spatial, half - spatial)
    y = x.clone()
    for c in range(half):
        axis = 0 if c < bounds[0] else 1 if c < bounds[1] else 2
        angle = position[axis] * 10000.0 ** (-2 * c / len(x))
        y[c] = x[c] * math.cos(angle) - x[c + half] * math.sin(angle)
        y[c + half] = x[c + half] * math.cos(angle) + x[c] * math.sin(angle)
    return y


def slow_positions(module, t, reads, T, K, S, M, frame_times, side_times, n, made) -> dict:
    """Positions in time and on the grid, from the description: truncated linspaces, or seconds over the mean gap."""
    side = math.isqrt(max(S, M))
    if module.alignment == "index":
        longer = max(T, K)
        query = int(torch.linspace(0, longer - 1, T).long()[t])
        if K < T:
            keys = list(range(max(0, t - n), min(T, t + n + 1)))
        else:
            keys = [next(iter(mix)) for mix in reads[t]]
    else:
        distinct = sorted(set(frame_times))
        gap = (distinct[-1] - distinct[0]) / (len(distinct) - 1) if len(distinct) > 1 else 1.0
        query = frame_times[t] / gap
        keys = [(frame_times[t] if made else side_times[next(iter(mix))]) / gap for mix in reads[t]]
    return {"query": query, "keys": keys, "query_grid": slow_grid(S, side, S < M), "key_grid": slow_grid(M, side, True)}


def slow_grid(tokens: int, side: int, spread: bool) -> list[tuple[int, int]]:
    g = math.isqrt(tokens)
    line = torch.linspace(0, side, 2 * g + 1).long()[1:-1][::2].tolist() if spread else list(range(side))
    return [(row, column) for row in line for column in line]
