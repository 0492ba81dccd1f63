"""Requests in, answers out: rows of a batch do not know of each other, and nothing is asked of a model that was."""

import gc
import re
import shutil
import threading
import weakref
from dataclasses import replace

import pytest
import torch

from cases import shake, shake_parameters
from pave import (
    EncoderConfig,
    FusionConfig,
    LoraSettings,
    PatchConfig,
    SideChannelConfig,
    attach_patch,
    detach_patch,
    load_patch,
    save_patch,
    unload_patch,
)
from pave.data.dataset import PatchDataset
from pave.data.media import FrameSampling
from pave.data.samples import Message, Sample
from pave.data.vision import MemoryVision, VisionEncoder
from pave.inference import Counterfactual, Engine, Lender, Request, Sampling
from pave.inference.cache import ByteCache
from pave.inference.media import MediaReader
from pave.patching import patch_parameters
from pave.video_llms.loading import load_base
from tiny_models import tiny_qwen2_5_vl
from tiny_runs import hearing_config, save_base_and_patch, write_clip

QUESTION = "what sound is heard?"
FRAMES = FrameSampling(num_frames=4)
SHORT = Sampling(max_new_tokens=8)


def save_second_patch(base, folder):
    """A patch that hears through another encoder, under the same name of a channel."""
    model, processor = load_base(base)
    channel = SideChannelConfig(
        width=8,
        encoder=EncoderConfig(name="log_mel", settings={"n_mels": 8}),
        fusion=FusionConfig(width=16, embed_width=16, num_heads=2),
    )
    config = PatchConfig(side_channels={"audio": channel}, lora=LoraSettings(rank=2), storage_dtype="float32")
    attach_patch(model, config)
    save_patch(shake(model, seed=3, scale=0.7), folder, processor=processor)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, base, patches by name)."""
    folder = tmp_path_factory.mktemp("engine")
    base, first = save_base_and_patch(folder)
    for seed in range(3):
        write_clip(folder / f"{seed}.mp4", seed)
    write_clip(folder / "silent.mp4", 1, sound=False)
    write_clip(folder / "long.mp4", 4, seconds=3.0)
    return folder, base, {"hearing": first, "tones": save_second_patch(base, folder / "second")}


@pytest.fixture(scope="module")
def engine(world):
    _, base, patches = world
    return Engine.from_pretrained(base, patches, device="cpu", sampling=FRAMES)


def asked(world, number=0, **fields):
    return Request(world[0] / f"{number}.mp4", QUESTION, **{"sampling": SHORT, **fields})


def text_of(engine, request):
    (answer,) = engine.answer([request])
    if isinstance(answer, ValueError):
        raise answer
    return answer.text


class Logits:
    """A logits processor that remembers what it sees and changes nothing."""

    def __init__(self):
        self.seen = []

    def __call__(self, ids, scores):
        self.seen.append(scores.clone())
        return scores


def logits_of(engine, request):
    """Of the first token."""
    seen = Logits()
    engine.answer([request], logits_processor=[seen])
    return seen.seen[0]


CHOICES = (
    None,
    "hearing",
    "tones",
    {"hearing": 0.4, "tones": (1.0, 0.3)},
    {"hearing": (0.0, 0.7)},
    {"tones": 0.0},
)


def mixed(world):
    """Requests of every kind, about videos of one length."""
    samplings = (
        SHORT,
        Sampling(max_new_tokens=5, temperature=1.5, seed=1),
        Sampling(max_new_tokens=12, temperature=0.9, top_p=0.8, seed=2),
    )
    return [
        asked(world, name, patches=patches, sampling=samplings[number % 3])
        for number, (name, patches) in enumerate((n, p) for n in (0, 1, "silent") for p in CHOICES)
    ]


def test_a_mixed_batch_answers_as_its_requests_do_alone(world, engine):
    requests = mixed(world)
    together = engine.answer(requests, batch_size=len(requests))
    alone = [engine.answer([request])[0] for request in requests]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    for field in ("finish_reason", "new_tokens", "prompt_tokens", "frame_times", "side_channels"):
        assert [getattr(a, field) for a in together] == [getattr(a, field) for a in alone], field
    assert len({answer.text for answer in together}) > 8
    plain = Engine.from_pretrained(world[1], device="cpu", sampling=FRAMES)
    for request, answer in zip(requests, together):
        if request.patches in (None, {"tones": 0.0}) or "silent" in str(request.video):
            assert answer.text == text_of(plain, replace(request, patches=None))


def test_rows_are_streamed_in_pieces_that_make_their_text(world, engine):
    reads = [engine.read(request) for request in mixed(world)]
    told = {}
    answers = engine.generate(reads, on_text=lambda row, piece: told.setdefault(row, []).append(piece))
    assert ["".join(told.get(row, [])) for row in range(len(reads))] == [answer.text for answer in answers]
    assert max(map(len, told.values())) > 3
    assert ["".join(engine.stream(read.request)) for read in reads[:3]] == [answer.text for answer in answers[:3]]


def test_a_row_stops_by_its_own_texts_and_length(world, engine):
    whole = engine.answer([asked(world)])[0]
    stop = re.findall(r"[a-z]{3,}", whole.text)[-1][:3]
    assert whole.text.find(stop) > 2, "the tiny model says too little to be stopped"
    stopped = replace(SHORT, stop=("nowhere", stop))
    rows = [asked(world, sampling=sampling) for sampling in (stopped, SHORT, replace(SHORT, max_new_tokens=2))]
    first, second, third = engine.answer(rows)
    assert first.text == whole.text[: whole.text.find(stop)].rstrip() and first.finish_reason == "stop"
    assert (second.text, second.finish_reason) == (whole.text, whole.finish_reason)
    assert (third.new_tokens, third.finish_reason) == (2, "length") and whole.text.startswith(third.text)


def test_a_cancelled_row_ends_and_the_others_go_on(world, engine):
    reads = [engine.read(asked(world, number)) for number in (0, 1)]
    plain = engine.generate(reads)
    told = []
    answers = engine.generate(
        reads, on_text=lambda row, piece: told.append(row), cancelled=lambda row: row == 0 and told.count(0) >= 2
    )
    assert answers[0].finish_reason == "cancelled" and answers[0].new_tokens < plain[0].new_tokens
    assert plain[0].text.startswith(answers[0].text) and answers[1].text == plain[1].text


def test_closing_a_stream_cancels_it(world, engine, monkeypatch):
    done = []
    generate = engine.generate
    monkeypatch.setattr(engine, "generate", lambda *a, **more: done.extend(generate(*a, **more)) or done)
    pieces = engine.stream(asked(world, sampling=Sampling(max_new_tokens=400, temperature=2.0, seed=5)))
    first = next(pieces)
    pieces.close()
    assert done[0].finish_reason == "cancelled" and done[0].text.startswith(first) and done[0].new_tokens < 400
    assert not [thread for thread in threading.enumerate() if thread.name == "pave-stream"]


def test_an_error_while_streaming_comes_out_of_the_stream(world, engine):
    with pytest.raises(ValueError, match=r"gone\.mp4"):
        engine.stream(Request(world[0] / "gone.mp4", QUESTION))
    read = engine.read(asked(world, patches="hearing"))
    broken = replace(read, configs={"hearing": read.configs["hearing"], "gone": read.configs["hearing"]})
    with pytest.raises(ValueError, match="the patch 'gone' was taken off or replaced"):
        next(engine._pieces(broken))


def test_what_the_cache_holds_answers_bit_for_bit_and_a_changed_file_is_read_anew(world, tmp_path):
    folder, base, patches = world
    engine = Engine.from_pretrained(base, patches, device="cpu", sampling=FRAMES)
    video = tmp_path / "clip.mp4"
    shutil.copy(folder / "0.mp4", video)

    def run():
        seen = Logits()
        (answer,) = engine.answer([Request(video, QUESTION, sampling=SHORT)], logits_processor=[seen])
        return answer, torch.stack(seen.seen)

    first, logits = run()
    again, same = run()
    assert (first.cached, again.cached) == (False, True)
    assert again.text == first.text and torch.equal(same, logits)
    other = engine.answer([Request(folder / "0.mp4", "red?", patches=None, sampling=SHORT)])[0]
    assert other.cached, "the encoded video belongs to its content, whatever the path, the question and the patches"
    shutil.copy(folder / "1.mp4", video)
    changed, _ = run()
    assert not changed.cached and changed.text == text_of(engine, asked(world, 1)) != first.text
    nothing = Engine.from_pretrained(base, patches, device="cpu", sampling=FRAMES, cache_bytes=0)
    assert not nothing.answer([asked(world)] * 2)[1].cached and len(nothing.reader.media.cache) == 0
    assert text_of(nothing, asked(world)) == first.text


def test_the_cache_keeps_to_its_bytes_and_lets_the_oldest_go(world):
    folder, base, patches = world
    engine = Engine.from_pretrained(base, patches, device="cpu", sampling=FRAMES)
    cache = engine.reader.media.cache
    engine.answer([asked(world)])
    one = cache.num_bytes
    small = Engine.from_pretrained(base, patches, device="cpu", sampling=FRAMES, cache_bytes=2 * one)
    order = (0, 1, 0, 2, 0, 1)
    hits = [small.answer([asked(world, number)])[0].cached for number in order]
    assert hits[2] and hits[4] and not hits[5] and small.reader.media.cache.num_bytes <= 2 * one


def test_patches_that_come_and_go_are_seen(world):
    folder, base, patches = world
    model, processor = load_base(base)
    engine = Engine(model, processor, sampling=FRAMES)
    plain = text_of(engine, asked(world))
    load_patch(model, patches["hearing"], name="hearing")
    heard = text_of(engine, asked(world))
    assert heard != plain == text_of(engine, asked(world, patches=None))
    load_patch(model, patches["tones"], name="tones")
    both = text_of(engine, asked(world))
    assert both == text_of(engine, asked(world, patches={"hearing": 1.0, "tones": 1.0})) != heard
    model.select_patches("tones")
    assert text_of(engine, asked(world)) == text_of(engine, asked(world, patches="tones"))
    with model.patches_selected({"hearing": 0.5}):
        assert text_of(engine, asked(world)) == text_of(engine, asked(world, patches={"hearing": 0.5}))
        assert "".join(engine.stream(asked(world))) == text_of(engine, asked(world, patches={"hearing": 0.5}))
    with model.patch_disabled():
        assert text_of(engine, asked(world)) == plain
    read = engine.read(asked(world, patches="tones"))
    unload_patch(model, "tones")
    with pytest.raises(ValueError, match="the patch 'tones' was taken off or replaced after the request was read"):
        engine.generate([read])
    load_patch(model, patches["hearing"], name="tones")
    with pytest.raises(ValueError, match="the patch 'tones' was taken off or replaced"):
        engine.generate([read])
    with pytest.raises(ValueError, match="the model carries no patch 'depth'; attached: hearing, tones"):
        text_of(engine, asked(world, patches="depth"))
    detach_patch(model, "hearing")
    detach_patch(model, "tones")
    assert text_of(engine, asked(world)) == plain
    with pytest.raises(ValueError, match="no patch 'hearing'; none is attached"):
        text_of(engine, asked(world, patches="hearing"))


def test_side_channels_are_named_by_channel_or_by_patch_and_channel(world, engine):
    folder = world[0]
    both = {"hearing": 1.0, "tones": 1.0}
    (answer,) = engine.answer([asked(world, patches=both)])
    assert set(answer.side_channels) == {"hearing.audio", "tones.audio"}
    assert set(engine.answer([asked(world, patches="tones")])[0].side_channels) == {"audio"}
    other = folder / "1.mp4"
    changed = {"hearing": {"audio": other}, "tones": {"audio": None}}
    alone = text_of(engine, asked(world, patches="hearing", side_channels={"audio": other}))
    assert text_of(engine, asked(world, patches=both, side_channels=changed)) == alone
    own, heard = (asked(world, patches="hearing", side_channels=side) for side in ({}, {"audio": other}))
    assert not torch.equal(logits_of(engine, own), logits_of(engine, heard))
    for given, message in (
        ({"depth": None}, "there is no side channel 'depth': the model has audio"),
        ({"seeing": {"audio": None}}, "the model carries no patch 'seeing'; attached: hearing, tones"),
        ({"tones": {"depth": None}}, "there is no side channel 'depth': the model has audio"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.read(asked(world, side_channels=given))


def test_a_bad_request_fails_alone(world, engine):
    folder = world[0]
    requests = [
        asked(world),
        Request(folder / "gone.mp4", QUESTION),
        Request(folder / "long.mp4", QUESTION, sampling=SHORT, frames=FrameSampling(fps=2)),
        Request(folder / "0.mp4", "what <video> is this?"),
        asked(world, 1),
    ]
    answers = engine.answer(requests, batch_size=4)
    assert isinstance(answers[1], ValueError) and "gone.mp4" in str(answers[1])
    assert isinstance(answers[3], ValueError) and "special token" in str(answers[3])
    for number in (0, 2, 4):
        assert answers[number].text == text_of(engine, requests[number])
    assert len(answers[2].frame_times) == 6


def test_two_threads_answer_as_one(world):
    folder, base, patches = world
    engine = Engine.from_pretrained(base, patches, device="cpu", sampling=FRAMES)
    requests = [mixed(world)[:6], mixed(world)[6:12]]
    alone = [[answer.text for answer in engine.answer(some)] for some in requests]
    fresh = Engine(engine.model, engine.processor, sampling=FRAMES)
    found = {}

    def run(number):
        found[number] = [[answer.text for answer in fresh.answer(requests[number], batch_size=2)] for _ in range(3)]

    fresh.model.train()
    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [alone[number]] * 3 for number in (0, 1)}
    assert fresh.model.training


def test_earlier_turns_are_part_of_the_prompt(world, engine):
    history = (("red?", "no"), ("which object?", "the square"))
    given = asked(world, history=history)
    messages = [Message(role=role, content=text) for turn in history for role, text in zip(("user", "assistant"), turn)]
    sample = Sample(id="a", video=str(given.video), messages=(*messages, Message(role="user", content=QUESTION)))
    assert Request.of_sample(sample, sampling=SHORT).turns == given.turns
    assert text_of(engine, given) != text_of(engine, asked(world))
    assert engine.answer([given])[0].prompt_tokens > engine.answer([asked(world)])[0].prompt_tokens


def test_a_question_about_text_alone(world, engine):
    requests = [Request(None, question, sampling=SHORT) for question in (QUESTION, "red?")]
    answers = engine.answer([*requests, asked(world)])
    assert [a.text for a in answers[:2]] == [text_of(engine, replace(r, patches=None)) for r in requests]
    assert answers[0].frame_times == () and answers[0].side_channels == {} and answers[0].text != answers[2].text
    tokenizer = engine.processor.tokenizer
    prompt = engine.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}], add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    new = engine.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert answers[0].text == tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_a_counterfactual_is_an_argument(world, engine):
    hearing = asked(world, patches="hearing")
    removed = replace(hearing, counterfactual=Counterfactual("removed"))
    lent = Counterfactual("swapped", lender=Lender(world[0] / "1.mp4"))
    base, swapped = replace(hearing, patches=None), replace(hearing, side_channels={"audio": world[0] / "1.mp4"})
    found = [logits_of(engine, request) for request in (removed, replace(hearing, counterfactual=lent), hearing)]
    wanted = [logits_of(engine, request) for request in (base, swapped, hearing)]
    assert all(map(torch.equal, found, wanted))
    assert not torch.equal(wanted[0], wanted[1]) and not torch.equal(wanted[1], wanted[2])
    with pytest.raises(ValueError, match="'swapped' borrows the stream of another video: say which, with lender="):
        replace(hearing, counterfactual=Counterfactual("swapped"))
    with pytest.raises(ValueError, match="the model has no side channel to change"):
        text_of(engine, replace(removed, patches=None))


def test_beams_are_an_argument_of_generate_and_are_not_followed(world, engine):
    (answer,) = engine.answer([asked(world)], num_beams=3)
    batch = engine._collated([engine.reader.encoded(engine.read(asked(world)))])
    from pave.inference.generation import generate_texts

    by_hand = generate_texts(engine.model, engine.processor, batch, num_beams=3, max_new_tokens=8)
    assert [answer.text] == by_hand
    with pytest.raises(ValueError, match="num_beams: a beam search is neither streamed"):
        engine.generate([engine.read(asked(world))], on_text=lambda *_: None, num_beams=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": " "}, "field 'question' is empty"),
        ({"video": "https://a.b/c.mp4"}, "field 'video': .* is an address"),
        ({"choices": ("one",)}, "needs 2 to 26 choices"),
        ({"choices": "ab"}, "field 'choices': a tuple of texts"),
        ({"patches": {"a": -1}}, "the strength of 'a' must be a finite number"),
        ({"patches": 3}, "field 'patches': a name, a mapping"),
        ({"side_channels": {"a b": None}}, "'a b' is no name of a channel"),
        ({"side_channels": {"a": {"b": {"c": None}}}}, "field 'side_channels.a.b': a path or None"),
        ({"side_channels": {"a": 3}}, "field 'side_channels.a': a path or None"),
        ({"history": (("q",),)}, r"field 'history\[0\]': \(question, answer\)"),
        ({"history": (("q", " "),)}, r"history\[0\], the answer' is empty"),
        ({"sampling": {"seed": 1}}, "field 'sampling': a Sampling is needed"),
        ({"frames": 8}, "field 'frames': a FrameSampling is needed"),
        ({"video": None, "side_channels": {"audio": None}}, "field 'side_channels': there is no video"),
        ({"video": None, "frames": FRAMES}, "field 'frames': there is no video"),
        ({"counterfactual": "removed"}, "field 'counterfactual': a Counterfactual is needed"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Request(**{"video": "a.mp4", "question": "q", **fields})


def test_another_family_answers_mixed_batches_as_well(world):
    model, processor = tiny_qwen2_5_vl()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    attach_patch(model, hearing_config())
    engine = Engine(shake(model, scale=0.7), processor, sampling=FRAMES)
    choices = ("default", None, {"default": 0.5}, {"default": (1.0, 0.0)})
    requests = [asked(world, number, patches=patches) for number in (0, 1) for patches in choices]
    together = engine.answer(requests, batch_size=8)
    assert [answer.text for answer in together] == [text_of(engine, request) for request in requests]
    assert len({answer.text for answer in together}) > 2
    pixels = Engine(model, processor, sampling=FRAMES, cache_bytes=0)
    assert [answer.text for answer in together] == [text_of(pixels, request) for request in requests]


@pytest.fixture(scope="module")
def adding(world):
    """An engine with a patch that hears by fusion and two whose tokens stand in the prompt."""
    model, processor = load_base(world[1])
    mel = EncoderConfig(name="log_mel", settings={"n_mels": 8})
    for name, kind in (("fused", "cross_attention"), ("joined", "concat"), ("woven", "interleave")):
        channel = SideChannelConfig(width=8, encoder=mel, fusion=FusionConfig(kind=kind, width=16, embed_width=16, num_heads=2))
        config = PatchConfig(side_channels={"audio": channel}, lora=LoraSettings(rank=2), storage_dtype="float32")
        attach_patch(model, config, name=name)
    shake_parameters([p for name in model.patch_names for p in patch_parameters(model, name)], scale=0.7)
    return Engine(model, processor, sampling=FRAMES)


@pytest.mark.parametrize("name", ["fused", "joined", "woven"])
def test_a_model_with_its_patches_disabled_answers_as_the_base_and_reads_no_side_channel(world, adding, name):
    plain = asked(world, patches=None)
    with adding.model.patch_disabled():
        (answer,) = adding.answer([asked(world, patches=name)])
        assert torch.equal(logits_of(adding, asked(world, patches=name)), logits_of(adding, plain))
    (base,) = adding.answer([plain])
    assert (answer.text, answer.prompt_tokens, answer.side_channels) == (base.text, base.prompt_tokens, {})
    assert not torch.equal(logits_of(adding, asked(world, patches=name)), logits_of(adding, plain))


def test_a_patch_whose_lora_alone_acts_leaves_the_prompt_to_the_one_that_adds_to_it(world, adding):
    alone, mixed_in = ({"woven": 1.0}, {"joined": (0.0, 1.0), "woven": 1.0})
    length = adding.answer([asked(world, patches=alone)])[0].prompt_tokens
    (answer,) = adding.answer([asked(world, patches=mixed_in)])
    assert answer.prompt_tokens == length > adding.answer([asked(world, patches=None)])[0].prompt_tokens
    assert not torch.equal(*(logits_of(adding, asked(world, patches=patches)) for patches in (alone, mixed_in)))


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"max_new_tokens": 3}, "max_new_tokens belongs in Request.sampling"),
        ({"temperature": 1.0}, "temperature belongs in Request.sampling"),
        ({"patches": None}, "patches belongs in Request.patches"),
        ({"num_return_sequences": 2}, "num_return_sequences: a question gets one answer"),
    ],
)
def test_what_a_request_says_is_no_argument_of_generate(world, engine, generation, message):
    with pytest.raises(ValueError, match=message):
        engine.answer([asked(world)], **generation)
    with pytest.raises(ValueError, match=message):
        engine.generate([engine.read(asked(world))], **generation)


def test_arguments_of_generate_that_say_nothing_change_nothing_and_an_end_token_ends(world, engine):
    (usual,) = engine.answer([asked(world)])
    (same,) = engine.answer([asked(world)], num_beams=None, num_return_sequences=1)
    assert same.text == usual.text
    seen = Logits()
    engine.answer([asked(world)], logits_processor=[seen])
    tokens = [int(scores.argmax()) for scores in seen.seen]
    (ended,) = engine.answer([asked(world)], eos_token_id=tokens[1])
    assert ended.finish_reason == "stop" and ended.new_tokens == tokens.index(tokens[1]) + 1 < usual.new_tokens


def test_a_model_in_training_is_in_evaluation_from_encoding_to_the_last_token(world, monkeypatch):
    engine = Engine.from_pretrained(world[1], world[2], device="cpu", sampling=FRAMES)
    engine.model.train()
    seen, encoded = [], engine.reader.encoded

    def spy(read):
        seen.append(any(module.training for module in engine.model.modules()))
        return encoded(read)

    monkeypatch.setattr(engine.reader, "encoded", spy)
    engine.answer([asked(world)])
    assert seen == [False] and engine.model.training


def test_frames_that_a_source_does_not_have_are_refused(world):
    model, processor = load_base(world[1])
    other = FrameSampling(num_frames=2)
    made = MemoryVision(VisionEncoder(model, processor), FRAMES, 2**20)
    stored = MediaReader(ByteCache(0), vision=made)
    for options in ({"media": stored, "sampling": FRAMES}, {"dataset": PatchDataset((), FRAMES, {}, {})}):
        source = Engine(model, processor, **options)
        assert len(source.read(asked(world, frames=FRAMES)).item.times_F) == 4
        with pytest.raises(ValueError, match=r"0\.mp4': its frames are .*, which has .*4.*, not .*2.*; leave frames out"):
            text_of(source, asked(world, frames=other))


def test_an_encoded_video_belongs_to_the_weights_and_the_processor_that_made_it(world):
    model, processor = load_base(world[1])
    engine = Engine(model, processor, sampling=FRAMES)
    weight = next(p for name, p in model.named_parameters() if "vision" in name and p.ndim > 1)
    text = asked(world, patches=None)

    def cached():
        (answer,) = engine.answer([text])
        assert torch.equal(logits_of(engine, text), logits_of(Engine(model, processor, sampling=FRAMES, cache_bytes=0), text))
        return answer.cached

    assert [cached(), cached()] == [False, True]
    with torch.no_grad():
        weight.add_(0.1)
    assert [cached(), cached()] == [False, True]
    weight.data += 0.1  # as merged LoRA does: no count of changes sees it
    assert [cached(), cached()] == [False, True]
    processor.video_processor.image_mean = [0.1, 0.2, 0.3]
    assert [cached(), cached()] == [False, True]


def test_a_video_is_kept_with_what_its_key_says_whatever_patch_came_meanwhile(world):
    model, processor = load_base(world[1])
    attach_patch(model, hearing_config(), name="plain")
    engine = Engine(model, processor, sampling=FRAMES)
    read = engine.read(asked(world))
    fusion = FusionConfig(width=16, embed_width=16, num_heads=2, query_source="pre_projector")
    channel = SideChannelConfig(width=8, encoder=EncoderConfig(name="log_mel", settings={"n_mels": 8}), fusion=fusion)
    attach_patch(model, PatchConfig(side_channels={"audio": channel}, lora=None), name="early")
    assert engine.key(read) != engine.key(engine.read(asked(world, patches="early")))
    engine.generate([read])
    (answer,) = engine.answer([asked(world, patches="early")])
    assert not answer.cached


def test_an_encoder_goes_with_the_last_patch_that_names_it(world):
    _, base, patches = world
    engine = Engine.from_pretrained(base, patches, device="cpu", sampling=FRAMES)
    mel = engine.model.patch_configs["tones"].side_channels["audio"].encoder
    engine.answer([asked(world)])
    built = weakref.ref(engine.reader.media.encoder(mel))
    engine.answer([asked(world, patches="hearing")])
    assert built() is not None
    unload_patch(engine.model, "tones")
    engine.answer([asked(world)])
    gc.collect()
    assert built() is None


def test_a_question_about_text_beyond_the_context_is_refused(world, engine):
    request = Request(None, "red " * 2100, patches=None, sampling=SHORT)
    with pytest.raises(ValueError, match="the prompt has 2[0-9]+ tokens, the base's context is 2048; nothing is truncated"):
        text_of(engine, request)
