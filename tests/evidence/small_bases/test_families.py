"""A base learns exactly what its saved files are asked later: same tokens, positions and features as its processor and model give."""

import numpy as np
import pytest
import torch

from evidence.small_bases.families import KINDS, QwenBase
from evidence.small_bases.making import load_both, make_base
from evidence.small_bases.training import packed, patch_labels
from pave.data.collator import PatchCollator
from pave.data.items import PatchItem
from pave.playground.questions import ask
from pave.playground.render import draw_frames, frame_times
from pave.playground.world import draw_scene

SCENE = draw_scene(3, "train", 0, silent=True)
TIMES = frame_times()[2::4]
FRAMES = draw_frames(SCENE)[2::4]


def losses_of_answers(model, batch):
    """Of every answer token, as the model itself gives them."""
    labels = batch.pop("labels")[0, 1:]
    logits = model(**batch).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none")


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_packed_behind_a_video_is_what_the_base_reads_of_a_prompt(kind):
    base = KINDS[kind].build(0)
    base.model.eval()
    rng = np.random.default_rng(0)
    talks = [[ask(SCENE, "colour", rng)], [ask(SCENE, "first_mover", rng), ask(SCENE, "light", rng)]]
    with torch.no_grad():
        steps = base.steps(FRAMES[None])
        features = base.features(steps[0])[None]
        embeds, mask, positions, labels = packed(base, base.video_tokens(features), [talks])
        hidden = base.model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        following = labels[0, 1:]
        logits = base.model.lm_head(hidden)[0, :-1]
        found = torch.nn.functional.cross_entropy(logits[following >= 0], following[following >= 0], reduction="none")
        expected = []
        collate = PatchCollator(base.processor, base.model.config, {})
        for talk in talks:
            item = PatchItem("x", FRAMES, TIMES, tuple((q.text, q.answer) for q in talk))
            batch = collate([item])
            del batch["side_channels"], batch["frame_times"]
            expected.append(losses_of_answers(base.model, batch))
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_the_labels_of_a_step_lie_where_its_features_see_them():
    base = KINDS["qwen2_5_vl"].build(0)
    assert isinstance(base, QwenBase)
    labels_FPL = patch_labels(SCENE, TIMES)
    labels_SPL = base.labels(base.steps(labels_FPL[None])[0])
    frames_SKHWC = base.steps(FRAMES[None])[0]
    with torch.no_grad():
        before = base.features(frames_SKHWC[:1])[0]
        changed = frames_SKHWC[:1].copy()
        changed[0, :, 8:16, 24:32] = 255  # row 1, column 3 of the patches: second token, in it the lower right
        # full attention in the last layer alone moves every patch; the patch itself moves most by far
        moved = (base.features(changed)[0] - before).norm(dim=-1)
    place = int(moved.argmax())
    assert place == 4 * 1 + 3
    assert moved[place] > 2 * moved.sort().values[-2]
    for step in range(4):
        either = labels_FPL[2 * step : 2 * step + 2].max(axis=0).reshape(6, 6, 3)
        assert (labels_SPL[step, place] == either[1, 3]).all()
        assert sorted(map(tuple, labels_SPL[step])) == sorted(map(tuple, either.reshape(-1, 3)))


@pytest.mark.parametrize(("kind", "least", "most"), [("small", 0.4, 0.6), ("large", 2, 3), ("qwen2_5_vl", 0.8, 1.3)])
def test_sizes_are_what_their_names_promise(kind, least, most):
    count = {name: sum(p.numel() for p in KINDS[name].build(0).model.parameters()) for name in ("playground", kind)}
    assert least < count[kind] / count["playground"] < most


def test_an_unknown_kind_is_refused_before_anything_is_rendered(tmp_path):
    with pytest.raises(ValueError, match="no kind of base 'huge'; known: playground, small, large, qwen2_5_vl"):
        make_base(tmp_path / "out", tmp_path / "work", kind="huge")
    assert not list(tmp_path.iterdir())


def test_frames_that_were_decoded_before_are_the_same(tmp_path):
    first, second = (load_both(tmp_path, 2, seed=5) for _ in range(2))
    (tmp_path / "clips/train/00000.mp4").write_bytes(b"")  # not looked at any more
    for one, other, again in zip(first, second, load_both(tmp_path, 2, seed=5), strict=True):
        assert one.scenes == other.scenes == again.scenes
        assert np.array_equal(one.frames_VFHWC, other.frames_VFHWC) and np.array_equal(one.frames_VFHWC, again.frames_VFHWC)
        assert np.array_equal(one.times_VF, other.times_VF)
    assert first[0].times_VF[0].tolist() != first[1].times_VF[0].tolist()
