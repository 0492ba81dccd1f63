"""Files and addresses of strangers: nothing is reached that is not allowed, and nothing is decoded that is too large."""

import base64
import http.server
import ipaddress
import os
import signal
import socket
import stat
import threading
import time
import zipfile
from contextlib import ExitStack, contextmanager, suppress

import httpx
import numpy as np
import pytest

from media_files import encode
from pave.data.media import ChildLimits, MediaChildren, MediaError, probe, read_frames, reading_in_children, unpack, write_video
from pave.serving.asking import Asked, Reading
from pave.serving.errors import ApiError
from pave.serving.fetching import Fetcher, is_public
from pave.serving.files import Uploads
from pave.serving.limits import Limits
from pave.serving.schemas import ChatRequest
from pave.serving.sources import Sources
from pave.utils.stops import Stop, stopped_by
from served import about, data_url

# --- media in children


@pytest.fixture(scope="module")
def children():
    found = MediaChildren(1, ChildLimits(seconds=20.0, memory=200 * 2**20, pixels=64 * 64, packets=50))
    yield found
    found.close()


def test_a_picture_larger_than_allowed_is_refused_before_it_is_decoded(children, tmp_path, world):
    write_video(tmp_path / "large.mp4", np.zeros((2, 96, 96, 3), dtype=np.uint8), fps=8)
    with reading_in_children(children):
        with pytest.raises(MediaError, match="96x96"):
            probe(tmp_path / "large.mp4")
        assert read_frames(world / "long.mp4").frames_FHWC.shape == (24, 48, 48, 3)  # the process goes on


def test_a_stream_of_more_packets_than_allowed_is_refused(children, tmp_path):
    write_video(tmp_path / "many.mp4", np.zeros((60, 48, 48, 3), dtype=np.uint8), fps=30)
    with reading_in_children(children), pytest.raises(MediaError, match="more than 50 frames"):
        read_frames(tmp_path / "many.mp4")


def test_reading_that_takes_more_memory_than_allowed_fails_alone(tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((300, 256, 256, 3), dtype=np.uint8), fps=30)  # 59 MB of frames
    small = MediaChildren(1, ChildLimits(memory=40 * 2**20))
    try:
        with reading_in_children(small):
            with pytest.raises(MediaError, match=r"a\.mp4: .*(more memory than the 40 MiB allowed|cannot be read)"):
                read_frames(tmp_path / "a.mp4")
            write_video(tmp_path / "b.mp4", np.zeros((4, 48, 48, 3), dtype=np.uint8), fps=8)
            assert len(read_frames(tmp_path / "b.mp4").frames_FHWC) == 4
    finally:
        small.close()


def test_reading_that_takes_longer_than_allowed_is_ended(world):
    slow = MediaChildren(1, ChildLimits(seconds=0.01))
    try:
        with reading_in_children(slow), pytest.raises(MediaError, match="took longer than the 0.01 s allowed"):
            probe(world / "0.mp4")
    finally:
        slow.close()


def test_reading_ends_when_nobody_waits_for_it(world):
    waiting = MediaChildren(1, ChildLimits(seconds=60.0))
    try:
        with reading_in_children(waiting):
            probe(world / "0.mp4")
            os.kill(waiting._all[0]._process.pid, signal.SIGSTOP)  # a file that takes for ever
            stop = Stop()
            ending = threading.Timer(0.3, stop.stop)
            ending.start()
            with stopped_by(stop), pytest.raises(MediaError, match=r"0\.mp4: reading was given up"):
                probe(world / "0.mp4")
            probe(world / "0.mp4")  # the next one gets a process that reads
            with stopped_by(Stop(time.monotonic() - 1)), pytest.raises(MediaError, match="given up"):
                probe(world / "0.mp4")
    finally:
        waiting.close()


def test_a_header_that_states_a_huge_picture_is_refused(server, tmp_path):
    path = encode(tmp_path / "a.mp4", [0, 1, 2])
    content = path.read_bytes()
    place = content.index(b"avc1") + 28 if b"avc1" in content else content.index(b"mp4v") + 28
    huge = content[:place] + b"\xff\xff\xff\xff" + content[place + 4 :]
    (tmp_path / "huge.mp4").write_bytes(huge)
    status, error = refused(server, data_url(tmp_path / "huge.mp4"))
    assert status in (200, 400)  # a decoder may go by the stream's own size, which is an ordinary one
    assert error is None or error["code"] == "media_refused"


def refused(server, url, **fields):
    body = {"model": "playground", "messages": about(url), "max_tokens": 2, **fields}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    return answer.status_code, answer.json().get("error")


def test_media_that_are_damaged_long_or_none_at_all(server, world, tmp_path):
    (tmp_path / "cut.mp4").write_bytes((world / "0.mp4").read_bytes()[:2000])
    (tmp_path / "text.mp4").write_text("#EXTM3U\nhttp://127.0.0.1/x.ts\n")
    (tmp_path / "empty").write_bytes(b"")
    for name, sentence in (
        (tmp_path / "cut.mp4", "cannot be read"),
        (tmp_path / "text.mp4", "cannot be read"),
        (world / "long.mp4", "its video is 12 s long, of at most 10 s"),
    ):
        status, error = refused(server, data_url(name))
        assert (status, error["code"], error["param"]) == (400, "media_refused", "messages[0].content[0].video_url")
        assert sentence in error["message"] and str(tmp_path) not in error["message"], error
    assert refused(server, "data:video/mp4;base64,AAA")[1]["message"].endswith("the base64 is damaged")
    assert refused(server, "data:video/mp4,AAAA")[1]["message"].endswith("begins with data:KIND;base64,")
    good = refused(server, data_url(world / "0.mp4"))
    assert good == (200, None)


# --- paths


def test_only_files_under_an_allowed_folder_are_read(server, world, tmp_path):
    outside = tmp_path / "secret.mp4"
    outside.write_bytes((world / "0.mp4").read_bytes())
    link, folder_link = world / "link.mp4", world / "folder"
    link.symlink_to(outside)
    folder_link.symlink_to(tmp_path)
    os.mkfifo(world / "pipe")
    try:
        gone = refused(server, "/nowhere/at/all.mp4")
        for path in (
            str(outside),
            f"{world}/../{tmp_path.name}/secret.mp4",
            f"file://{world}/%2e%2e/{tmp_path.name}/secret.mp4",
            str(link),
            f"{folder_link}/secret.mp4",
            "/etc/passwd",
            "/dev/zero",
            "/proc/self/environ",
            str(world / "pipe"),
            f"{world}/0.mp4\0",
        ):
            found = refused(server, path)
            assert found[0] == 400 and found[1]["code"] == "url_not_allowed", path
            assert "\0" in path or found == gone  # what is there and what is not look the same
        for path in ("0.mp4", "file:relative.mp4", "ftp://host/a", "gopher://127.0.0.1/", "concat:/etc/passwd"):
            assert refused(server, path)[1]["code"] == "url_not_allowed"
        assert refused(server, f"file://{world}/0.mp4") == (200, None)
    finally:
        for path in (link, folder_link, world / "pipe"):
            path.unlink()


def test_names_of_uploads_do_not_reach_the_disk(server, world):
    names = ["../../escape.mp4", "/etc/cron.d/x", "a.mp4\0.txt", "x" * 300 + ".mp4", ".", "CON.MP4", "a.<script>"]
    client = server.client()
    kept = []
    for name in names:
        kept.append(client.files.create(file=(name, (world / "0.mp4").read_bytes()), purpose="user_data").id)
    folder = server.services.uploads.folder
    assert {path.name.partition(".")[0] for path in folder.glob("file-*")} >= set(kept)
    assert {path.suffix for path in folder.glob("file-*")} <= {".mp4", ".txt", ""}
    for upload in kept:
        client.files.delete(upload)
    assert not list(folder.glob("file-*"))


# --- archives


def archive(path, files, change=lambda info: None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            made.writestr(info, content)
    return path


def test_archives_that_would_fill_the_disk_or_write_elsewhere(children, tmp_path):
    def as_link(info):
        info.external_attr = (stat.S_IFLNK | 0o777) << 16

    cases = {
        "larger than 1000000 bytes together": archive(tmp_path / "bomb.zip", [("a.txt", b"0" * 50_000_000)]),
        "holds 12 files, of at most 10": archive(tmp_path / "many.zip", [(f"{i}.txt", b"") for i in range(12)]),
        "'../a.txt' would lie outside": archive(tmp_path / "up.zip", [("../a.txt", b"0")]),
        "'/a.txt' would lie outside": archive(tmp_path / "root.zip", [("/a.txt", b"0")]),
        "'b.txt' is a link or a device": archive(tmp_path / "link.zip", [("b.txt", b"/etc/passwd")], as_link),
        "'a.so' is of a kind that no channel reads": archive(tmp_path / "kind.zip", [("a.so", b"0")]),
        "more than 7 folders above it": archive(tmp_path / "deep.zip", [("a/" * 8 + "a.txt", b"0")]),
        "a name of more than 255 characters": archive(tmp_path / "long.zip", [("a" * 252 + ".txt", b"0")]),
        r"damaged \(File exists\)": archive(tmp_path / "same.zip", [("a.txt", b"0"), ("a.txt/b.txt", b"0")]),
    }
    (tmp_path / "cut.zip").write_bytes(cases["holds 12 files, of at most 10"].read_bytes()[:-30])
    cases["the archive is damaged"] = tmp_path / "cut.zip"
    lying = bytearray(archive(tmp_path / "lies.zip", [("a.txt", b"0" * 50_000_000)]).read_bytes())
    place = lying.rindex(b"PK\x01\x02") + 24
    lying[place : place + 4] = (10).to_bytes(4, "little")  # what the archive says that its file unpacks to
    (tmp_path / "lies.zip").write_bytes(lying)
    cases["archive is damaged|larger than"] = tmp_path / "lies.zip"
    for number, (sentence, path) in enumerate(cases.items()):
        with reading_in_children(children), pytest.raises(MediaError, match=sentence):
            unpack(path, tmp_path / f"out{number}", max_files=10, max_bytes=1_000_000)
        written = sum(file.stat().st_size for file in (tmp_path / f"out{number}").rglob("*") if file.is_file())
        assert written <= 1_000_000 and not (tmp_path / "a.txt").exists()


@contextmanager
def sources(tmp_path, **changes):
    uploads = Uploads(Limits())
    try:
        with ExitStack() as stack, uploads.workspace() as folder:
            found = Sources(uploads, changes.pop("fetcher", Fetcher()), Limits(**changes), (tmp_path,))

            def obtain(url, kind):
                return found.obtain(url, kind, param="file", owner="me", folder=folder, stack=stack)

            yield obtain
    finally:
        uploads.close()


def test_an_archive_may_only_name_files_of_its_own(tmp_path):
    (tmp_path / "outside.png").write_bytes(b"0")
    for named in (str(tmp_path / "outside.png"), "../../../../../../../../etc/passwd"):
        bad = archive(tmp_path / "bad.zip", [("scene.json", f'{{"frames": ["{named}"]}}'), ("a.png", b"0")])
        with sources(tmp_path) as obtain, pytest.raises(ApiError, match="file: it names a file outside of its own folder"):
            obtain(data_url(bad, "application/zip"), "scene3d")
    good = archive(tmp_path / "good.zip", [("in/scene.json", '{"frames": ["a.png"]}'), ("in/a.png", b"0")])
    with sources(tmp_path) as obtain:
        assert obtain(data_url(good, "application/zip"), "scene3d").name == "scene.json"


def test_side_files_are_of_the_kind_that_their_channel_takes(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"0")
    with sources(tmp_path) as obtain:
        for url, kind, sentence in (
            ("data:application/json;base64,e30=", "sensor", "takes .csv or .tsv, got a file .json"),
            ("data:application/zip;base64,e30=", "audio", "takes a video or sound file, got a file .zip"),
            ("data:video/mp4;base64,e30=", "text", "takes .srt or .vtt or .json, got a file without an ending"),
        ):
            with pytest.raises(ApiError, match=sentence):
                obtain(url, kind)
        assert obtain(str(tmp_path / "a.h5"), "sensor") == tmp_path / "a.h5"  # what the administrator allows may be more


def test_large_descriptors_are_refused_before_they_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" + b"{}," * 1_400_000 + b"{}]")
    with sources(tmp_path) as obtain, pytest.raises(ApiError, match="file: the file is larger than 4 MiB"):
        obtain(str(tmp_path / "a.json"), "views")


def test_errors_about_files_of_an_archive_do_not_say_where_it_was_unpacked(tmp_path, world):
    class Taker:
        """Takes one channel."""

        name, id, sources = "seeing", "seeing_0", {"scene": "scene3d"}

    bad = archive(tmp_path / "bad.zip", [("scene.json", "{}"), ("a.png", b"0")])
    chat = ChatRequest(
        model="seeing",
        messages=about(data_url(world / "0.mp4")),
        side_channels={"scene": {"url": data_url(bad, "application/zip")}},
    )
    uploads = Uploads(Limits())
    try:
        with ExitStack() as stack, uploads.workspace() as folder:
            asked = Asked.of(chat, "playground", Limits())
            reading = Reading(asked, [Taker()], Sources(uploads, Fetcher(), Limits()), "me", folder, stack)
            (request,) = reading.requests(Limits(), None)
            (path,) = request.side_channels["seeing_0"].values()
            for file, told in ((path, "side_channels.scene"), (path.parent / "a.png", "side_channels.scene/a.png")):
                assert reading.plain(ValueError(f"{file}: it is damaged")) == f"{told}: it is damaged"
            assert reading.plain(ValueError(f"{folder}/5: no")) == "the request/5: no"
    finally:
        uploads.close()


# --- other machines


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        *(
            (address, False)
            for address in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1")
        ),
        ("fec0::1", False),
        *((address, False) for address in ("0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1")),
        *((address, False) for address in ("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::ffff:169.254.169.254")),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(ipaddress.ip_address(address)) is public


class Web(http.server.BaseHTTPRequestHandler):
    """Behaves as it is told."""

    def do_GET(self):
        self.server.asked.append(self.path)
        with suppress(ConnectionError):  # whoever asked had enough
            self.server.behave(self)

    def log_message(self, *args):
        return


@contextmanager
def web(address, behave):
    server = http.server.ThreadingHTTPServer((address, 0), Web)
    server.daemon_threads = True
    server.asked, server.behave = [], behave
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"{address}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def answer(content, status=200, **headers):
    def behave(handler):
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return behave


def only(*addresses):
    """In place of the public ones: a test has only loopback."""
    return lambda address: str(address) in addresses


def test_a_file_of_an_allowed_host_is_fetched(tmp_path):
    with web("127.0.0.2", answer(b"content")) as (_, host):
        Fetcher([host], allowed_address=only("127.0.0.2")).fetch(f"http://{host}/a", tmp_path / "a", "video")
    assert (tmp_path / "a").read_bytes() == b"content"


def test_other_hosts_ports_schemes_and_addresses_are_not_asked(tmp_path):
    with web("127.0.0.2", answer(b"content")) as (server, host):
        port = host.partition(":")[2]
        fetcher = Fetcher([host, "localhost", f"localhost:{port}"])  # with the addresses that really are public
        for url, sentence in (
            ("http://elsewhere.example/a", "files of this host are not fetched"),
            (f"http://127.0.0.2:{int(port) + 1}/a", "files of this host are not fetched"),
            (f"http://{host}@elsewhere.example/a", "files of this host|with a password"),
            (f"http://user:word@{host}/a", "with a password"),
            (f"http://{host}/a\r\nX: y", "blanks"),
            (f"http://{host}/a", "has an address that is not public"),
            (f"http://localhost:{port}/a", "has an address that is not public"),  # a name that leads to this machine
            ("http://[::1/a", "cannot be read"),
        ):
            with pytest.raises(ApiError, match=sentence):
                fetcher.fetch(url, tmp_path / "a", "video")
        assert server.asked == [] and not (tmp_path / "a").exists()


def test_a_redirect_is_checked_as_the_first_address_was(tmp_path):
    with web("127.0.0.1", answer(b"secret")) as (inner, inner_host):
        for to, sentence in (
            (f"http://{inner_host}/admin", "an address that is not public"),
            ("http://elsewhere.example/a", "files of this host are not fetched"),
            ("file:///etc/passwd", "only http:// and https://"),
        ):
            with web("127.0.0.2", answer(b"", 302, Location=to)) as (_, host):
                fetcher = Fetcher([host, inner_host], allowed_address=only("127.0.0.2"))
                with pytest.raises(ApiError, match=sentence):
                    fetcher.fetch(f"http://{host}/a", tmp_path / "a", "video")
        assert inner.asked == []
    with web("127.0.0.2", answer(b"", 302, Location="/again")) as (server, host):
        with pytest.raises(ApiError, match="leads on more than 3 times"):
            Fetcher([host], allowed_address=only("127.0.0.2")).fetch(f"http://{host}/a", tmp_path / "a", "video")
        assert server.asked == ["/a", "/again", "/again", "/again"]


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"0" * 2**16)


def dripping(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b"X")


@pytest.mark.parametrize(
    ("behave", "status", "sentence"),
    [
        (endless, 413, "larger than 1000000 bytes"),
        (answer(b"0", Content_Length="2000000"), 413, "larger than 1000000 bytes"),
        (answer(b"0", Content_Length="20"), 400, "cannot be fetched"),
        (answer(b"0", Content_Encoding="gzip"), 400, "sent it compressed"),
        (answer(b"0", 500), 400, "answered with status 500"),
        (dripping, 400, "takes longer than 1.5 s"),
    ],
)
def test_streams_that_do_not_end_as_they_should(tmp_path, behave, status, sentence):
    with web("127.0.0.2", behave) as (server, host):
        server.over = threading.Event()
        fetcher = Fetcher([host], max_bytes=1_000_000, max_seconds=1.5, allowed_address=only("127.0.0.2"))
        with pytest.raises(ApiError, match=sentence) as error:
            fetcher.fetch(f"http://{host}/a", tmp_path / "a", "video")
        server.over.set()
    assert error.value.status == status and not (tmp_path / "a").exists()


def test_a_fetch_ends_when_nobody_waits_for_it(tmp_path):
    stop = Stop()
    with web("127.0.0.2", dripping) as (server, host):
        server.over = threading.Event()
        fetcher = Fetcher([host], max_seconds=20.0, allowed_address=only("127.0.0.2"))
        ending = threading.Timer(0.3, stop.stop)
        ending.start()
        with stopped_by(stop), pytest.raises(ApiError, match="cannot be fetched"):
            fetcher.fetch(f"http://{host}/a", tmp_path / "a", "video")
        with stopped_by(stop), pytest.raises(ApiError, match="takes longer|cannot be fetched"):
            fetcher.fetch(f"http://{host}/b", tmp_path / "b", "video")
        server.over.set()


def test_a_server_without_allowed_hosts_asks_nobody(server):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        status, error = refused(server, f"http://127.0.0.1:{listening.getsockname()[1]}/latest/meta-data")
        assert (status, error["code"]) == (400, "url_not_allowed")
        with pytest.raises(TimeoutError):
            listening.accept()


def test_base64_of_a_sound_may_be_hostile_too(server, world):
    messages = about(str(world / "0.mp4"))
    messages[0]["content"].append(
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF" + b"\0" * 99).decode(), "format": "wav"}}
    )
    status, error = refused(server, "", model="hearing", messages=messages)
    assert (status, error["code"], error["param"]) == (400, "media_refused", "messages[0].content[2].input_audio")
