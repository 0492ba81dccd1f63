"""The data contract of PatchCollator, on real processors of two families."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models

from pave.config import SideChannelConfig
from pave.data.collator import PatchCollator, video_metadata
from pave.data.items import PatchItem
from pave.data.prompts import Prompt, render_prompt
from pave.data.published_labels import published_targets
from tiny_models import SIDE, tiny_llava_onevision, tiny_qwen2_5_vl

FAMILIES = [tiny_llava_onevision, tiny_qwen2_5_vl]
CHANNELS = {"audio": SideChannelConfig(width=6), "depth": SideChannelConfig(kind="features", width=3)}

# The chat template published with LLaVA-OneVision: a blank after the role, which its generation prompt does not have.
PUBLISHED_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}"
    "{% endif %}{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda build: build.__name__)
def family(request):
    return request.param()


def item(name="a", turns=(("what sound is heard?", "a bell"),), frames=4, side=None, start=0.0):
    rng = np.random.default_rng(len(name) + frames)
    pixels = rng.integers(0, 256, (frames, SIDE, SIDE, 3), dtype=np.uint8)
    return PatchItem(name, pixels, start + 0.5 * np.arange(frames), tuple(turns), side or {})


def features(steps, width, tokens=1, seed=0):
    values = np.random.default_rng(seed).standard_normal((steps, tokens, width)).astype(np.float32)
    return SimpleNamespace(features_KMC=values, times_K=0.1 + 0.25 * np.arange(steps))


def collator(family, **kwargs):
    model, processor = family
    return PatchCollator(processor, model.config, kwargs.pop("channels", CHANNELS), **kwargs)


def learnt(family, batch, row):
    """The text of the labels of a row, one string per run."""
    labels = batch["labels"][row]
    runs, run = [], []
    for label in [*labels.tolist(), -100]:
        if label != -100:
            run.append(label)
        elif run:
            runs.append(family[1].tokenizer.decode(run))
            run = []
    return runs


TWO_TURNS = (("what sound is heard?", "a dog"), ("which object was moving?", "the red circle, then the blue square"))


def test_labels_are_the_answers_and_their_end_of_turn_tokens(family):
    batch = collator(family)([item("a"), item("bb", TWO_TURNS)])
    assert learnt(family, batch, 0) == ["a bell<|im_end|>"]
    assert learnt(family, batch, 1) == ["a dog<|im_end|>", "the red circle, then the blue square<|im_end|>"]
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert not kept[batch["attention_mask"] == 0].any()


def labelled_by_turn(family, ids):
    """The rule of ``published_labels`` read along the row's own ids: True where a token is learnt."""
    tokenizer = family[1].tokenizer
    start, end, newline = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", tokenizer.tokenize("\n")[0]])
    assistant = tokenizer("assistant")["input_ids"]
    marks, inside, closing = [], False, False
    for place, token in enumerate(ids):
        if token == start:
            inside, closing = ids[place + 1 : place + 1 + len(assistant)] == assistant, False
        marks.append(inside or token in (start, end, newline))
        closing = closing or token == end
        if closing and token == newline:
            inside = False
    return marks


def test_published_labels_are_whole_turns_of_the_assistant_and_every_mark_and_newline(family):
    """Besides the two of the other tests, a question of three lines."""
    turns = [TWO_TURNS[:1], TWO_TURNS, (("yes or no?\n1. yes\n2. no", "yes"),)]
    items = [item(str(number), conversation, frames=4) for number, conversation in enumerate(turns)]
    batch, answers = collator(family, published_labels=True)(items), collator(family)(items)
    assert torch.equal(batch["input_ids"], answers["input_ids"])
    for row, ids in enumerate(batch["input_ids"].tolist()):
        real = batch["attention_mask"][row].bool()
        kept = batch["labels"][row] != -100
        assert kept[real].tolist() == labelled_by_turn(family, [t for t, keep in zip(ids, real.tolist(), strict=True) if keep])
        assert torch.equal(batch["labels"][row][kept], batch["input_ids"][row][kept]) and not kept[~real].any()
        assert (answers["labels"][row] != -100).sum() < kept.sum() and bool((kept | (answers["labels"][row] == -100)).all())
    second = learnt(family, batch, 1)
    assert second[0] == "<|im_start|>" and second[-1] == (
        "<|im_end|>\n<|im_start|>assistant\nthe red circle, then the blue square<|im_end|>\n"
    )
    assert learnt(family, batch, 2).count("\n") >= 3


def test_published_labels_need_the_tokens_they_are_told_by(family):
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(
        ValueError, match=r"labels 'published' are told by the tokens <\|im_start\|>, <\|im_end\|> and a newline"
    ):
        published_targets(tokenizer, Prompt("a", ()), [0])
    with pytest.raises(ValueError, match="published_labels are also of the text before the video"):
        collator(family, published_labels=True, share_videos=2)


def test_training_prompt_is_the_generation_prompt_token_by_token(family):
    """Also in the second turn: what stands before an answer is what generation would see."""
    for turns in (TWO_TURNS[:1], TWO_TURNS):
        trained = collator(family)([item("a", turns)])
        asked = collator(family, train=False)([item("a", turns)])
        assert "labels" not in asked
        prompt = asked["input_ids"][0]
        row = trained["input_ids"][0]
        assert torch.equal(row[: len(prompt)], prompt)
        last = family[1].tokenizer(turns[-1][1])["input_ids"]
        assert row[len(prompt) : len(prompt) + len(last)].tolist() == last
        for name in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts"):
            if name in asked:
                assert torch.equal(torch.as_tensor(asked[name]), torch.as_tensor(trained[name])), name


def test_inference_never_sees_the_last_answer(family):
    batch = collator(family, train=False)([item("a", TWO_TURNS)])
    text = family[1].tokenizer.decode(batch["input_ids"][0])
    assert "a dog" in text and "blue square" not in text and text.endswith("<|im_start|>assistant\n")


def test_padding_side(family):
    items = [item("a"), item("bb", TWO_TURNS)]
    right, left = collator(family)(items), collator(family, train=False)(items)
    assert right["attention_mask"][0, -1] == 0 and right["attention_mask"][:, 0].all()
    assert left["attention_mask"][0, 0] == 0 and left["attention_mask"][:, -1].all()


def test_left_padded_batch_generates_what_single_prompts_do(family):
    model = family[0]
    items = [item("a"), item("bb", TWO_TURNS)]
    make = collator(family, train=False, channels={})

    def generate(batch):
        batch = {k: v for k, v in batch.items() if k not in ("side_channels", "frame_times")}
        return model.generate(**batch, max_new_tokens=5, do_sample=False)[:, batch["input_ids"].shape[1] :]

    together = generate(make(items))
    for row, one in enumerate(items):
        assert torch.equal(together[row], generate(make([one]))[0])


def test_batch_runs_through_the_model_and_rows_equal_single_samples(family):
    model = family[0]
    items = [item("a"), item("bb", TWO_TURNS)]
    make = collator(family, channels={})

    def logits(batch):
        inputs = {k: v for k, v in batch.items() if k not in ("side_channels", "frame_times", "labels")}
        return model(**inputs).logits

    together = make(items)
    for row, one in enumerate(items):
        alone = make([one])
        n = alone["input_ids"].shape[1]
        torch.testing.assert_close(logits(together)[row, :n], logits(alone)[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(together["labels"][row, :n], alone["labels"][0])


def test_side_channels_frame_times_and_missing_channels(family):
    items = [
        item("a", side={"audio": features(5, 6), "depth": None}),
        item("bb", side={"audio": features(3, 6, seed=1)}, start=2.0),
    ]
    batch = collator(family, with_ids=True)(items)
    audio, depth = batch["side_channels"]["audio"], batch["side_channels"]["depth"]
    assert audio.embeds_BKMC.shape == (2, 5, 1, 6) and audio.valid_BK.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    np.testing.assert_array_equal(audio.embeds_BKMC[1, :3].numpy(), items[1].side["audio"].features_KMC)
    np.testing.assert_array_equal(audio.times_BK[0].numpy(), items[0].side["audio"].times_K)
    assert depth.width == 3 and not depth.present_B().any()
    assert batch["frame_times"].dtype == np.float64
    np.testing.assert_array_equal(batch["frame_times"], [[0, 0.5, 1, 1.5], [2, 2.5, 3, 3.5]])
    assert batch["sample_ids"] == ["a", "bb"] and "sample_ids" not in collator(family)(items)


def test_position_ids_only_where_the_family_needs_them():
    qwen, llava = tiny_qwen2_5_vl(), tiny_llava_onevision()
    batch = collator(qwen)([item("a"), item("bb", TWO_TURNS)])
    assert batch["position_ids"].shape == (3, *batch["input_ids"].shape)
    assert "position_ids" not in collator(llava)([item("a")])


def test_ragged_videos():
    """Qwen2.5-VL takes videos of different lengths in one batch; LLaVA-OneVision cannot, and the error says what to do."""
    items = [item("short", frames=2), item("long", frames=4)]
    batch = collator(tiny_qwen2_5_vl())(items)
    assert batch["video_grid_thw"][:, 0].tolist() == [1, 2]
    assert np.isnan(batch["frame_times"]).tolist() == [[False, False, True, True], [False] * 4]
    with pytest.raises(ValueError, match=r"'short': 2, 'long': 4.*batch size of 1"):
        collator(tiny_llava_onevision())(items)


def test_published_llava_onevision_template_trains_on_its_generation_prompt():
    model, processor = tiny_llava_onevision()
    processor.chat_template = PUBLISHED_TEMPLATE
    family = (model, processor)
    trained, asked = collator(family)([item("a", TWO_TURNS)]), collator(family, train=False)([item("a", TWO_TURNS)])
    assert learnt(family, trained, 0) == ["a dog<|im_end|>", "the red circle, then the blue square<|im_end|>"]
    n = asked["input_ids"].shape[1]
    assert torch.equal(trained["input_ids"][0, :n], asked["input_ids"][0])
    text = processor.tokenizer.decode(trained["input_ids"][0])
    assert "assistant \n" not in text and text.count("<|im_start|>assistant\na dog<|im_end|>") == 1


@pytest.mark.parametrize("answer", ["end", "d", "im", "|", "assistant", "the end", "\N{SNOWMAN}", "end\N{SNOWMAN}end"])
def test_an_answer_that_is_part_of_the_template_is_learnt_and_remembered_whole(answer):
    model, processor = tiny_llava_onevision()
    processor.chat_template = PUBLISHED_TEMPLATE
    turns = (("what sound is heard?", answer), ("and then?", "a bell"))
    assert learnt((model, processor), collator((model, processor))([item("a", turns)]), 0) == [
        f"{answer}<|im_end|>",
        "a bell<|im_end|>",
    ]
    asked = render_prompt(processor, ((turns[0]), (turns[1][0], None))).text
    assert asked.count(f"<|im_start|>assistant\n{answer}<|im_end|><|im_start|>user") == 1


def test_render_prompt_equals_the_template_where_it_only_appends(family):
    processor = family[1]
    messages = []
    for number, (question, answer) in enumerate(TWO_TURNS):
        content = [{"type": "text", "text": question}]
        messages.append({"role": "user", "content": content if number else [{"type": "video"}, *content]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    prompt = render_prompt(processor, TWO_TURNS)
    assert prompt.text == processor.apply_chat_template(messages, tokenize=False)
    assert [prompt.text[a:b] for a, b in prompt.answers] == [f"{answer}<|im_end|>" for _, answer in TWO_TURNS]


def test_template_that_rewrites_earlier_turns_is_refused(family):
    processor = family[1]
    original = processor.chat_template
    try:
        processor.chat_template = original.replace(
            "<|im_start|>{{ message['role'] }}", "{{ messages|length }}{{ message['role'] }}"
        )
        with pytest.raises(ValueError, match=r"sample 'bb'.*rewrites"):
            collator(family)([item("bb", TWO_TURNS)])
    finally:
        processor.chat_template = original


def test_template_without_end_of_turn_is_refused():
    model, processor = tiny_llava_onevision()
    processor.chat_template = processor.chat_template.replace("<|im_end|>", "")
    with pytest.raises(ValueError, match=r"sample 'a'.*no end-of-turn token"):
        collator((model, processor))([item("a")])


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((("q", None),), "no answer to learn from"),
        ((("q", "  "),), "empty"),
        ((("q", None), ("r", "s")), "turn 1 of 2 has no answer"),
        ((), "no turn"),
        ((("say <|im_start|>", "a"),), r"special token"),
        ((("q", "a<|im_end|>"),), r"special token"),
    ],
)
def test_bad_samples_are_named(family, turns, message):
    with pytest.raises(ValueError, match=rf"sample 'bad'.*{message}"):
        collator(family)([item("good"), item("bad", turns)])


def test_placeholder_in_a_question_is_refused(family):
    token = family[1].video_token
    with pytest.raises(ValueError, match=r"sample 'bad'.*special token"):
        collator(family)([item("bad", ((f"what is {token}?", "a"),))])


def test_too_long_rows_and_wrong_widths_are_errors(family):
    length = collator(family)([item("a")])["attention_mask"].sum().item()
    collator(family, max_length=length)([item("a")])
    with pytest.raises(ValueError, match=rf"sample 'a'.*{length} tokens.*max_length is {length - 1}"):
        collator(family, max_length=length - 1)([item("a")])
    with pytest.raises(ValueError, match=r"sample 'a'.*'audio' are 7 wide.*takes 6"):
        collator(family)([item("a", side={"audio": features(2, 7)})])


def test_broken_features_stop_training_and_count_as_missing_in_inference(family):
    for bad in (float("nan"), float("inf")):
        broken = features(4, 6)
        broken.features_KMC[2, 0, 3] = bad
        items = [item("fine", side={"audio": features(4, 6)}), item("b", side={"audio": broken})]
        with pytest.raises(
            ValueError, match=r"sample 'b': the features of side channel 'audio' hold NaN or infinity in 1 of 4 steps.*2;"
        ):
            collator(family)(items)
        for lenient in (collator(family, train=False), collator(family, broken_features="missing")):
            tokens = lenient(items)["side_channels"]["audio"].without_nonfinite()
            assert tokens.valid_BK.tolist() == [[True] * 4, [True, True, False, True]]


def test_answers_are_found_in_any_text(family):
    """Repeated words, digits, line breaks, other scripts: the labels always decode to the answer."""
    for answer in ("a", "what sound is heard?", "1 2 3\n4", "нет, 犬", "user\nassistant"):
        batch = collator(family)([item("a", (("what sound is heard? a", answer), ("and?", answer)))])
        assert learnt(family, batch, 0) == [f"{answer}<|im_end|>"] * 2


def test_answer_outside_the_vocabulary_is_an_error():
    from evidence.small_bases.models import build_model, build_processor

    family = (build_model(0), build_processor())
    batch = collator(family)([item("a", (("what sound is heard ?", "bell"),))])
    assert learnt(family, batch, 0)[0].startswith("bell")
    with pytest.raises(ValueError, match=r"sample 'a'.*vocabulary lacks a word of the answer 'gong"):
        collator(family)([item("a", (("what sound is heard ?", "gong"),))])


def test_video_metadata_gives_true_times_and_rate():
    from transformers.video_utils import VideoMetadata

    metadata = VideoMetadata(**video_metadata(np.array([0.25, 0.75, 1.25, 1.75]), (4, 6)))
    np.testing.assert_allclose(metadata.timestamps, [0.25, 0.75, 1.25, 1.75])
    assert metadata.sampled_fps == pytest.approx(2.0) and (metadata.height, metadata.width) == (4, 6)
    assert VideoMetadata(**video_metadata(np.array([0.0]), (4, 6))).sampled_fps == 1.0
