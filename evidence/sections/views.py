"""Where the patches look, and what they answer: clips chosen by a rule, and numbers over all clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evidence.attention import Looker, summary
from evidence.attention_figure import draw_look
from evidence.figures import FOLDER, add_figure
from evidence.plan import BASE, PATCH, VIDEO_ONLY, Plan, Section, compared_patches, run, spoken
from evidence.runs import Run
from evidence.scores import accuracy
from evidence.tables import markdown_table
from evidence.worlds import WORLDS
from pave.config import EncoderConfig, PatchConfig
from pave.data.media import read_audio
from pave.data.samples import Sample, read_samples
from pave.evaluation.predictions import Prediction
from pave.evaluation.report import SoundView
from pave.utils.files import atomic_write_text

PAGE = "answers.md"
_RATE = 16_000
_UNALIGNED = "the audio patch without alignment"
_NINE = "the high_fps patch with 9 tokens a dense frame"
_RULE = (
    "Clips are taken by one rule, from the first seed: of every question type, the first question in the order of the "
    "test set that the patch answers right, and the first that it answers wrong, if there is one."
)
_LEGEND = (
    "A cell is the attention weight softmax(q·k/√d) of the fusion module, averaged over heads, in the line of a frame "
    "over its video tokens as well: clear blue is all of it, pale none, grey what the frame may attend to by its time. "
    "*Side steps* are how far the features of each step lie from their mean. Orange is the time of the event that was "
    "rendered into the channel, which the model is not told; the coloured borders of some frames are the lights of the "
    "world, part of the picture. Below, the frame with the black mark: the nearest that may attend to the beginning of "
    "the event, or the middle one where there is none; its video tokens have numbers. Where a step has several tokens, "
    "each is a cell at its place, and of the video tokens two are shown, the one with most of its attention on the "
    "event and the one with least (the first and the last without an event). Pictures in its columns are the dense "
    "frames, cameras or views as the encoder hands them over, a pixel for each cell."
)


@dataclass(frozen=True)
class Shown:
    """A question, and what each variant answered."""

    sample: Sample
    answers: Mapping[str, Prediction]

    @property
    def right(self) -> bool:
        """Whether the patch is."""
        return self.answers[PATCH].correct


def nine_tokens() -> PatchConfig:
    """The dense frames as 3 x 3 tokens each: the light is in the middle one."""
    encoder = EncoderConfig(name="frames_pixels", settings={"fps": None, "grid": 3, "detail": 2})
    return WORLDS["high_fps"].patch(encoder)


def _first_seed(world: str, variant: str, patch: PatchConfig | None, plan: Plan) -> Run:
    return run(world, variant, patch, plan, plan.seeds[0] if patch is not None else 0)


def variants(world: str, plan: Plan) -> dict[str, Run]:
    """The comparison, with the first seed alone."""
    return {variant: _first_seed(world, variant, patch, plan) for variant, patch in compared_patches(world).items()}


def _further(plan: Plan) -> dict[str, Run]:
    unaligned = WORLDS["audio"].patch(neighbourhood_seconds=1000.0)
    return {
        _UNALIGNED: _first_seed("audio", _UNALIGNED, unaligned, plan),
        _NINE: _first_seed("high_fps", _NINE, nine_tokens(), plan),
    }


def _runs(plan: Plan) -> list[Run]:
    return [run for world in WORLDS for run in variants(world, plan).values()] + list(_further(plan).values())


def choose(samples: Sequence[Sample], answers: Mapping[str, Mapping[str, Prediction]]) -> dict[str, list[Shown]]:
    """By question type, the first question that the patch answers right and the first that it answers wrong.

    Args:
        samples: in the order of the test set.
        answers: by variant and by the sample's id.
    """
    pairs: dict[str, dict[bool, Shown]] = {}
    for sample in samples:
        shown = Shown(sample, {variant: by_id[sample.id] for variant, by_id in answers.items()})
        pairs.setdefault(sample.type, {}).setdefault(shown.right, shown)
    return {kind: [pair[right] for right in (True, False) if right in pair] for kind, pair in pairs.items()}


def _chosen(world: str, plan: Plan, root: Path) -> dict[str, list[Shown]]:
    answers = {variant: {p.id: p for p in run.answers(root)} for variant, run in variants(world, plan).items()}
    return choose(samples_of(world, plan, root), answers)


def samples_of(world: str, plan: Plan, root: Path, kind: str | None = None) -> list[Sample]:
    """The test set of a world, or its questions of one type."""
    samples = read_samples(plan.data(world, root) / "test.jsonl")
    return [sample for sample in samples if kind in (None, sample.type)]


# --- pictures


class _Pictures:
    """Drawings of one patch, a file for each clip."""

    def __init__(self, name: str, title: str, run: Run, root: Path) -> None:
        self._name, self._title, self._root = name, title, root
        self._looker = Looker(run, root)
        self._labels: dict[str, str] = {}

    def shown(self, sample: Sample, beside: str = "") -> str:
        """The Markdown that shows the clip's drawing, which is made where it has not been."""
        clip = Path(sample.video).stem
        file = f"{self._name}-{clip}"
        if file not in self._labels:
            self._labels[file] = f"Where {self._title} looks, test clip {clip}"
            figure = draw_look(self._looker.look(sample), self._labels[file], self._sound(sample))
            add_figure(self._root, file, figure)
        return f"![{self._labels[file]}]({beside}{file}.png)"

    def _sound(self, sample: Sample) -> SoundView | None:
        if self._looker.qa.encoders[self._looker.channel].source != "audio":
            return None
        clip = read_audio(sample.video, _RATE)
        if clip is None:
            return None
        return SoundView(samples=clip.samples, sample_rate=clip.sample_rate, start=clip.start_time)


# --- what is written


def _row(shown: Shown) -> list[str]:
    def cell(prediction: Prediction) -> str:
        return f"{prediction.prediction or '(nothing)'} {'✓' if prediction.correct else '✗'}".replace("|", "\\|")

    references = " or ".join(shown.answers[PATCH].references)
    return [str(shown.sample.question), references, *map(cell, shown.answers.values())]


_HEADER = ["question", "right answer", BASE, VIDEO_ONLY, PATCH]


def _answers_page(plan: Plan, root: Path, pictures: Mapping[str, _Pictures]) -> str:
    parts = [
        "# Answers, right and wrong",
        f"Made with [the page of evidence](../evidence.md). {_RULE} A ✓ is a right answer. Under the questions that "
        "need the channel are drawings of their clips; the questions that the frames answer follow in a table without.",
        _LEGEND,
    ]
    for world, config in WORLDS.items():
        chosen = _chosen(world, plan, root)
        needing = {kind: pair for kind, pair in chosen.items() if kind in config.own}
        silent = {kind: pair for kind, pair in chosen.items() if kind not in config.own}
        parts += [f"## {world}", _table(needing)]
        clips = {pictures[world].shown(shown.sample): shown.sample for pair in needing.values() for shown in pair}
        for picture, sample in clips.items():
            parts += [f"### {world}, test clip {Path(sample.video).stem}", picture]
        parts += [f"### {world}, questions that the frames answer", _table(silent)]
    return "\n\n".join(parts) + "\n"


def _table(chosen: Mapping[str, Sequence[Shown]]) -> str:
    """A line for each chosen question; an empty one where the patch has none right, or none wrong, of a type."""
    rows = []
    for kind, pair in chosen.items():
        for right, word in ((True, "right"), (False, "wrong")):
            shown = next((one for one in pair if one.right is right), None)
            cells = ["none", *["" for _ in _HEADER]]
            if shown is not None:
                cells = [Path(shown.sample.video).stem, *_row(shown)]
            rows.append([f"{spoken(kind)}, {word}", *cells])
    return markdown_table(["type, the patch is", "clip", *_HEADER], rows)


def _numbers(plan: Plan, root: Path) -> str:
    """How much of the attention lies on the events, over all test clips."""
    runs = {f"the patch for {world}": variants(world, plan)[PATCH] for world in WORLDS if WORLDS[world].aligned}
    rows = []
    for name, patch in {**runs, **_further(plan)}.items():
        kind = WORLDS[patch.world].aligned
        assert kind is not None
        share = summary(patch, samples_of(patch.world, plan, root, kind), root)
        percents = [f"{100 * part:.0f}" for part in (share.even, *share.layers)]
        rows.append([name, str(share.clips), *percents, f"{100 * accuracy([patch], root, (kind,)).mean:.1f}"])
    header = ["patch", "clips", "spread evenly", "layer 1", "layer 2"]
    return markdown_table([*header, "accuracy, questions on frame and channel at once"], rows)


def _nine_in_words(plan: Plan, root: Path) -> str:
    """What the patch with several tokens answers, and where in the picture it looks."""
    patch, world = _further(plan)[_NINE], WORLDS["high_fps"]
    right = ", ".join(f"{spoken(kind)} {100 * accuracy([patch], root, (kind,)).mean:.1f}" for kind in world.own)
    tokens = summary(patch, samples_of(world.name, plan, root, world.aligned), root).tokens
    middle = " and ".join(f"{100 * layer[len(layer) // 2]:.0f} %" for layer in tokens)
    return (
        "That patch gets every dense frame as one token. A variant gets 3 x 3 tokens of each, as many as the frame has "
        "video tokens, so that there is a place to look at as well; the light is in the middle one. After the same "
        f"steps of training, one seed, it answers {right} percent right. Over all test clips, of the attention on the "
        f"frames of the event {middle} (by layer) is on the middle token, where an even spread would put "
        f"{100 / len(tokens[0]):.0f} %. The same clip:"
    )


def _first_right(world: str, plan: Plan, root: Path) -> Shown:
    """What the page itself shows of the type that needs frame and channel: the first that is right, or what there
    is."""
    return _chosen(world, plan, root)[WORLDS[world].aligned or ""][0]


def _write(plan: Plan, root: Path) -> str:
    pictures = {
        world: _Pictures(world, f"the patch for {world}", variants(world, plan)[PATCH], root) for world in WORLDS
    }
    atomic_write_text(root / FOLDER / PAGE, _answers_page(plan, root, pictures))
    heard, seen = _first_right("audio", plan, root), _first_right("high_fps", plan, root)
    further = _further(plan)
    unaligned = _Pictures("audio-unaligned", _UNALIGNED, further[_UNALIGNED], root)
    nine = _Pictures("high_fps-nine", _NINE, further[_NINE], root)
    beside = f"{FOLDER}/"
    return "\n\n".join(
        [
            f"{_RULE} All of them, with the answers of the base, of LoRA on video only and of the patch, are on "
            f"[a page of their own]({beside}{PAGE}); here are the first right ones (wrong, where none is right) of the "
            "two channels for which frame and moment matter most.",
            _LEGEND,
            "The weights depend on the clip and on the patch, not on the question: the question only opens and closes "
            "the gate behind them. That no frame attends beyond its own time is alignment, not learning; where in its "
            "reach it looks is learnt.",
            "### Sound",
            markdown_table(_HEADER, [_row(heard)]),
            pictures["audio"].shown(heard.sample, beside),
            "The same clip under a patch trained without alignment, where every frame may attend to the whole sound:",
            unaligned.shown(heard.sample, beside),
            "### Dense frames",
            markdown_table(_HEADER, [_row(seen)]),
            pictures["high_fps"].shown(seen.sample, beside),
            _nine_in_words(plan, root),
            nine.shown(seen.sample, beside),
            "### Over all test clips",
            "Attention on the steps of the event, in percent, mean over the frames that may attend to such steps and "
            "to others. *Spread evenly* is what weights that know nothing would put there. One clip can be pretty by "
            "chance; this table has all clips where an event and other steps are in reach of one frame. To look at the "
            "event is not enough: without alignment every frame is told the same, whenever it was. All are patches of "
            "the first seed; `scene3d` has no events.",
            _numbers(plan, root),
        ]
    )


SECTION = Section("Where the patches look", _runs, _write)
