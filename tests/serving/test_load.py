"""Full queues, deadlines, clients that leave, bad neighbours, patches that change under way, and ending under load."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from pave.inference.engine import Engine
from pave.serving.errors import ApiError
from pave.serving.limits import Limits
from pave.serving.scheduler import Job, Scheduler
from pave.serving.streaming import EventStream
from served import about, data_url, own_answer, running, save_patches


@pytest.fixture
def held(server):
    """The server, whose generating thread waits until it is let go."""
    free = threading.Event()
    holding = threading.Thread(target=server.services.scheduler.between, args=(lambda: free.wait(60),))
    holding.start()
    yield free
    free.set()
    holding.join()


def until(condition, seconds=30.0):
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def body_about(world, **fields):
    return {"model": "hearing", "messages": about(str(world / "0.mp4")), "max_tokens": 4, **fields}


def batches(server):
    lines = dict(line.rsplit(" ", 1) for line in httpx.get(f"{server.url}/metrics").text.splitlines() if line[0] != "#")
    return float(lines["pave_batch_size_count"])


def test_a_full_queue_says_when_to_come_again(server, world):
    with server.services.scheduler.place(server.services.limits.waiting - 1):
        two = httpx.post(f"{server.url}/v1/chat/completions", json=body_about(world, n=2, temperature=1.0), timeout=60)
        assert two.status_code == 429
        with server.services.scheduler.place():
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body_about(world), timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert answer.json()["error"]["type"] == "rate_limit_error" and int(answer.headers["retry-after"]) >= 1
    assert server.services.scheduler.places == 0
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body_about(world), timeout=60).status_code == 200


def test_a_request_that_was_admitted_gets_its_other_places_while_the_server_ends():
    class Nothing:
        """Is asked for nothing."""

    scheduler = Scheduler(Nothing(), Limits())
    try:
        with scheduler.place():
            scheduler.stop_admitting()
            with scheduler.place(2, admitted=True):
                assert scheduler.places == 3
            with pytest.raises(ApiError, match="about to end"), scheduler.place():
                pass
    finally:
        scheduler.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place_and_is_not_answered(server, held, world, stream):
    before = batches(server)
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body_about(world, stream=stream)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        if stream:  # the queue is where the first event says that it is
            assert b"200 OK" in connection.recv(1000)
        until(lambda: len(server.services.scheduler._queue) == 1)
        assert server.services.scheduler.places == 1
    until(lambda: server.services.scheduler.places == 0)
    held.set()
    until(lambda: not server.services.scheduler._queue)
    assert batches(server) == before


def test_a_request_past_its_deadline_is_given_up(patches, world, engine):
    with running(engine, {"hearing": patches["hearing"]}, deadline_seconds=2.0) as server:
        free = threading.Event()
        holding = threading.Thread(target=server.services.scheduler.between, args=(lambda: free.wait(60),))
        holding.start()
        messages = about(data_url(world / "0.mp4"))
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body_about(world, messages=messages), timeout=60)
        free.set()
        holding.join()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        until(lambda: server.services.scheduler.places == 0)


@pytest.mark.parametrize("why", ["left", "late"])
def test_a_request_that_is_given_up_frees_its_reader(patches, world, engine, why):
    seconds = 60.0 if why == "left" else 4.0
    with running(engine, {"hearing": patches["hearing"]}, readers=1, read_seconds=60.0, deadline_seconds=seconds) as server:
        url, first, second = server.url, *(body_about(world, messages=about(data_url(world / f"{i}.mp4"))) for i in (0, 1))
        assert httpx.post(f"{url}/v1/chat/completions", json=first, timeout=60).status_code == 200
        os.kill(server.services.children._all[0]._process.pid, signal.SIGSTOP)  # a file that takes for ever
        if why == "left":
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/chat/completions", json=second, timeout=0.5)
        else:
            answer = httpx.post(f"{url}/v1/chat/completions", json=second, timeout=60)
            assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert httpx.post(f"{url}/v1/chat/completions", json=second, timeout=20).status_code == 200


def test_a_stream_that_nobody_reads_is_given_up(monkeypatch):
    monkeypatch.setattr("pave.serving.streaming._MORE_SECONDS", 0.1)
    ended = []

    async def events():
        yield b"data: 1\n\n"

    async def never(*message):
        await asyncio.Event().wait()

    async def run():
        await asyncio.wait_for(EventStream(events(), never, lambda: ended.append(1), 0.1)({}, None, never), 20)

    asyncio.run(run())
    assert ended == [1]


def test_frames_of_waiting_answers_are_bounded_together():
    class Held:
        """Generates when it is let go."""

        free = threading.Event()

        def key(self, read):
            return read

        def generate(self, reads, **how):
            self.free.wait(60)
            return list(reads)

    answers, megabyte = [], np.zeros(2**20, dtype=np.uint8)
    scheduler = Scheduler(Held(), Limits(waiting_megabytes=2))

    def submit(read, frames):
        scheduler.submit(Job(read, time.monotonic() + 60, done=answers.append, frames=frames))

    submit("running", np.zeros(3 * 2**20, dtype=np.uint8))  # one alone may be larger
    until(lambda: not scheduler._queue)
    for read, frames in (("b", megabyte), ("c", megabyte), ("d", np.zeros(2**20, dtype=np.uint8)), ("e", None)):
        submit(read, frames)  # of one array there is one, however many answers look at it
    with pytest.raises(ApiError, match="take 2 MiB") as error:
        submit("f", np.zeros(2**20, dtype=np.uint8))
    assert error.value.status == 429 and int(error.value.headers["Retry-After"]) >= 1
    Held.free.set()
    scheduler.close()
    assert sorted(answers) == ["b", "c", "d", "e", "running"]


def test_a_patch_that_waits_for_readers_holds_up_no_batch(patches, world, engine):
    with running(engine, {"hearing": patches["hearing"]}) as server, ThreadPoolExecutor(1) as pool:
        catalog = server.services.catalog
        with catalog.unchanged():  # as while a long video is read
            loading = pool.submit(catalog.load, "moving", patches["moving"])
            until(lambda: catalog._model_lock._condition._waiters)
            text = {"model": "hearing", "messages": about(data_url(world / "0.mp4")), "max_tokens": 2}
            assert httpx.post(f"{server.url}/v1/chat/completions", json=text, timeout=20).status_code == 200
        loading.result()
        assert [patch.name for patch in catalog.all()] == ["hearing", "moving"]


def test_frames_of_the_base_do_not_depend_on_patches_that_come(patches, world, engine):
    from pave.patching import patch_slot

    with running(engine, {}) as server:

        def times(model, **fields):
            body = body_about(world, model=model, messages=about(data_url(world / "0.mp4")), **fields)
            return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()["pave"]["frame_times"]

        before = times("playground")
        patch = server.services.catalog.load("hearing", patches["hearing"])
        patch_slot(engine.model, patch.id).provenance = {"recipe": {"data": {"frames": {"num_frames": 2}}}}
        assert len(times("hearing")) == 2 != len(before)
        assert times("playground") == times("playground", patches=[{"name": "hearing", "strength": 0}]) == before


def test_a_bad_request_harms_no_other_of_its_batch(alone, world):
    """A patch that was taken off after its request was read makes the batch fail; the others are answered all the same."""
    from pave.inference.request import Request, Sampling
    from pave.patching import detach_patch, load_patch

    engine = Engine.from_pretrained("playground", device="cpu")
    folder = Path(os.fspath(world)).parent / "doomed"
    load_patch(engine.model, save_patches(folder, "hearing")["hearing"], name="doomed", processor=engine.processor)
    asked = [
        Request(world / f"{i}.mp4", "what sound is heard ?", patches=None, sampling=Sampling(max_new_tokens=8)) for i in (0, 1)
    ]
    doomed = Request(world / "0.mp4", "what sound is heard ?", patches="doomed", sampling=Sampling(max_new_tokens=8))
    reads = [engine.read(asked[0]), engine.read(doomed), engine.read(asked[1])]
    detach_patch(engine.model, "doomed")
    scheduler = Scheduler(engine, Limits(wait_milliseconds=500))
    answers, pieces = {}, {}
    with scheduler.place(3):
        for number, read in enumerate(reads):
            pieces[number] = []
            job = Job(
                read, time.monotonic() + 60, done=lambda a, n=number: answers.update({n: a}), on_text=pieces[number].append
            )
            scheduler.submit(job)
        until(lambda: len(answers) == 3)
    scheduler.close()
    assert isinstance(answers[1], ValueError) and "was taken off" in str(answers[1])
    for number, clip in ((0, "0.mp4"), (2, "1.mp4")):
        assert answers[number].text == own_answer(alone, world / clip, patches=None) == "".join(pieces[number])


def test_a_request_keeps_the_patch_it_began_with(engine, alone, world, patches, tmp_path):
    other = save_patches(tmp_path, "hearing", seed=99)["hearing"]
    with running(engine, {"hearing": patches["hearing"]}) as server:
        catalog, scheduler = server.services.catalog, server.services.scheduler
        (first,) = catalog.all()
        free, messages = threading.Event(), about(data_url(world / "0.mp4"))
        with ThreadPoolExecutor(3) as pool:
            holding = pool.submit(scheduler.between, lambda: free.wait(60))
            body = body_about(world, messages=messages, max_tokens=8)
            asked = pool.submit(httpx.post, f"{server.url}/v1/chat/completions", json=body, timeout=60)
            until(lambda: len(scheduler._queue) == 1)
            changing = pool.submit(catalog.load, "hearing", other)
            free.set()
            holding.result()
            second = changing.result()
            before = asked.result().json()
        after = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        assert first.id != second.id
        assert before["choices"][0]["message"]["content"] == own_answer(alone, world / "0.mp4", patches="hearing")
        assert (before["pave"]["patches"][0]["id"], after["pave"]["patches"][0]["id"]) == (first.id, second.id)
        assert after["choices"][0]["message"]["content"] != before["choices"][0]["message"]["content"]
        until(lambda: engine.model.patch_names == (second.id,))  # the old one leaves the memory
        catalog.unload("hearing")
        until(lambda: not hasattr(engine.model, "patch_names"))


def test_caches_threads_and_open_files_are_back_after_a_load(server, world):
    """Twice the same load: what the first one leaves (caches, pools) is all that the second one finds."""

    def load():
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(one, range(24)))
        until(lambda: server.services.scheduler.places == 0)

    def one(number):
        body = body_about(world) if number % 4 else body_about(world, messages=about("data:video/mp4;base64,AAAA"))
        status = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code
        assert status == (200 if number % 4 else 400)

    load()
    files, folders = len(os.listdir("/proc/self/fd")), sorted(os.listdir(server.services.uploads.folder))
    threads, cached = threading.active_count(), server.services.engine.reader.media.cache.num_bytes
    load()
    until(lambda: len(os.listdir("/proc/self/fd")) <= files + 1)
    assert sorted(os.listdir(server.services.uploads.folder)) == folders
    assert threading.active_count() <= threads + 1
    assert server.services.engine.reader.media.cache.num_bytes == cached


# --- the command


def command(*options):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "pave.cli", "serve", "--port", "0", "--device", "cpu", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_ending_under_load_answers_what_was_admitted(patches, world, alone):
    process = command("--patch", f"hearing={patches['hearing']}", "--allow-path", str(world))
    try:
        line = next(line for line in process.stderr if '"listening"' in line)
        url = json.loads(line)["url"]
        lines = []
        reading = threading.Thread(target=lambda: lines.extend(process.stderr))
        reading.start()
        signalled = threading.Event()

        def ask(number):
            found = []
            with httpx.Client(timeout=60) as client:
                while not signalled.is_set() and len(found) < 50:
                    try:
                        answer = client.post(f"{url}/v1/chat/completions", json=body_about(world))
                    except httpx.TransportError:
                        break
                    found.append((answer.status_code, answer.json(), time.monotonic()))
            return found

        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(ask, number) for number in range(6)]
            until(lambda: float(places(url)) >= 3, 60)
            ending = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert process.stdout.read() == f"Open {url} in a browser. Ctrl-C ends the server.\n"
            signalled.set()
            results = [result for one in asking for result in one.result()]
        reading.join()
    finally:
        process.kill()
        process.wait()
    own = own_answer(alone, world / "0.mp4", patches="hearing", sampling={"max_new_tokens": 4})
    texts = [answer["choices"][0]["message"]["content"] for status, answer, _ in results if status == 200]
    assert texts and set(texts) == {own}
    assert {status for status, _, ended in results if ended < ending} <= {200}
    after = [(status, answer.get("error", {}).get("code")) for status, answer, ended in results if ended >= ending]
    assert set(after) <= {(200, None), (503, "shutting_down")} and (200, None) in after  # what had its place is answered
    logged = [json.loads(line) for line in lines]  # every line is JSON
    admitted = [line for line in logged if line.get("message") == "request" and line["route"].endswith("completions")]
    assert sum(line["status"] == 200 for line in admitted) == len(texts)  # what was answered has arrived
    assert {line["status"] for line in admitted} <= {200, 503}


def test_an_address_that_is_taken_is_told_before_a_model_is_loaded(capsys, monkeypatch):
    from pave.cli import main

    def load(*arguments):
        raise ValueError("a model was loaded")

    monkeypatch.setattr("pave.cli.serve._log_as_json", lambda: None)
    monkeypatch.setattr("pave.cli.serve._engine", load)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
    assert f"--port {port}: Address already in use; choose another one" in capsys.readouterr().err


def places(url):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(line.rsplit(" ", 1)[1] for line in lines if line.startswith("pave_places "))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--patch", "hearing"], "--patch 'hearing': expected NAME=PATCH"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets others in: give --api-keys FILE, or --open"),
        (["--limit", "wait=3"], "there is no limit 'wait'; there are body_megabytes"),
        (["--limit", "waiting=many"], "waiting is a whole number"),
        (["--limit", "waiting=0"], "waiting must be positive, got 0"),
        (["--allow-path", "/not/there"], "--allow-path /not/there: there is no such folder"),
        (["--api-keys", "/not/there"], "/not/there: there is no such file"),
    ],
)
def test_options_that_cannot_be_meant(options, sentence, capsys):
    from pave.cli import main

    assert main(["serve", *options]) == 2
    assert sentence in capsys.readouterr().err
