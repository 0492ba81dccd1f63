"""A LLaVA-OneVision of another language model: what is frozen stays bit for bit, and the projector learns the words of what it sees."""

import copy

import numpy as np
import pytest
import torch
import transformers as tf

from evidence.small_bases import smollm2
from evidence.small_bases.making import answers, save_base
from evidence.small_bases.training import SilentClips, cached_features, packed, train_language
from pave.playground import base_path
from pave.playground.questions import ask
from pave.playground.render import draw_frames, frame_times
from pave.playground.world import draw_scene
from pave.utils.optional import MissingExtraError
from pave.video_llms.loading import load_base
from tiny_models import text_config, tiny_tokenizer

SCENES = [draw_scene(3, "train", i, silent=True) for i in range(4)]
TIMES = frame_times()[2::4]
CLIPS = SilentClips(SCENES, np.stack([draw_frames(s)[2::4] for s in SCENES]), np.stack([TIMES] * len(SCENES)))


@pytest.fixture(scope="module")
def made():
    """A tiny Llama with the playground's trained tower."""
    tokenizer = tiny_tokenizer(tuple(smollm2.SPARE_TOKENS.values()))
    torch.manual_seed(0)
    language = tf.LlamaForCausalLM(tf.LlamaConfig(**{**text_config(tokenizer), "tie_word_embeddings": True})).eval()
    teacher = tf.AutoModelForImageTextToText.from_pretrained(base_path())
    return smollm2.with_tower(language, tokenizer, teacher, 0), language, teacher


def test_the_parts_are_those_they_were_made_of(made):
    base, language, teacher = made
    ids = torch.tensor([base.ids("what colour is the circle ?")])
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, language(ids).logits)
        theirs = teacher.model.vision_tower(torch.zeros(1, 3, 48, 48), output_hidden_states=True).hidden_states[-1]
        ours = base.tower(torch.zeros(1, 3, 48, 48), output_hidden_states=True).hidden_states[-1]
    assert torch.equal(ours, theirs)
    trained = {name for name, p in base.model.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in trained} == {"multi_modal_projector", "image_newline"}


def test_a_conversation_is_packed_as_the_template_writes_it(made):
    base, *_ = made
    rng = np.random.default_rng(0)
    talk = [ask(SCENES[0], "colour", rng), ask(SCENES[0], "light", rng)]
    turns = [({"role": "user", "content": q.text}, {"role": "assistant", "content": q.answer}) for q in talk]
    messages = [dict(m) for turn in turns for m in turn]
    messages[0]["content"] = [{"type": "video"}, {"type": "text", "text": talk[0].text}]
    ids = base.processor.tokenizer(base.processor.apply_chat_template(messages))["input_ids"]
    video = ids.index(base.model.config.video_token_id)
    features = cached_features(base, SilentClips(SCENES[:1], CLIPS.frames_VFHWC[:1], CLIPS.times_VF[:1]))
    with torch.no_grad():
        embeds, _, positions, labels = packed(base, base.video_tokens(features), [[talk]])
    expected = base.model.get_input_embeddings()(
        torch.tensor(ids[video + 1 : -1])
    )  # the template ends a message with a line break
    assert torch.equal(embeds[0, -len(expected) :], expected)
    assert positions[0].tolist() == list(range(embeds.shape[1])) and embeds.shape[1] == video + 8 * 9 + 1 + len(expected)
    learnt = base.processor.tokenizer.decode([label for label in labels[0].tolist() if label >= 0])
    assert learnt == "".join(f"{q.answer}<|im_end|>" for q in talk)


def test_a_token_is_the_mean_of_what_its_four_patches_show(made):
    base, *_ = made
    labels = np.zeros((1, 36, 3), dtype=np.int64)
    labels[0, 6 * 2 + 5] = [1, 1, 0]  # row 2, column 5: a red circle that moves, in token 1 * 3 + 2
    tokens = smollm2.named_patches(base, labels)

    def word(text):
        return base.model.get_input_embeddings().weight[base.ids(text)].sum(dim=0)

    said = word(" red") + word(" circle") + word(" moves")
    torch.testing.assert_close(tokens[0, 5], (3 * word(" nothing") + said) / 4)
    torch.testing.assert_close(tokens[0, 0], word(" nothing"))
    labels[..., 2] = 2
    torch.testing.assert_close(smollm2.named_patches(base, labels)[0, 0], word(" nothing") + word(" orange") + word(" light"))


def test_the_projector_learns_words_then_answers_and_nothing_else_changes(made, tmp_path):
    base = copy.deepcopy(made[0])
    features = cached_features(base, CLIPS)
    before = {name: p.clone() for name, p in base.model.named_parameters() if not p.requires_grad}
    words = smollm2.teach_words(base, features, CLIPS, steps=150, batch=4, seed=0)
    assert words[0] > 0.9 and words[-1] < 0.6 * words[0]
    losses = train_language(base, [features], SCENES, steps=60, batch=4, rate=1e-2, seed=0, frozen=True)
    assert np.mean(losses[-5:]) < losses[0] - 0.08  # a language model that knows nothing can be led no further
    after = dict(base.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    given = answers(base.model.eval(), base.processor, ["what shape is it ?"] * 2, CLIPS)
    save_base(base, tmp_path)
    model, processor = load_base(tmp_path)
    assert model.config.model_type == "llava_onevision" and model.config.text_config.model_type == "llama"
    with torch.no_grad():
        kept = model.model.multi_modal_projector.linear_1.weight
    torch.testing.assert_close(kept, dict(before, **after)["model.multi_modal_projector.linear_1.weight"].float())
    assert answers(model.eval(), processor, ["what shape is it ?"] * 2, CLIPS) == given


def test_without_the_extra_its_name_is_said(monkeypatch):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    assert not smollm2.installed()
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"A base with SmolLM2 needs the package 'gguf'.*'\.\[smollm2\]'"):
        smollm2.read_smollm2()


@pytest.mark.slow
@pytest.mark.skipif(not smollm2.installed(), reason="needs the extra smollm2")
def test_the_file_of_the_package_holds_a_language_model_that_knows_things():
    language, tokenizer = smollm2.read_smollm2()
    assert 134e6 < sum(p.numel() for p in language.parameters()) < 136e6
    assert tokenizer.convert_tokens_to_ids(list(smollm2.SPARE_TOKENS.values())) == [14, 15]
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert tokenizer.decode(language(ids).logits[0, -1].argmax()) == " Paris"
