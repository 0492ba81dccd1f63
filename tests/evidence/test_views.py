"""Where patches look: weights against softmax(q k / sqrt(H)) by hand, what is drawn against what was computed, clips by the rule."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from evidence.attention import Look, Looker, OnEvent, on_event
from evidence.attention_figure import draw_look
from evidence.figures import FOLDER
from evidence.page import reproduce
from evidence.plan import BASE, PATCH, SHORT, VIDEO_ONLY
from evidence.sections.views import PAGE, choose, samples_of, variants
from figure_checks import unreadable
from pave.config import EncoderConfig
from pave.data.media import FrameSampling
from pave.data.samples import Sample
from pave.evaluation.examples import _watched, attention_maps
from pave.evaluation.generation import generate_ids
from pave.evaluation.inference import VideoQA
from pave.evaluation.predictions import Prediction
from pave.patching import patch_slot
from pave.side_channels import SideFeatures, build_encoder
from pave.side_channels.frames import Frames
from tiny_runs import save_base_and_patch, write_clip


def linear(module, x):
    return x @ module.weight.double().T + module.bias.double()


def by_hand(fusion, video, side, own):
    """The weights of every layer with loops over layers, frames and heads; ``own`` says which steps a frame may read (T, K)."""
    x_TSD = linear(fusion.query_embed, video.post_projector_BTSE[0].double())
    e_KMD = linear(fusion.side_embed, side.embeds_BKMC[0].double())
    (T, S, D), (K, M), N = x_TSD.shape, e_KMD.shape[:2], fusion.num_heads
    H = D // N
    layers = []
    for layer in fusion.layers:
        q, k, v = linear(layer.query, x_TSD), linear(layer.key, e_KMD), linear(layer.value, e_KMD)
        weights, heads = torch.zeros(T, N, S, K, M, dtype=torch.float64), torch.zeros_like(x_TSD)
        for t in range(T):
            steps = own[t].nonzero()[:, 0]
            for n in range(N):
                part = slice(n * H, (n + 1) * H)
                scores = q[t, :, part] @ k[steps][..., part].flatten(0, 1).T / H**0.5
                powers = torch.exp(scores - scores.max())
                soft = powers / powers.sum(dim=1, keepdim=True)
                weights[t, n, :, steps] = soft.unflatten(1, (len(steps), M))
                heads[t, :, part] = soft @ v[steps][..., part].flatten(0, 1)
        x_TSD = x_TSD + heads
        norm = layer.ffn[0]
        centred = x_TSD - x_TSD.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        normed = normed * norm.weight.double() + norm.bias.double()
        inner = normed @ layer.ffn[1].weight.double().T
        gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x_TSD = x_TSD + gelu @ layer.ffn[3].weight.double().T
        layers.append(weights)
    return torch.stack(layers)


@torch.no_grad()
def check_by_hand(qa, item, channel):
    """Every weight of every layer, and that a frame's attention is all on the steps of its own stretch of time."""
    from pave.data.collator import PatchCollator

    batch = PatchCollator(qa.processor, qa.model.config, qa.channels, train=False)([item])
    with _watched(patch_slot(qa.model).fusions) as calls:
        generate_ids(qa.model, batch, max_new_tokens=1)
    fusion, (video, side, *_) = calls[channel]
    times_F, times_K = torch.as_tensor(item.times_F), item.side[channel].times_K
    middles = (times_F[1:] + times_F[:-1]) / 2
    own = torch.searchsorted(middles, times_K, right=True)[None] == torch.arange(len(times_F))[:, None]
    expected = by_hand(fusion, video, side, own).numpy()
    weights = attention_maps(qa, item)[channel]
    assert weights.shape == expected.shape and np.abs(weights - expected).max() < 1e-5
    mass_LTNS = (weights * own.numpy()[None, :, None, None, :, None]).sum(axis=(-1, -2))
    assert np.allclose(mass_LTNS, 1, atol=1e-6) and (weights[:, ~own.numpy().any(axis=1)] == 0).all()
    return weights


def test_the_weights_are_the_softmax_of_the_scores_by_hand(tmp_path):
    base, patch = save_base_and_patch(tmp_path)
    qa = VideoQA.from_pretrained(base, patch, device="cpu", sampling=FrameSampling(num_frames=4))
    with torch.no_grad():
        for layer in patch_slot(qa.model).fusions["audio"].layers:
            layer.query.weight.mul_(0.1)  # the shaken patch is so sure that most weights are 0 or 1
    item = next(iter(qa.items([Sample(id="a", video=str(write_clip(tmp_path / "clip.mp4", 2)), question="red?")])))
    weights = check_by_hand(qa, item, "audio")
    assert np.abs(weights[0] - weights[1]).max() > 0.05 and weights[0].std(axis=2).max() > 1e-3  # layers and tokens differ


# --- a look with numbers of its own


def look_of(weights, times_F, times_K, events, encoder="log_mel", features=None, grid=None):
    features = torch.randn(len(times_K), weights.shape[-1], 4) if features is None else features
    item = SimpleNamespace(
        times_F=np.asarray(times_F, dtype=float),
        frames_FHWC=np.zeros((len(times_F), 48, 48, 3), dtype=np.uint8),
        side={"x": SideFeatures(features, torch.as_tensor(times_K).double())},
    )
    config = encoder if isinstance(encoder, EncoderConfig) else EncoderConfig(name=encoder)
    return Look(Sample(id="a", video="v.mp4", question="?", meta={"events": events}), item, "x", weights, config)


def two_frames():
    """Frames at 1 and 3 s, steps at 0.5, 1.5, 2.5, 3.5 s; one layer, head; two video tokens; one side token."""
    weights = np.zeros((1, 2, 1, 2, 4, 1))
    weights[0, 0, 0, 0, :2, 0], weights[0, 0, 0, 1, :2, 0] = (0.2, 0.8), (0.4, 0.6)
    weights[0, 1, 0, 0, 2:, 0], weights[0, 1, 0, 1, 2:, 0] = (0.5, 0.5), (0.9, 0.1)
    return weights


def test_the_share_on_the_event_is_of_frames_that_could_look_elsewhere():
    look = look_of(two_frames(), [1, 3], [0.5, 1.5, 2.5, 3.5], [[1.4, 1.6]])
    assert look.on_event_K.tolist() == [False, True, False, False]
    assert on_event(look) == OnEvent(1, 0.5, (pytest.approx(0.7),), ((1.0,),))
    both = look_of(two_frames(), [1, 3], [0.5, 1.5, 2.5, 3.5], [[1.4, 1.6], [2.0, 2.6]])
    assert on_event(both) == OnEvent(1, 0.5, (pytest.approx(0.7),), ((1.0,),))
    whole = look_of(two_frames(), [1, 3], [0.5, 1.5, 2.5, 3.5], [[2.0, 4.0]])
    assert on_event(whole) is None  # the second frame sees nothing else
    between = look_of(two_frames(), [1, 3], [0.5, 1.5, 2.5, 3.5], [[2.8, 2.9]])
    assert between.on_event_K.tolist() == [False, False, True, False]


def test_the_share_on_the_event_is_divided_among_its_tokens():
    weights = np.zeros((1, 1, 2, 1, 2, 2))
    weights[0, 0, 0, 0], weights[0, 0, 1, 0] = [[0.1, 0.1], [0.2, 0.6]], [[0.3, 0.3], [0.1, 0.3]]
    share = on_event(look_of(weights, [1], [0.5, 1.5], [[1.4, 1.6]]))
    assert share.layers == (pytest.approx(0.6),) and share.tokens == ((pytest.approx(0.25), pytest.approx(0.75)),)


def test_the_chosen_frame_is_the_one_that_may_attend_to_the_beginning_of_the_event():
    times = [0.5, 1.5, 2.5, 3.5]
    assert look_of(two_frames(), [1, 3], times, [[0.4, 1.6]]).chosen_frame == 0
    assert look_of(two_frames(), [1, 3], times, [[2.4, 3.6]]).chosen_frame == 1
    assert look_of(two_frames(), [1, 3], times, []).chosen_frame == 1
    everywhere = np.full((1, 2, 1, 2, 4, 1), 0.25)
    assert [look_of(everywhere, [1, 3], times, [[at, at + 0.2]]).chosen_frame for at in (0.4, 1.4, 2.4, 3.4)] == [0, 0, 1, 1]


def cells(axes):
    """Where bars in the colour of attention begin, which line they are on and how opaque they are."""
    bars = [bar for bar in axes.patches if bar.get_facecolor()[:3] == to_rgb("#0072b2")]
    return [(bar.get_x(), round(bar.get_y() + bar.get_height() / 2), bar.get_facecolor()[3]) for bar in bars]


def grids(axes):
    """The pictures of weights: left edge, top, and the opacities."""
    images = [image for image in axes.images if image.get_array().shape[-1] == 4]
    return [(image.get_extent()[0], image.get_extent()[3], image.get_array()[..., 3].tolist()) for image in images]


def test_a_cell_is_as_dark_as_its_weight_and_stands_at_its_time():
    look = look_of(two_frames(), [1, 3], [0.5, 1.5, 2.5, 3.5], [[1.4, 1.6]])
    figure = draw_look(look, "a look")
    _, steps, layer, _, tokens = figure.findobj(Axes)
    expected = [(0, 0, 0.3), (1, 0, 0.7), (2, 1, 0.7), (3, 1, 0.3)]  # one layer: two frames with two steps each
    assert cells(layer) == [pytest.approx(cell, abs=1e-3) for cell in expected]
    assert layer.get_xlim() == (0, 4) and layer.get_ylim()[0] > layer.get_ylim()[1]
    for axes in (steps, layer):
        event = next(patch for patch in axes.patches if patch.get_facecolor()[:3] == to_rgb("#e69f00"))
        assert (event.get_x(), event.get_width()) == pytest.approx((1.4, 0.2))
    found = grids(tokens)  # the first frame, token by token
    assert [alpha for *_, ((alpha,),) in found] == pytest.approx([0.2, 0.8, 0.4, 0.6])
    assert found[0][1] == found[1][1] < found[2][1] and found[0][0] == found[2][0] < found[1][0] == found[3][0]
    (mark,) = tokens.lines
    assert mark.get_xdata()[0] == found[1][0]  # over the step of the event
    assert [label.get_text() for label in tokens.get_xticklabels()] == ["0.50 s", "1.50 s"]
    assert unreadable(figure) == [] and figure.get_label() == "a look"


def test_several_side_tokens_are_drawn_at_their_place():
    weights = np.zeros((1, 1, 1, 1, 2, 4))
    weights[..., 1, :] = 0.1, 0.2, 0.3, 0.4
    look = look_of(weights, [1], [0.5, 1.5], [[1.0, 2.0]])
    tokens = draw_look(look, "x").findobj(Axes)[-1]
    (_, top, mean), (_, below, token) = grids(tokens)
    assert mean == token == [pytest.approx([0.1, 0.2]), pytest.approx([0.3, 0.4])] and top < below
    assert [label.get_text() for label in tokens.get_yticklabels()] == ["mean, layer 1", "token 1, layer 1"]


def test_steps_are_pictures_as_the_encoder_sees_them():
    """Four quarters of other colours; a whole number of pixels in each cell, so that the means are the colours."""
    frames = np.zeros((1, 48, 48, 3), dtype=np.uint8)
    frames[:, :24, :24], frames[:, :24, 24:], frames[:, 24:, :24], frames[:, 24:, 24:] = (
        (250, 0, 0),
        (0, 250, 0),
        (0, 0, 250),
        (99, 9, 0),
    )
    for settings in ({"grid": 1, "detail": 2}, {"grid": 2, "detail": 1}, {"grid": 3, "detail": 2}):
        encoder = EncoderConfig(name="frames_pixels", settings={"fps": None, **settings})
        made = build_encoder(encoder).encode([Frames(frames, np.zeros(1))])
        weights = np.ones((1, 1, 1, 1, 1, settings["grid"] ** 2))
        picture = look_of(weights, [0], [0.0], [], encoder, made.features_KMC).pictures_KHWC()[0]
        side = settings["grid"] * settings["detail"]
        middles = ((np.arange(side) + 0.5) * 48 / side).astype(int)
        assert np.abs(picture.astype(int) - frames[0][middles][:, middles]).max() <= 1
    assert look_of(two_frames(), [1, 3], [0.5, 1.5, 2.5, 3.5], []).pictures_KHWC() is None


def test_the_first_right_and_the_first_wrong_of_every_type_are_shown():
    kinds = ["sound", "colour", "sound", "colour", "sound", "sound"]
    samples = [Sample(id=str(i), video=f"{i}.mp4", question="?", answer="a", type=kind) for i, kind in enumerate(kinds)]

    def given(right):
        return {
            s.id: Prediction(
                id=s.id, type=s.type, video=s.video, question="?", references=("a",), prediction="a" if ok else "b"
            )
            for s, ok in zip(samples, right, strict=True)
        }

    found = choose(samples, {BASE: given([1] * 6), PATCH: given([0, 1, 0, 1, 1, 1])})
    assert {kind: [(s.sample.id, s.right) for s in pair] for kind, pair in found.items()} == {
        "sound": [("4", True), ("0", False)],
        "colour": [("1", True)],
    }
    assert found["sound"][1].answers[BASE].correct


@pytest.mark.slow
def test_the_section_shows_what_real_runs_answered_and_where_they_looked(tmp_path):
    page = reproduce(tmp_path, ["views"], "short")
    text, further = page.read_text(), (tmp_path / FOLDER / PAGE).read_text()
    shown = {path.name for path in (tmp_path / FOLDER).glob("*.png")}
    linked = set(re.findall(r"\(evidence/([^)]+\.png)\)", text)) | set(re.findall(r"\(([^)/]+\.png)\)", further))
    assert shown == linked and "audio-unaligned-00000.png" in shown
    runs, samples = variants("audio", SHORT), samples_of("audio", SHORT, tmp_path)
    by_id = {variant: {p.id: p for p in made.answers(tmp_path)} for variant, made in runs.items()}
    for pair in choose(samples, by_id).values():
        for one in pair:
            told = " | ".join(f"{p.prediction} {'✓' if p.correct else '✗'}" for p in one.answers.values())
            assert f"{one.sample.question} | {one.sample.answer} | {told} |" in further
    assert list(by_id) == [BASE, VIDEO_ONLY, PATCH]
    looker = Looker(runs[PATCH], tmp_path)
    look = looker.look(next(s for s in samples if s.type == "sound"))
    assert (check_by_hand(looker.qa, look.item, "audio") == look.weight_LTNSKM).all()  # of a trained patch
    kept = (runs[PATCH].folder(tmp_path) / "attention.json").stat().st_mtime_ns
    before = {path.name: path.read_bytes() for path in (tmp_path / FOLDER).iterdir()}
    (tmp_path / FOLDER / "old.png").write_text("from another reproduction")
    assert reproduce(tmp_path, ["views"], "short").read_text() == text
    assert {path.name: path.read_bytes() for path in (tmp_path / FOLDER).iterdir()} == before
    assert (runs[PATCH].folder(tmp_path) / "attention.json").stat().st_mtime_ns == kept
    assert SHORT.data("audio", tmp_path).is_dir()
