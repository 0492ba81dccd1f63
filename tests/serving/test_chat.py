"""Answers over HTTP, asked by OpenAI's own client, are the engine's own."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from served import QUESTION, about, data_url, own_answer

BOTH = [{"name": "hearing", "strength": 0.7}, {"name": "moving", "strength": 0.5, "lora_strength": 0.25}]
OWN_BOTH = {"hearing": 0.7, "moving": (0.5, 0.25)}


def ask(server, model="playground", *, stream=False, **fields):
    """The text of an answer, whole or put together from its pieces."""
    extra = {name: fields.pop(name) for name in ("patches", "side_channels", "frames", "top_k") if name in fields}
    done = server.client().chat.completions.create(
        model=model, stream=stream, extra_body=extra, **{"max_tokens": 8, "temperature": 0, **fields}
    )
    if not stream:
        return done.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in done if chunk.choices)


@pytest.mark.parametrize("stream", [False, True])
def test_base_patches_and_both_answer_as_the_engine_does(server, alone, world, stream):
    clip, log = world / "0.mp4", world / "imu.csv"
    imu = {"moving": {"imu": {"url": f"file://{log}"}}}
    own_imu = {"moving": {"imu": log}}
    asked = {"messages": about(data_url(clip)), "stream": stream}
    expected = {
        "base": own_answer(alone, clip, patches=None),
        "hearing": own_answer(alone, clip, patches="hearing"),
        "moving": own_answer(alone, clip, patches="moving", side_channels=own_imu),
        "both": own_answer(alone, clip, patches=OWN_BOTH, side_channels=own_imu),
    }
    assert len(set(expected.values())) == 4  # or the comparison would show nothing
    assert ask(server, **asked) == expected["base"]
    assert ask(server, "hearing", **asked) == expected["hearing"]
    assert ask(server, "moving", side_channels=imu, **asked) == expected["moving"]
    assert ask(server, patches=BOTH, side_channels=imu, **asked) == expected["both"]


def test_strength_zero_is_the_base(server, alone, world):
    messages = about(data_url(world / "1.mp4"))
    none = ask(server, patches=[{"name": "hearing", "strength": 0}], messages=messages)
    assert none == own_answer(alone, world / "1.mp4", patches=None) != ask(server, "hearing", messages=messages)


def test_requests_of_different_patches_share_batches_and_keep_their_answers(server, alone, world):
    cases = [(clip, patch) for clip in ("0.mp4", "1.mp4") for patch in ("playground", "hearing", "watching")] * 3
    expected = {
        case: own_answer(alone, world / case[0], patches=None if case[1] == "playground" else case[1]) for case in cases
    }
    before = batches(server)
    with ThreadPoolExecutor(len(cases)) as pool:
        texts = list(pool.map(lambda case: ask(server, case[1], messages=about(str(world / case[0]))), cases))
    assert texts == [expected[case] for case in cases]
    count, answers = (after - start for after, start in zip(batches(server), before, strict=True))
    assert answers == len(cases) and count < answers


def batches(server):
    """How many batches there were, and of how many answers."""
    lines = dict(line.rsplit(" ", 1) for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line[0] != "#")
    return float(lines["pave_batch_size_count"]), float(lines["pave_batch_size_sum"])


def test_the_object_is_the_one_of_openai_with_what_patches_add(server, alone, world):
    clip = world / "0.mp4"
    done = server.client().chat.completions.create(
        model="hearing", messages=about(str(clip)), max_tokens=2, extra_body={"frames": {"num_frames": 4}}
    )
    assert (done.object, done.model, done.choices[0].finish_reason) == ("chat.completion", "hearing", "length")
    assert done.usage.completion_tokens == 2
    assert done.usage.total_tokens == done.usage.prompt_tokens + 2
    about_it = done.model_extra["pave"]
    assert len(about_it["frame_times"]) == 4
    (patch,) = about_it["patches"]
    assert (patch["name"], patch["strength"], patch["lora_strength"]) == ("hearing", 1.0, 1.0)
    assert about_it["side_channels"]["audio"]["steps"] > 0


def test_a_stream_is_events_up_to_done_with_usage_at_the_end(server, world):
    body = {
        "model": "playground",
        "messages": about(str(world / "0.mp4")),
        "max_tokens": 8,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert events[-1] == "[DONE]"
    *chunks, usage = map(json.loads, events[:-1])
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0
    assert {chunk["id"] for chunk in chunks} == {usage["id"]}


def test_earlier_turns_are_seen(server, alone, world):
    first, then = "what colour is the circle ?", "which object moves first ?"
    messages = [*about(str(world / "0.mp4"), first), {"role": "assistant", "content": "red"}, {"role": "user", "content": then}]
    own = own_answer(alone, world / "0.mp4", then, patches="hearing", history=((first, "red"),))
    assert ask(server, "hearing", messages=messages) == own


def test_a_question_about_text_alone(server, alone):
    messages = [{"role": "user", "content": "what colour is the circle ?"}]
    assert ask(server, messages=messages) == own_answer(alone, None, "what colour is the circle ?", patches=None)


def test_seeds_draw_what_the_engine_draws_and_n_gives_several(server, alone, world):
    clip = world / "0.mp4"
    drawn = {"temperature": 1.5, "top_p": 0.9}
    done = server.client().chat.completions.create(
        model="hearing", messages=about(str(clip)), seed=11, n=3, max_tokens=8, extra_body={"top_k": 50}, **drawn
    )
    texts = [choice.message.content for choice in done.choices]
    own = [
        own_answer(alone, clip, patches="hearing", sampling={**drawn, "top_k": 50, "seed": 11 + number}) for number in range(3)
    ]
    assert texts == own and len(set(own)) > 1
    assert [choice.index for choice in done.choices] == [0, 1, 2]


def test_an_answer_that_is_drawn_has_a_seed_for_when_it_is_tried_again(world):
    from pave.serving.asking import Asked
    from pave.serving.limits import Limits
    from pave.serving.schemas import ChatRequest

    chat = ChatRequest(model="hearing", messages=about(str(world / "0.mp4")), temperature=1.0, n=2)
    seeds = [[one.seed for one in Asked.of(chat, "playground", Limits()).samplings(Limits())] for _ in range(2)]
    assert None not in seeds[0] + seeds[1] and len({*seeds[0], *seeds[1]}) == 4


def test_null_is_what_is_not_said(server, world):
    said = {"model": "hearing", "messages": about(str(world / "0.mp4")), "max_completion_tokens": 4}
    nulls = ("temperature", "top_p", "top_k", "n", "stream", "stream_options", "stop", "seed", "max_tokens", "user")
    answers = [
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()["choices"]
        for body in (said, {**said, **dict.fromkeys((*nulls, "patches", "side_channels", "frames"))})
    ]
    assert answers[0] == answers[1]


def test_stop_texts_end_an_answer_before_them(server, alone, world):
    clip = world / "0.mp4"
    whole = own_answer(alone, clip, patches="hearing", sampling={"max_new_tokens": 24})
    stop = whole[3:6]
    for stream in (False, True):
        text = ask(server, "hearing", messages=about(str(clip)), stop=[stop, "never"], max_tokens=24, stream=stream)
        assert text == whole[: whole.index(stop)].strip()


@pytest.mark.parametrize("form", ["audio_url", "input_audio"])
def test_sound_of_ones_own_is_heard_instead_of_the_videos(server, alone, world, form):
    clip, sound = world / "silent.mp4", world / "1.mp4"
    messages = about(str(clip))
    value = data_url(sound, "audio/mp4")
    part = {"url": value} if form == "audio_url" else {"data": value.partition(",")[2], "format": "m4a"}
    messages[0]["content"].append({"type": form, form: part})
    own = own_answer(alone, clip, patches="hearing", side_channels={"audio": sound})
    assert ask(server, "hearing", messages=messages) == own != own_answer(alone, clip, patches="hearing")


def test_side_channels_by_channel_alone_and_left_out(server, alone, world):
    clip, other = world / "0.mp4", world / "1.mp4"
    messages = about(str(clip))
    named = ask(server, "watching", messages=messages, side_channels={"second": {"url": str(other)}})
    assert named == own_answer(alone, clip, patches="watching", side_channels={"second": other})
    deaf = ask(server, "hearing", messages=messages, side_channels={"hearing": {"audio": None}})
    assert deaf == own_answer(alone, clip, patches="hearing", side_channels={"audio": None})


def test_an_upload_is_used_by_its_id_until_it_is_deleted(server, alone, world):
    client = server.client()
    with open(world / "0.mp4", "rb") as file:
        upload = client.files.create(file=file, purpose="user_data", expires_after={"anchor": "created_at", "seconds": 120})
    assert (upload.bytes, upload.filename) == ((world / "0.mp4").stat().st_size, "0.mp4")
    assert upload.expires_at - upload.created_at == 120
    assert ask(server, "hearing", messages=about(upload.id)) == own_answer(alone, world / "0.mp4", patches="hearing")
    assert [one.id for one in client.files.list()] == [upload.id]
    assert client.files.content(upload.id).read() == (world / "0.mp4").read_bytes()
    assert client.files.delete(upload.id).deleted
    with pytest.raises(Exception, match="there is no file"):
        ask(server, "hearing", messages=about(upload.id))


def test_models_say_what_there_is(server):
    models = {model.id: model.model_extra for model in server.client().models.list()}
    assert list(models) == ["playground", "hearing", "moving", "watching"]
    assert models["playground"]["parent"] is None and models["hearing"]["parent"] == "playground"
    assert models["moving"]["side_channels"] == {"imu": "sensor"}
    content = models["hearing"]["content"]
    assert content == "hearing_" + models["hearing"]["digest"].removeprefix("sha256:")[:12]
    assert server.client().models.retrieve(content).id == "hearing"
    with pytest.raises(openai.NotFoundError, match="there is no model 'org/name'"):  # as many bases are called
        server.client().models.retrieve("org/name")
    assert httpx.get(f"{server.url}/v1/models/org%2Fname").json()["error"]["code"] == "model_not_found"


def test_the_server_describes_itself(server):
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    assert httpx.get(f"{server.url}/ready").json() == {"ready": True}
    assert "swagger" in httpx.get(f"{server.url}/docs").text
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert set(described["components"]["schemas"]["ChatRequest"]["properties"]) >= {
        "model",
        "messages",
        "patches",
        "side_channels",
    }
    assert QUESTION not in httpx.get(f"{server.url}/metrics").text
