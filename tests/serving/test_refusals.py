"""Every request that is refused gets a 4xx with a code, the key that is to blame and a sentence."""

import copy
import io
import json
import logging
import os
import time

import httpx
import pytest

from pave.inference.engine import Engine
from pave.serving.auth import Keys
from pave.serving.limits import Limits
from pave.serving.server import Access
from served import about, data_url, running

JSON = {"content-type": "application/json"}
KEY, OTHER_KEY, TOKEN = "a-key-of-a-test-0001", "a-key-of-a-test-0002", "the-token-of-a-test-1"


def post(server, body, **more):
    """Status and error of a request."""
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60, **more)
    return answer.status_code, answer.json().get("error")


@pytest.fixture
def good(world):
    return {"model": "hearing", "messages": about(str(world / "0.mp4")), "max_tokens": 4}


def changed(good, **changes):
    return {**copy.deepcopy(good), **changes}


def with_part(good, part):
    body = copy.deepcopy(good)
    body["messages"][0]["content"].append(part)
    return body


TEXT = {"role": "user", "content": "and then ?"}
REFUSED = {
    "unknown key": (lambda g: changed(g, tools=[]), 400, "unknown_key", "tools", "unknown key 'tools'"),
    "unknown inside": (
        lambda g: with_part(g, {"type": "video_url", "video_url": {"url": "x", "detail": "low"}}),
        400,
        "unknown_key",
        "messages[0].content[2].video_url.detail",
        "unknown key 'detail'",
    ),
    "no model": (lambda g: {"messages": g["messages"]}, 400, "missing_key", "the body", "the key 'model' is missing"),
    "other model": (
        lambda g: changed(g, model="seeing"),
        404,
        "model_not_found",
        "model",
        "there is no model 'seeing'; there are playground",
    ),
    "system message": (
        lambda g: changed(g, messages=[{"role": "system", "content": "be brief"}, *g["messages"]]),
        400,
        "invalid_value",
        "messages[0]",
        "'system'",
    ),
    "two users": (lambda g: changed(g, messages=[*g["messages"], TEXT]), 400, "invalid_value", "messages[1]", "take turns"),
    "late video": (
        lambda g: changed(g, messages=[TEXT, {"role": "assistant", "content": "x"}, *g["messages"]]),
        400,
        "invalid_value",
        "messages[2].content[0].video_url",
        "belongs into the first message",
    ),
    "two videos": (
        lambda g: with_part(g, g["messages"][0]["content"][0]),
        400,
        "invalid_value",
        "messages[0].content[2].video_url",
        "about one video",
    ),
    "no text": (
        lambda g: changed(g, messages=[{"role": "user", "content": " "}]),
        400,
        "invalid_value",
        "messages[0]",
        "there is no text",
    ),
    "nothing to hear": (
        lambda g: {**with_part(g, {"type": "audio_url", "audio_url": {"url": "x"}}), "model": "playground"},
        400,
        "invalid_value",
        "messages[0].content[2].audio_url",
        "none of the patches of this request hears",
    ),
    "other channel": (
        lambda g: changed(g, side_channels={"depth": {"url": "x"}}),
        400,
        "invalid_value",
        "side_channels.depth",
        "no such side channel; they have hearing.audio",
    ),
    "patch and patches": (
        lambda g: changed(g, patches=[{"name": "moving"}]),
        400,
        "invalid_value",
        "model",
        "name the base as model (playground)",
    ),
    "patch twice": (
        lambda g: changed(g, model="playground", patches=[{"name": "moving"}, {"name": "moving"}]),
        400,
        "invalid_value",
        "patches[1].name",
        "each patch is listed once",
    ),
    "negative strength": (
        lambda g: changed(g, model="playground", patches=[{"name": "moving", "strength": -1}]),
        400,
        "invalid_value",
        "patches[0].strength",
        "greater than or equal to 0",
    ),
    "temperature": (lambda g: changed(g, temperature=3), 400, "invalid_value", "temperature", "less than or equal to 2"),
    "text as number": (lambda g: changed(g, max_tokens="8"), 400, "invalid_value", "max_tokens", "valid integer"),
    "long answer": (lambda g: changed(g, max_tokens=65), 400, "invalid_value", "max_tokens", "65 tokens, of at most 64"),
    "both lengths": (lambda g: changed(g, max_completion_tokens=4), 400, "invalid_value", "max_tokens", "not both"),
    "n when greedy": (lambda g: changed(g, n=2), 400, "invalid_value", "n", "only if temperature is above 0"),
    "large n": (lambda g: changed(g, n=9, temperature=1), 400, "invalid_value", "n", "9 answers, of at most 8"),
    "empty stop": (lambda g: changed(g, stop=[""]), 400, "invalid_value", "stop", "of 1 to 100 characters"),
    "many frames": (
        lambda g: changed(g, frames={"num_frames": 257}),
        400,
        "invalid_value",
        "frames.num_frames",
        "257 frames, of at most 256",
    ),
    "late window": (lambda g: changed(g, frames={"start": 50}), 400, "media-unreadable", None, "the window starts at 50"),
    "long text": (
        lambda g: changed(g, messages=[{"role": "user", "content": "a" * 32_769}]),
        400,
        "invalid_value",
        "messages",
        "32769 characters",
    ),
    "name and id of one patch": (
        lambda g: changed(g, model="playground", patches=[{"name": "hearing"}, {"name": "HEARING_ID", "strength": 0}]),
        400,
        "invalid_value",
        "patches",
        "list it once",
    ),
    "long key": (lambda g: changed(g, **{"a" * 9000: 1}), 400, "unknown_key", "a" * 60, "unknown key"),
    "odd channel": (
        lambda g: changed(g, side_channels={"hearing": {"au dio": None}}),
        400,
        "invalid_value",
        "side_channels",
        "'au dio' can be no name",
    ),
    "no such upload": (
        lambda g: changed(g, messages=about("file-" + "0" * 32)),
        404,
        "file_not_found",
        "messages[0].content[0].video_url",
        "it may have expired",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(server, good, case):
    make, status, code, param, sentence = REFUSED[case]
    (patch,) = [found for found in server.services.catalog.all() if found.name == "hearing"]
    body = json.loads(json.dumps(make(good)).replace("HEARING_ID", patch.id))
    found_status, error = post(server, body)
    assert (found_status, error["code"], error["param"]) == (status, code, param), error
    assert sentence in error["message"], error
    assert post(server, good)[0] == 200 or case != "unknown key"  # what the cases differ from is answered


def test_bodies_that_are_no_json(server, good):
    url = f"{server.url}/v1/chat/completions"
    text = json.dumps(good)
    for content, sentence in (
        (b"{", "not JSON"),
        (b"\xff", "no UTF-8"),
        (text.replace('"max_tokens": 4', '"max_tokens": 4, "max_tokens": 5').encode(), "'max_tokens' comes twice"),
        (text.replace('"max_tokens": 4', '"temperature": NaN').encode(), "NaN is no number"),
        (b"[" * 60_000, "nested too deeply"),
        (b"[]", "valid dictionary"),
        (text.replace('"max_tokens": 4', '"\\ud800": 4').encode(), "half of a surrogate pair"),
        (text.replace('"what sound', '"\\udfff').encode(), "half of a surrogate pair"),
    ):
        answer = httpx.post(url, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and sentence in answer.json()["error"]["message"], answer.text
    plain = httpx.post(url, content=text, headers={"content-type": "text/plain"})
    assert (plain.status_code, plain.json()["error"]["code"]) == (415, "not_json")


@pytest.mark.parametrize("key", ["messages", "stop", "patches"])
def test_bodies_of_more_values_than_can_be_meant(server, good, key):
    for count, sentence in ((9000, "more than 8192 values"), (70_000, "more than 65536 commas")):
        status, error = post(server, changed(good, **{key: [0] * count}))
        assert status == 400 and sentence in error["message"]
    status, error = post(server, changed(good, side_channels={f"a{i}": {} for i in range(9000)}))
    assert status == 400 and "more than 8192 values" in error["message"]


def test_bodies_and_uploads_that_are_too_large(server, engine):
    with running(engine, {}, body_megabytes=2, bodies_megabytes=1, file_megabytes=1) as small:
        full = httpx.post(f"{small.url}/v1/chat/completions", content=b" " * (2**20 + 2**17), headers=JSON)
        assert (full.status_code, full.json()["error"]["code"], full.headers["retry-after"]) == (429, "bodies_full", "1")
        free = httpx.post(f"{small.url}/v1/chat/completions", content=b" " * 2**19, headers=JSON)
        assert free.json()["error"]["code"] == "invalid_json"  # what was refused holds nothing any more
    with running(engine, {}, body_megabytes=1, file_megabytes=1) as small:
        url = f"{small.url}/v1/chat/completions"
        assert httpx.post(url, content=b" " * (2**20 + 1), headers=JSON).status_code == 413

        def pieces():
            for _ in range(17):
                yield b" " * 2**16

        assert httpx.post(url, content=pieces(), headers=JSON).status_code == 413
        upload = httpx.post(f"{small.url}/v1/files", files={"file": ("a.mp4", io.BytesIO(b"0" * (2**20 + 2**17)))})
        assert upload.status_code == 413
        assert os.listdir(small.services.uploads.folder) == []


def test_paths_and_methods_that_are_not_there(server):
    gone = httpx.get(f"{server.url}/v1/nothing")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    other = httpx.get(f"{server.url}/v1/chat/completions")
    assert (other.status_code, other.json()["error"]["code"], other.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_pages_of_other_sites_and_other_names_are_refused(server, good):
    other = post(server, good, headers={"origin": "https://elsewhere.example"})
    assert (other[0], other[1]["code"]) == (403, "origin_not_allowed")
    rebound = httpx.get(f"{server.url}/v1/models", headers={"host": "elsewhere.example"})
    assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "host_not_allowed")
    own = httpx.get(f"{server.url}/v1/models", headers={"origin": server.url})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


# --- keys, uploads of several keys, the administrator


@pytest.fixture(scope="module")
def guarded(patches, world):
    engine = Engine.from_pretrained("playground", device="cpu")
    access = Access(keys=Keys([KEY, OTHER_KEY]), admin=Keys([TOKEN]), roots=(patches["hearing"].parent,))
    with running(engine, {"hearing": patches["hearing"]}, access, uploads=2) as found:
        yield found


def test_without_a_key_there_is_no_answer(guarded, world):
    body = {"model": "hearing", "messages": about(data_url(world / "0.mp4")), "max_tokens": 2}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}):
        status, error = post(guarded, body, headers=headers)
        assert (status, error["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{guarded.url}/metrics", headers=headers).status_code == 401
    assert post(guarded, body, headers={"authorization": f"bearer {OTHER_KEY}"})[0] == 200
    assert guarded.client(KEY).chat.completions.create(**body).choices[0].message.content
    assert httpx.get(f"{guarded.url}/health").status_code == 200
    assert httpx.get(f"{guarded.url}/metrics", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_uploads_belong_to_a_key_and_expire_and_are_bounded(guarded, world):
    mine, theirs = guarded.client(KEY), guarded.client(OTHER_KEY)
    first = mine.files.create(file=world / "0.mp4", purpose="user_data")
    assert list(theirs.files.list()) == []
    with pytest.raises(Exception, match="there is no file"):
        theirs.files.retrieve(first.id)
    second = mine.files.create(file=world / "1.mp4", purpose="user_data")
    full = httpx.post(
        f"{guarded.url}/v1/files", files={"file": ("a.mp4", b"0")}, headers={"authorization": f"Bearer {OTHER_KEY}"}
    )
    assert (full.status_code, full.json()["error"]["code"]) == (429, "uploads_full") and int(full.headers["retry-after"]) >= 1
    uploads = guarded.services.uploads
    uploads.get(second.id, Keys([KEY]).check(f"Bearer {KEY}")).expires = time.time() - 1
    assert [one.id for one in mine.files.list()] == [first.id]
    assert len(list(uploads.folder.glob("file-*"))) == 1
    mine.files.delete(first.id)
    for form, sentence in (
        ({"files": {"file": ("a.mp4", b"")}}, "the file is empty"),
        ({"files": {"video": ("a.mp4", b"0")}}, "the form has no file"),
        ({"files": {"file": ("a.mp4", b"0")}, "data": {"expires_after[seconds]": "5"}}, "from 60 to"),
        ({"files": {"file": ("a.mp4", b"0")}, "data": {"public": "yes"}}, "unknown key 'public'"),
    ):
        answer = httpx.post(f"{guarded.url}/v1/files", headers={"authorization": f"Bearer {KEY}"}, **form)
        assert answer.status_code == 400 and sentence in answer.json()["error"]["message"], answer.text


def test_the_administrator_loads_and_unloads_patches(guarded, patches, world):
    admin = {"authorization": f"Bearer {TOKEN}"}

    def call(what, body, headers=admin):
        answer = httpx.post(f"{guarded.url}/v1/{what}", json=body, headers=headers)
        return answer.status_code, answer.json()

    wanted = {"name": "moving", "path": str(patches["moving"])}
    assert call("load_patch", wanted, {"authorization": f"Bearer {KEY}"})[0] == 401
    status, model = call("load_patch", wanted)
    assert status == 200 and model["parent"] == "playground" and model["content"].startswith("moving_")
    assert [m.id for m in guarded.client(KEY).models.list()] == ["playground", "hearing", "moving"]
    assert call("load_patch", wanted) == (200, model)  # the same content is the same patch
    assert call("unload_patch", {"name": "moving"})[0] == 200
    assert call("unload_patch", {"name": "moving"})[0] == 404
    assert call("load_patch", {"name": "moving", "path": "/etc"})[1]["error"]["code"] == "url_not_allowed"
    assert "is no patch" in call("load_patch", {"name": "moving", "path": str(patches["moving"].parent)})[1]["error"]["message"]
    assert "letters, digits" in call("load_patch", {"name": "a b", "path": str(patches["moving"])})[1]["error"]["message"]


def test_without_a_token_nobody_is_the_administrator(server, patches):
    answer = httpx.post(f"{server.url}/v1/load_patch", json={"name": "x", "path": str(patches["moving"])})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_off")


def test_files_of_keys_are_private_regular_files(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of a test\n{KEY}\n\n{OTHER_KEY}\n", encoding="utf-8")
    file.chmod(0o644)
    with pytest.raises(ValueError, match=r"--api-keys .*keys: others than its owner can open the file; run: chmod 600"):
        Keys.from_file(file, "--api-keys")
    file.chmod(0o600)
    keys = Keys.from_file(file, "--api-keys")
    assert keys.holds(KEY) and keys.holds(OTHER_KEY) and not keys.holds("") and not keys.holds(KEY[:-1])
    file.write_text("short\n", encoding="utf-8")
    with pytest.raises(ValueError, match="key 1 is shorter than 16 characters"):
        Keys.from_file(file, "--api-keys")
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="the file holds no key"):
        Keys.from_file(file, "--api-keys")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is a pipe, not an ordinary file"):
        Keys.from_file(tmp_path / "pipe", "--api-keys")


# --- what is written down


class Kept(logging.Handler):
    """The records of a logger, whatever handlers and levels other tests have left."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.records = []

    def emit(self, record):
        self.records.append(record)


def test_the_log_says_who_and_how_long_but_not_what(server, world):
    log, kept = logging.getLogger("pave.serving"), Kept()
    level = log.level
    log.addHandler(kept)
    log.setLevel(logging.INFO)
    try:
        body = {"model": "hearing", "messages": about(data_url(world / "0.mp4"), "a secret question"), "max_tokens": 2}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers={"x-request-id": "mine-1"})
        httpx.get(f"{server.url}/v1/models/a-secret-name", headers={"x-request-id": "not plain" * 20})
        for _ in range(100):  # a line is written behind its answer
            lines = [record.facts for record in kept.records if record.name == "pave.serving.requests"]
            if len(lines) >= 2:
                break
            time.sleep(0.05)
    finally:
        log.removeHandler(kept)
        log.setLevel(level)
    assert answer.headers["x-request-id"] == "mine-1"
    assert (lines[0]["route"], lines[0]["status"], lines[0]["model"], lines[0]["new_tokens"]) == (
        "/v1/chat/completions",
        200,
        "hearing",
        2,
    )
    assert (lines[-1]["route"], lines[-1]["status"], lines[-1]["code"]) == ("/v1/models/{name:path}", 404, "model_not_found")
    assert "secret" not in json.dumps(lines) + " ".join(record.getMessage() for record in kept.records)


def test_limits_are_positive():
    with pytest.raises(ValueError, match="waiting must be positive, got 0"):
        Limits(waiting=0)
