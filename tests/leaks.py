"""How much a guesser learns from what it should not be able to learn from."""

from collections import Counter, defaultdict

import numpy as np
import torch

from pave.playground.world import COLOURS, LIGHTS, NUM_SEGMENTS, SHAPES, Scene


def limit(chance: float, count: int) -> float:
    """What a guesser at chance stays below, but for one case in about 30,000."""
    return chance + 4 * np.sqrt(chance * (1 - chance) / count)


def learnt_table(pairs: list[tuple[object, str]]) -> float:
    """Accuracy on the second half of always giving the answer that was most frequent for the same clue in the first half."""
    half = len(pairs) // 2
    seen: dict[object, Counter] = defaultdict(Counter)
    for clue, answer in pairs[:half]:
        seen[clue][answer] += 1
        seen[None][answer] += 1
    guess = {clue: counts.most_common(1)[0][0] for clue, counts in seen.items()}
    return float(np.mean([guess.get(clue, guess[None]) == answer for clue, answer in pairs[half:]]))


def visible(scene: Scene) -> np.ndarray:
    """Everything there is to see, as numbers, the first object of the answer's choices first."""
    order = sorted((0, 1), key=lambda i: scene.things[i].name)
    moves = [float(order[0] == m) for m in scene.movers]
    lit = [
        [float(any(f.segment == s and f.kind == kind for f in scene.flashes)) for kind in LIGHTS] for s in range(NUM_SEGMENTS)
    ]
    looks = [
        [scene.things[i].colour == c for c in COLOURS]
        + [scene.things[i].shape == s for s in SHAPES]
        + [scene.things[i].lane == 0]
        for i in order
    ]
    lit_mover = [float(any(f.segment == s for f in scene.flashes)) * (2 * moves[s] - 1) for s in range(NUM_SEGMENTS)]
    rest = [*(v / 70 for v in scene.background), float(scene.lanes == "rows"), *(scene.things[i].start for i in order)]
    return np.array([*moves, *np.ravel(lit), *np.ravel(looks), *lit_mover, sum(moves), *rest], dtype=np.float32)


def fitted(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Accuracy on the second half of a small network that was fitted to the first half."""
    torch.manual_seed(0)
    half = len(labels) // 2
    x, y = torch.from_numpy((features - features.mean(0)) / (features.std(0) + 1e-6)), torch.from_numpy(labels)
    net = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 32), torch.nn.ReLU(), torch.nn.Linear(32, classes))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(net(x[:half]), y[:half])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((net(x[half:]).argmax(1) == y[half:]).float().mean())
