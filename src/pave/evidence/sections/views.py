"""Where the patches look, and what they answer: clips chosen by a rule, and numbers over all clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pave.config import EncoderConfig, PatchConfig
from pave.data.media import read_audio
from pave.data.samples import Sample, read_samples
from pave.evaluation.predictions import Prediction
from pave.evaluation.report import SoundView
from pave.evidence.figures import FOLDER, add_figure
from pave.evidence.look_drawing import draw_look
from pave.evidence.looks import Look, Looker, summary
from pave.evidence.runs import Run, answers
from pave.evidence.scores import accuracy
from pave.evidence.sections.common import BASE, PATCH, VIDEO_ONLY, Plan, Section, data_folder, run, video_only
from pave.evidence.tables import markdown_table
from pave.evidence.worlds import WORLDS
from pave.utils.files import atomic_write_text

PAGE = "answers.md"
_RATE = 16_000
_UNALIGNED = "the audio patch without alignment"
_NINE = "the high_fps patch with 9 tokens a dense frame"
_RULE = (
    "Clips are taken by one rule, from the first seed: of every question type, the first question in the order of the test set that the "
    "patch answers right, and the first that it answers wrong, if there is one."
)
_LEGEND = (
    "A cell is the attention weight softmax(q·k/√d) of the fusion module, averaged over heads, in the line of a frame over its video "
    "tokens as well: clear blue is all of it, pale none, grey what the frame may attend to by its time. *Side steps* are how far the "
    "features of each step lie from their mean. Orange under the time is the event that was rendered into the channel, which the model is not told; the coloured borders of some frames are "
    "the lights of the world, part of the picture. Below, "
    "one frame: the nearest that may attend to the beginning of the event, or the middle one where there is none; its video tokens "
    "have numbers. Where a step has several tokens, each is a cell at its place, and of the video tokens two are shown, the one with most "
    "of its attention on the event and the one with least (the first and the last without an event). Pictures in its columns are the "
    "dense frames, cameras or views as the encoder hands them over, a pixel for each cell."
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
    return replace(WORLDS["high_fps"], encoder=encoder).patch()


def _first(world: str, variant: str, patch: PatchConfig | None, plan: Plan) -> Run:
    return run(world, variant, patch, plan, plan.seeds[0] if patch is not None else 0)


def _variants(world: str, plan: Plan) -> dict[str, Run]:
    patches = {BASE: None, VIDEO_ONLY: video_only(), PATCH: WORLDS[world].patch()}
    return {variant: _first(world, variant, patch, plan) for variant, patch in patches.items()}


def _further(plan: Plan) -> dict[str, Run]:
    return {
        _UNALIGNED: _first("audio", _UNALIGNED, WORLDS["audio"].patch(neighbourhood_seconds=1000.0), plan),
        _NINE: _first("high_fps", _NINE, nine_tokens(), plan),
    }


def _runs(plan: Plan) -> list[Run]:
    return [made for world in WORLDS for made in _variants(world, plan).values()] + list(_further(plan).values())


def chosen(samples: Sequence[Sample], given: Mapping[str, Mapping[str, Prediction]]) -> dict[str, list[Shown]]:
    """By question type, the first question that the patch answers right and the first that it answers wrong.

    Args:
        samples: in the order of the test set.
        given: by variant, the answers by the sample's id.
    """
    found: dict[str, dict[bool, Shown]] = {}
    for sample in samples:
        shown = Shown(sample, {variant: by_id[sample.id] for variant, by_id in given.items()})
        found.setdefault(sample.type, {}).setdefault(shown.right, shown)
    return {kind: [pair[right] for right in (True, False) if right in pair] for kind, pair in found.items()}


def _chosen(world: str, plan: Plan, root: Path) -> dict[str, list[Shown]]:
    given = {variant: {p.id: p for p in answers(made, root)} for variant, made in _variants(world, plan).items()}
    return chosen(_samples(world, plan, root), given)


def _samples(world: str, plan: Plan, root: Path) -> list[Sample]:
    return list(read_samples(data_folder(world, root, plan) / "test.jsonl"))


# --- pictures


class _Pictures:
    """Drawings of one patch, a file for each clip."""

    def __init__(self, name: str, title: str, run: Run, root: Path) -> None:
        self.name, self.title, self.root = name, title, root
        self._looker = Looker(run, root)
        self._labels: dict[str, str] = {}

    def clip(self, sample: Sample) -> str:
        """The name of the clip's file, written where it has not been."""
        clip = Path(sample.video).stem
        file = f"{self.name}-{clip}"
        if file not in self._labels:
            self._labels[file] = f"Where {self.title} looks, test clip {clip}"
            add_figure(self.root, file, draw_look(self.look(sample), self._labels[file], _sound(self._looker, sample)))
        return file

    def look(self, sample: Sample) -> Look:
        return self._looker.look(sample)

    def shown(self, sample: Sample, beside: str = "") -> str:
        """The Markdown that shows the clip's drawing."""
        file = self.clip(sample)
        return f"![{self._labels[file]}]({beside}{file}.svg)"


def _sound(looker: Looker, sample: Sample) -> SoundView | None:
    if looker.qa.encoders[looker.channel].source != "audio":
        return None
    clip = read_audio(sample.video, _RATE)
    return None if clip is None else SoundView(samples=clip.samples, sample_rate=clip.sample_rate, start=clip.start_time)


# --- what is written


def _row(shown: Shown) -> list[str]:
    def cell(prediction: Prediction) -> str:
        return f"{prediction.prediction or '(nothing)'} {'✓' if prediction.correct else '✗'}".replace("|", "\\|")

    return [
        str(shown.sample.question),
        " or ".join(shown.answers[PATCH].references),
        *(cell(p) for p in shown.answers.values()),
    ]


_HEADER = ["question", "right answer", BASE, VIDEO_ONLY, PATCH]


def _answers_page(plan: Plan, root: Path, pictures: Mapping[str, _Pictures]) -> str:
    parts = [
        "# Answers, right and wrong",
        f"Made with [the page of evidence](../evidence.md). {_RULE} A ✓ is a right answer. Under the questions that need the channel are "
        "drawings of their clips; the questions that the frames answer follow in a table without.",
        _LEGEND,
    ]
    for world, config in WORLDS.items():
        found = _chosen(world, plan, root)
        needing = {kind: pair for kind, pair in found.items() if kind in config.own}
        silent = {kind: pair for kind, pair in found.items() if kind not in config.own}
        parts += [f"## {world}", _table(needing)]
        clips = {pictures[world].shown(shown.sample): shown.sample for pair in needing.values() for shown in pair}
        for picture, sample in clips.items():
            parts += [f"### {world}, test clip {Path(sample.video).stem}", picture]
        parts += [f"### {world}, questions that the frames answer", _table(silent)]
    return "\n\n".join(parts) + "\n"


def _table(found: Mapping[str, Sequence[Shown]]) -> str:
    """A line for each chosen question; a line of dashes where the patch has none right, or none wrong, of a type."""
    rows = []
    for kind, pair in found.items():
        for right in (True, False):
            shown = next((one for one in pair if one.right is right), None)
            words = f"{kind.replace('_', ' ')}, {'right' if right else 'wrong'}"
            if shown is None:
                rows.append([words, "none", *["" for _ in _HEADER]])
            else:
                rows.append([words, Path(shown.sample.video).stem, *_row(shown)])
    return markdown_table(["type, the patch is", "clip", *_HEADER], rows)


def _numbers(plan: Plan, root: Path) -> str:
    """How much of the attention lies on the events, over all test clips."""
    asked = {world: (_variants(world, plan)[PATCH], world) for world in WORLDS if WORLDS[world].aligned is not None}
    named = {f"the patch for {world}": pair for world, pair in asked.items()}
    named |= {name: (made, made.world) for name, made in _further(plan).items()}
    rows = []
    for name, (made, world) in named.items():
        kind = WORLDS[world].aligned
        assert kind is not None
        share = summary(made, [s for s in _samples(world, plan, root) if s.type == kind], root)
        rows.append(
            [
                name,
                str(share.clips),
                f"{100 * share.even:.0f}",
                *(f"{100 * layer:.0f}" for layer in share.layers),
                f"{100 * accuracy([made], root, (kind,)).mean:.1f}",
            ]
        )
    header = ["patch", "clips", "spread evenly", "layer 1", "layer 2", "accuracy, questions on frame and channel at once"]
    return markdown_table(header, rows)


def _nine_in_words(plan: Plan, root: Path) -> str:
    """What the patch with several tokens answers, and where in the picture it looks."""
    made = _further(plan)[_NINE]
    right = ", ".join(
        f"{kind.replace('_', ' ')} {100 * accuracy([made], root, (kind,)).mean:.1f}" for kind in WORLDS["high_fps"].own
    )
    asked = [sample for sample in _samples("high_fps", plan, root) if sample.type == WORLDS["high_fps"].aligned]
    tokens = summary(made, asked, root).tokens
    middle = " and ".join(f"{100 * layer[len(layer) // 2]:.0f} %" for layer in tokens)
    return (
        "That patch gets every dense frame as one token. A variant gets 3 x 3 tokens of each, as many as the frame has video tokens, so "
        "that there is a place to look at as well; the light is in the middle one. After the same steps of training, one seed, it answers "
        f"{right} percent right. Over all test clips, of the attention on the frames of the event {middle} (by layer) is on the middle "
        f"token, where an even spread would put {100 / len(tokens[0]):.0f} %. The same clip:"
    )


def _first_right(world: str, kind: str, plan: Plan, root: Path) -> Shown:
    """What the page itself shows of a type: the first that is right, or what there is."""
    return _chosen(world, plan, root)[kind][0]


def _write(plan: Plan, root: Path) -> str:
    pictures = {world: _Pictures(world, f"the patch for {world}", _variants(world, plan)[PATCH], root) for world in WORLDS}
    atomic_write_text(root / FOLDER / PAGE, _answers_page(plan, root, pictures))
    heard, seen = (_first_right(w, WORLDS[w].aligned or "", plan, root) for w in ("audio", "high_fps"))
    further = _further(plan)
    unaligned = _Pictures("audio-unaligned", _UNALIGNED, further[_UNALIGNED], root)
    nine = _Pictures("high_fps-nine", _NINE, further[_NINE], root)
    beside = f"{FOLDER}/"
    return "\n\n".join(
        [
            f"{_RULE} All of them, with the answers of the base, of LoRA on video only and of the patch, are on "
            f"[a page of their own]({beside}{PAGE}); here are the first right ones (wrong, where none is right) of the two channels for which frame and moment matter most.",
            _LEGEND,
            "The weights depend on the clip and on the patch, not on the question: the question only opens and closes the gate behind them. "
            "That no frame attends beyond its own time is alignment, not learning; where in its reach it looks is learnt.",
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
            "Attention on the steps of the event, in percent, mean over the frames that may attend to such steps and to others. *Spread evenly* "
            "is what weights that know nothing would put there. One clip can be pretty by chance; this table has all clips where an event and other steps are in reach of one frame. To look at the event is not enough: "
            "without alignment every frame is told the same, whenever it was. All are patches of the first seed; `scene3d` has no events.",
            _numbers(plan, root),
        ]
    )


SECTION = Section("Where the patches look", _runs, _write)
