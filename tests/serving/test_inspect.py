"""What stands behind an answer over HTTP is what the model did, and counterfactuals over HTTP are the engine's own."""

import base64
import copy
import io
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from pave.data.media import read_audio, read_frames
from pave.data.samples import Sample
from pave.evaluation.examples import attention_of
from pave.inference import Counterfactual, Lender, Request, VideoQA
from pave.inference.engine import Engine
from pave.serving.auth import Keys
from pave.serving.server import Access
from served import QUESTION, about, own_answer, running

KEY = "a-key-of-a-test-0001"


def body_about(clip, **fields):
    return {"model": "hearing", "messages": about(str(clip)), **fields}


def look(server, body):
    answer = httpx.post(f"{server.url}/v1/pave/inspect", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(server, body, path="/v1/pave/inspect"):
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    return answer.status_code, answer.json()["error"]["param"], answer.json()["error"]["message"]


# --- the lanes


def test_frames_sound_and_steps_are_those_of_the_file(server, alone, world):
    clip = world / "0.mp4"
    found = look(server, body_about(clip))
    read = alone.read(Request(clip, QUESTION, patches="hearing"), pictures=True)
    assert found["frames"]["times"] == [round(float(t), 4) for t in read.item.times_F]
    picture = Image.open(io.BytesIO(base64.b64decode(found["frames"]["picture"].partition(",")[2])))
    wide, count = found["frames"]["width"], len(read.item.times_F)
    assert picture.size == (wide * count, found["frames"]["height"])
    frames = read_frames(clip, read.frames).frames_FHWC
    shown = np.asarray(picture, dtype=float).reshape(found["frames"]["height"], count, wide, 3)
    assert np.abs(shown.mean(axis=(0, 2)) - frames.mean(axis=(1, 2))).max() < 4  # each at its place, in its colours
    (channel,) = found["channels"]
    assert (channel["patch"], channel["channel"], channel["strength"], channel["encoder"]) == (
        "hearing",
        "audio",
        1.0,
        "log_mel",
    )
    features = read.item.side["hearing.audio"]
    assert channel["steps"]["times"] == [round(float(t), 4) for t in features.times_K]
    assert (channel["steps"]["count"], channel["steps"]["width"], channel["steps"]["rows"]) == (len(features), 16, 16)
    shades = np.frombuffer(base64.b64decode(channel["steps"]["shades"]), dtype=np.uint8).reshape(len(features), 16)
    assert np.corrcoef(shades.ravel(), features.features_KMC[:, 0].numpy().ravel())[0, 1] > 0.95
    assert found["seconds"] == pytest.approx(8.0, abs=0.3)


def test_the_wave_is_loud_where_the_sound_is(server, world):
    sound = look(server, body_about(world / "0.mp4"))["sound"]
    clip = read_audio(world / "0.mp4", 8000)
    peak = clip.start_time + np.abs(clip.samples).argmax() / clip.sample_rate
    loudest = int(np.abs(sound["high"]).argmax())
    assert sound["start"] + (loudest + 0.5) * sound["seconds"] / len(sound["high"]) == pytest.approx(peak, abs=0.3)
    assert max(sound["high"]) == pytest.approx(127 * clip.samples.max(), abs=2)
    assert min(sound["low"]) == pytest.approx(127 * clip.samples.min(), abs=2)


def test_attention_is_that_of_the_report(server, patches, world):
    qa = VideoQA.from_pretrained("playground", patches["hearing"], device="cpu")
    item = next(iter(qa.items([Sample(id="a", video=str(world / "0.mp4"), question=QUESTION)])))
    own_FK = attention_of(qa, item)["audio"]
    rows = look(server, body_about(world / "0.mp4"))["channels"][0]["attention"]
    shown_FK = np.zeros_like(own_FK)
    for row, weights in zip(shown_FK, rows, strict=True):
        row[weights["first"] : weights["first"] + len(weights["weights"])] = weights["weights"]
    assert np.abs(shown_FK - own_FK).max() < 1e-4 and own_FK.max() > 0.3


def test_change_is_what_reaches_the_language_model(server, alone, world):
    """The tokens that the decoder gets with the residual and without it, caught at its door."""
    caught = []
    decoder = alone.model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda module, arguments, named: caught.append(named["inputs_embeds"].detach().clone()), with_kwargs=True
    )
    clip = world / "0.mp4"
    for uses in (None, {"hearing": (1.0, 0.0)}):
        own_answer(alone, clip, patches=uses, sampling={"max_new_tokens": 1})
    hook.remove()
    plain, fused = caught
    differ = (plain != fused).any(dim=-1)[0]
    tokens = look(server, body_about(clip))["channels"][0]["change"]["tokens"]
    expected = ((fused - plain).norm(dim=-1) / plain.norm(dim=-1))[0][differ]
    shown = torch.tensor(tokens).flatten()
    assert len(shown) == len(expected) > 50
    assert torch.allclose(shown, expected, rtol=1e-3, atol=2e-4) and expected.max() > 0.1


def test_patches_together_have_lanes_each_and_the_base_has_none(server, world):
    both = {"model": "playground", "patches": [{"name": "hearing", "strength": 0.5}, {"name": "moving"}]}
    sides = {"moving": {"imu": {"url": str(world / "imu.csv")}}}
    found = look(server, body_about(world / "0.mp4", **both, side_channels=sides))
    hearing, moving = found["channels"]
    assert (hearing["patch"], hearing["strength"], moving["patch"], moving["strength"]) == ("hearing", 0.5, "moving", 1.0)
    assert moving["sound"] is None and [curve["name"] for curve in moving["sensor"]["curves"]] == ["x", "y"]
    rows = [[float(cell) for cell in line.split(",")] for line in (world / "imu.csv").read_text().split()[1:]]
    times, x, _ = zip(*rows, strict=True)
    assert moving["sensor"]["times"] == pytest.approx(times)
    curve = moving["sensor"]["curves"][0]
    assert curve["values"] == pytest.approx([(value - min(x)) / (max(x) - min(x)) for value in x], abs=1e-3)
    assert look(server, body_about(world / "0.mp4", model="playground"))["channels"] == []


def test_a_missing_channel_is_there_without_lanes(server, world):
    found = look(server, body_about(world / "silent.mp4"))
    assert found["sound"] is None
    assert {name: found["channels"][0][name] for name in ("steps", "sound", "gate", "change", "attention")} == dict.fromkeys(
        ("steps", "sound", "gate", "change", "attention")
    )


def test_the_gate_is_told_by_token(world):
    """The patch inside the package has a gate."""
    engine = Engine.from_pretrained("playground", device="cpu")
    with running(engine, {"hearing": "pave:audio"}, Access(roots=(world,))) as server:
        gates = {}
        for question in (QUESTION, "what colour is the circle ?"):
            (channel,) = look(server, body_about(world / "0.mp4", messages=about(str(world / "0.mp4"), question)))["channels"]
            values = np.array(channel["gate"]["tokens"])
            assert (
                np.allclose(values.mean(axis=1), channel["gate"]["frames"], atol=1e-3)
                and 0 <= values.min() <= values.max() <= 2
            )
            gates[question] = values.mean()
    assert gates[QUESTION] > 1.5 > 0.5 > gates["what colour is the circle ?"]  # it opens for what needs the sound


def test_a_look_shares_the_queue_and_leaves_the_answers_alone(server, alone, world):
    before = own_answer(alone, world / "0.mp4", patches="hearing")
    look(server, body_about(world / "0.mp4"))
    done = httpx.post(f"{server.url}/v1/chat/completions", json=body_about(world / "0.mp4", max_tokens=8), timeout=60).json()
    assert done["choices"][0]["message"]["content"] == before
    with server.services.scheduler.place(server.services.limits.waiting):
        assert refusal(server, body_about(world / "0.mp4"))[0] == 429


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"stream": True}, "stream", "a look at a request has no answers"),
        ({"n": 2, "temperature": 1.0}, "n", "a look at a request has no answers"),
        ({"messages": [{"role": "user", "content": "who ?"}]}, "messages", "there is no video to look at"),
        ({"look": 1}, "look", "unknown key"),
    ],
)
def test_what_cannot_be_looked_at(server, world, changes, param, said):
    status, found, message = refusal(server, body_about(world / "0.mp4", **changes))
    assert (status, found) == (400, param) and said in message


# --- counterfactuals


def chat(server, clip, **fields):
    body = body_about(clip, max_tokens=8, **fields)
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_counterfactuals_are_the_engines_own(server, alone, world):
    clip, other = world / "0.mp4", world / "1.mp4"
    lender = Lender(other)
    own = {
        "as it is": own_answer(alone, clip, patches="hearing"),
        "swapped": own_answer(alone, clip, patches="hearing", counterfactual=Counterfactual("swapped", lender=lender)),
        "removed": own_answer(alone, clip, patches="hearing", counterfactual=Counterfactual("removed")),
        "shifted": own_answer(alone, clip, patches="hearing", counterfactual=Counterfactual("shifted", 3.0, "audio")),
    }
    assert len(set(own.values())) == 4, own
    assert chat(server, clip, counterfactual={"kind": "swapped", "video": {"url": str(other)}}) == own["swapped"]
    assert (
        chat(server, clip, counterfactual={"kind": "removed"})
        == own["removed"]
        == chat(server, clip, side_channels={"audio": None})
    )
    assert chat(server, clip, counterfactual={"kind": "shifted", "value": 3, "channel": "audio"}) == own["shifted"]


def test_the_lender_may_have_files_of_its_own(server, alone, world):
    log = world / "imu.csv"
    change = {"kind": "swapped", "video": {"url": str(world / "1.mp4")}, "side_channels": {"imu": {"url": str(log)}}}
    own = own_answer(alone, world / "0.mp4", patches="moving", side_channels={"imu": log})
    assert chat(server, world / "0.mp4", model="moving", counterfactual=change) == own


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"kind": "exchanged"}, "counterfactual.kind", "Input should be 'removed', 'swapped'"),
        ({"kind": "swapped"}, "counterfactual.video", "borrow the streams of a video"),
        ({"kind": "removed", "video": "1.mp4"}, "counterfactual.video", "the others take none"),
        ({"kind": "thinned", "value": 2}, "counterfactual", "takes a share between 0 and 1, got 2"),
        ({"kind": "removed", "channel": "depth"}, None, "no side channel 'depth'"),
        (
            {"kind": "swapped", "video": "nowhere.mp4"},
            "counterfactual.video",
            "no such file under a folder that --allow-path allows",
        ),
        ({"kind": "swapped", "video": "long.mp4"}, "counterfactual.video", "its video is 12 s long, of at most 10 s"),
    ],
)
def test_counterfactuals_that_cannot_be_meant(server, world, change, param, said):
    change = copy.deepcopy(change)
    if "video" in change:
        change["video"] = {"url": str(world / change["video"])}
    status, found, message = refusal(server, body_about(world / "0.mp4", counterfactual=change), "/v1/chat/completions")
    assert (status, found) == (400, param) and said in message and str(world) not in message


# --- the page's files


def test_the_page_needs_no_key_and_may_do_nothing_but_ask_this_server(world):
    engine = Engine.from_pretrained("playground", device="cpu")
    with running(engine, {}, Access(keys=Keys([KEY]))) as server, httpx.Client(base_url=server.url) as client:
        page = client.get("/")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        named = re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text)
        modules = set(re.findall(r"from '\./([\w.]+)'", client.get("/page/app.js").text))
        for path in (*named, *(f"/page/{name}" for name in modules), "/page/whistle.mp4"):
            answer = client.get(path)
            assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
            policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
            assert policy["connect-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
        again = client.get("/", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get("/page/..%2fpage.py").status_code in (401, 404) and client.get("/page/none.js").status_code == 401
        for path in ("/v1/models", "/v1/files"):
            assert client.get(path).status_code == 401
        refused = client.post("/v1/pave/inspect", json=body_about(world / "0.mp4"))
        assert refused.status_code == 401
        foreign = client.post(
            "/v1/pave/inspect", json={}, headers={"Origin": "https://other.example", "Authorization": f"Bearer {KEY}"}
        )
        assert foreign.status_code == 403
        form = client.post("/v1/pave/inspect", content=b"{}", headers={"Authorization": f"Bearer {KEY}"})
        assert form.status_code == 415


def test_the_page_holds_no_script_inside_and_names_no_other_host():
    folder = Path(__file__).parents[2] / "src" / "pave" / "serving" / "page"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", texts["index.html"])
    for name, text in texts.items():
        assert re.findall(r"(?:https?:)?//[\w-]+\.[\w.]+", text.replace("http://www.w3.org/2000/svg", "")) == [], name
        assert "innerHTML" not in text and "eval(" not in text and "insertAdjacentHTML" not in text, name
