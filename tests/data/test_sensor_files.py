"""Sensors from real files of every kind, and files that are no good."""

import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pave.config import EncoderConfig, SideChannelConfig
from pave.data import sensor_files
from pave.data.dataset import PatchDataset
from pave.data.items import SampleError
from pave.data.media import FrameSampling, write_video
from pave.data.samples import Sample
from pave.data.sensor_files import read_sensor
from pave.data.sources import read_source
from pave.side_channels import build_encoder

TIMES = [0.25, 0.5, 1.75, 3.0]
SPEED = [1.0, math.nan, 2.5, -4.0]
TURN = [7.0, 8.0, 9.0, 10.0]
COLUMNS = ("turn", "speed")


def write_csv(path, rows=None, separator=","):
    rows = rows or [["speed", "time", "note", "turn"]] + [
        ["" if math.isnan(s) else s, t, "x, y" if separator == "\t" else "ok", u]
        for s, t, u in zip(SPEED, TIMES, TURN, strict=True)
    ]
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return path


def write(path):
    arrays = {"speed": np.array(SPEED), "time": np.array(TIMES), "turn": np.array(TURN, dtype=np.int32)}
    if path.suffix in (".csv", ".tsv"):
        write_csv(path, separator="," if path.suffix == ".csv" else "\t")
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        nulls = [None if math.isnan(value) else value for value in SPEED]
        columns = {**arrays, "speed": nulls, "note": ["a", "b", "c", "d"]}
        parquet.write_table(pyarrow.table(columns), path)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
            file["imu/acc"] = np.arange(12.0).reshape(4, 3)
    return path


def assert_is_the_log(read):
    assert read.names == COLUMNS
    np.testing.assert_array_equal(read.times_n, TIMES)
    np.testing.assert_array_equal(read.values_nC, np.array([TURN, SPEED]).T)


@pytest.mark.parametrize("kind", ["csv", "tsv", "npz", "parquet", "h5", "hdf5"])
def test_every_kind_of_file_gives_the_same_series(tmp_path, kind):
    assert_is_the_log(read_sensor(write(tmp_path / f"log.{kind}"), columns=COLUMNS))


def test_matrices_and_vectors_of_numpy(tmp_path):
    matrix = np.stack([np.array(TIMES) * 1000, SPEED, TURN], axis=1)
    np.save(tmp_path / "log.npy", matrix)
    read = read_sensor(tmp_path / "log.npy", columns=["2", "1"], time_column="0", time_unit="ms")
    np.testing.assert_array_equal(read.times_n, TIMES)
    np.testing.assert_array_equal(read.values_nC, np.array([TURN, SPEED]).T)
    np.save(tmp_path / "vector.npy", np.array(TURN, dtype=np.float32))
    read = read_sensor(tmp_path / "vector.npy", columns=["0"], rate=4.0, start=-0.5)
    assert read.times_n.tolist() == [-0.5, -0.25, 0.0, 0.25] and read.values_nC[:, 0].tolist() == TURN


def test_columns_of_matrices_in_hdf5_and_npz(tmp_path):
    write(tmp_path / "log.h5")
    assert read_sensor(tmp_path / "log.h5", columns=["imu/acc.2"]).values_nC[:, 0].tolist() == [2, 5, 8, 11]
    np.savez(tmp_path / "log.npz", time=TIMES, imu=np.arange(8.0).reshape(4, 2))
    assert read_sensor(tmp_path / "log.npz", columns=["imu.1"]).values_nC[:, 0].tolist() == [1, 3, 5, 7]
    with pytest.raises(ValueError, match=r"log\.npz: there is no column 'imu\.2'; there are 'time', 'imu'"):
        read_sensor(tmp_path / "log.npz", columns=["imu.2"])
    with pytest.raises(
        ValueError, match=r"'imu' must have one dimension, got shape \(4, 2\); a column of a matrix is 'imu\.0'"
    ):
        read_sensor(tmp_path / "log.npz", columns=["imu"])


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("ns", 1e9)])
def test_units_of_time(tmp_path, unit, factor):
    path = write_csv(tmp_path / "a.csv", [["time", "x"], *[[round(t * factor), 1] for t in (1.0, 2.0)]])
    assert read_sensor(path, columns=["x"], time_unit=unit).times_n.tolist() == [1.0, 2.0]


def test_time_stamps_of_parquet_bring_their_own_unit(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    stamps = pyarrow.array([1_700_000_000_250, 1_700_000_000_750], type=pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"time": stamps, "x": [1, 2]}), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps({"file": "a.parquet", "zero": 1_700_000_000_000}))
    assert read_sensor(tmp_path / "a.json", columns=["x"]).times_n.tolist() == [0.25, 0.75]


def test_a_log_with_a_clock_of_its_own(tmp_path):
    """Nanoseconds since 1970: refused alone, because no frame would ever see it; right with a link that says the zero."""
    first = 1_700_000_000_000_000_000
    path = write_csv(tmp_path / "imu.csv", [["time", "x"], [first + 250_000_000, 3], [first + 500_000_000, 4]])
    with pytest.raises(
        ValueError, match=r"imu\.csv: it has a time of 1\.7e\+09 s on the video's clock; set time_unit, or name"
    ):
        read_sensor(path, columns=["x"], time_unit="ns")
    link = tmp_path / "imu.json"
    link.write_text(json.dumps({"file": "imu.csv", "zero": first}))
    read = read_sensor(link, columns=["x"], time_unit="ns")
    np.testing.assert_allclose(read.times_n, [0.25, 0.5], rtol=0, atol=1e-6)
    assert read.values_nC[:, 0].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "an object in braces is needed, got list"),
        ('{"zero": 1}', "the key 'file' is missing"),
        ('{"file": "a.csv", "offset": 1}', "unknown key 'offset'; known keys: file, zero"),
        ('{"file": 3}', "file: the path of a file is needed, got 3"),
        ('{"file": "a.csv", "zero": NaN}', "NaN is no number of JSON"),
        ('{"file": "b.json"}', r"not another \.json file"),
        ("{", "not JSON"),
        ("[" * 60000, "not JSON"),
        ('{"file": "nowhere.csv"}', r"nowhere\.csv: there is no such file of a sensor"),
    ],
)
def test_bad_links_are_named(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_sensor(tmp_path / "a.json", columns=["x"])
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_readings_out_of_order_are_refused_or_sorted(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["time", "x"], [2, 1], [1, 2], [2, 3], [0, 4]])
    with pytest.raises(ValueError, match=r"a\.csv: times must ascend, but reading 1 at 1 s .*set unsorted: sort"):
        read_sensor(path, columns=["x"])
    read = read_sensor(path, columns=["x"], unsorted="sort")
    assert read.times_n.tolist() == [0, 1, 2] and read.values_nC[:, 0].tolist() == [4, 2, 3]  # the last of the two at 2 s


@pytest.mark.parametrize(
    ("ending", "text", "told"),
    [
        ("csv", "time;x\n0,25;1,5\n0,5;-2\n", "cells between semicolons, decimal commas"),
        ("csv", "time;x\n0.25;1.5\n0.5;-2\n", "cells between semicolons"),
        ("csv", "time\tx\n0.25\t1.5\n0.5\t-2\n", "cells between tabs"),
        ("tsv", "time\tx\n0,25\t1,5\n0,5\t-2\n", "decimal commas"),
        ("tsv", "time,x\n0.25,1.5\n0.5,-2\n", "cells between commas"),
        ("csv", "time,x\n00:00:00.25,1.5\n00:00:00.500,-2\n", "times as HH:MM:SS"),
        ("csv", "time,x\n0.25,1.5\n.5,-2e0\n", ""),
    ],
)
def test_how_a_file_is_written_is_found_out_and_said(tmp_path, caplog, monkeypatch, ending, text, told):
    monkeypatch.setattr(sensor_files, "_said", set())
    (tmp_path / f"a.{ending}").write_text(text)
    with caplog.at_level("INFO", logger="pave"):
        read = [read_sensor(tmp_path / f"a.{ending}", columns=["x"]) for _ in range(3)]
    assert read[0].times_n.tolist() == [0.25, 0.5] and read[0].values_nC[:, 0].tolist() == [1.5, -2]
    assert ", ".join(read[2].read_as) == told
    assert [f"read with {told} (" in message for message in caplog.messages] == [True] * bool(told)  # once, not three times


MOMENT = 1_700_000_000  # 2023-11-14T22:13:20Z


@pytest.mark.parametrize(
    ("times", "zero"),
    [
        (["2023-11-14T22:13:20.25Z", "2023-11-14 22:13:20.5Z"], "2023-11-14T22:13:20Z"),
        (["2023-11-14T22:13:20.25+00:00", "2023-11-14T22:13:20.500Z"], "2023-11-14T23:43:20+0130"),
        (["2023-11-14T22:13:20.25Z", "2023-11-14T22:13:20.5Z"], MOMENT),
        (["2023-11-14T22:13:20.25", "2023-11-14T22:13:20.5"], "2023-11-14T22:13:20"),
        (["22:13:20,25", "22:13:20,5"], "22:13:20"),
        ([MOMENT * 1000 + 250, MOMENT * 1000 + 500], "2023-11-14T22:13:20Z"),
        ([MOMENT * 10**6 + 250_000, MOMENT * 10**6 + 500_000], MOMENT * 10**6),
        ([MOMENT * 10**9 + 250_000_000, MOMENT * 10**9 + 500_000_000], MOMENT * 10**9),
        ([MOMENT + 0.25, MOMENT + 0.5], MOMENT),
        ([0.25, 0.5], 0),
    ],
)
def test_clocks_and_calendars_with_the_zero_of_a_link(tmp_path, times, zero):
    write_csv(tmp_path / "a.csv", [["time", "x"], *[[f'"{time}"', i] for i, time in enumerate(times)]])
    (tmp_path / "a.json").write_text(json.dumps({"file": "a.csv", "zero": zero}))
    read = read_sensor(tmp_path / "a.json", columns=["x"], time_unit="auto")
    np.testing.assert_allclose(read.times_n, [0.25, 0.5], rtol=0, atol=1e-6)
    (first,) = {tuple(read_sensor(tmp_path / "a.csv", columns=["x"], time_unit="auto", zero="first", start=2.0).times_n)}
    np.testing.assert_allclose(first, [2.0, 2.25], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("times", "zero", "words"),
    [
        ([MOMENT * 1000], None, "it looks like milliseconds since 1970: set time_unit to ms or auto, or name a .json file"),
        (["2023-11-14T22:13:20Z"], None, r"it has a time of 1\.7e\+09 s .*or set zero: first"),
        (["2023-11-14T22:13:20Z"], "2023-11-14T22:13:20", "write the zero as the log writes its times"),
        (["22:13:20"], "2023-11-14T22:13:20Z", "write the zero as the log writes its times"),
        ([1.0], "00:00:01", "of the kind 'clock', which cannot be taken off its times, which are numbers"),
        ([1.0], "soon", "zero: a number is needed, got 'soon'"),
        ([1.0], 10**400, "a number of 401 digits is too large"),
    ],
)
def test_times_that_no_zero_fits_are_refused(tmp_path, times, zero, words):
    write_csv(tmp_path / "a.csv", [["time", "x"], *[[time, 1] for time in times]])
    path = tmp_path / "a.csv"
    if zero is not None:
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"file": "a.csv", "zero": zero}))
    with pytest.raises(ValueError, match=words) as caught:
        read_sensor(path, columns=["x"])
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["npz", "parquet", "h5"])
def test_times_that_are_texts_or_dates_in_other_files(tmp_path, kind):
    texts, path = ["2023-11-14T22:13:20.25Z", "2023-11-14T22:13:20.5Z"], tmp_path / f"a.{kind}"
    days = np.array(["2023-11-14T22:13:20.25", "2023-11-14T22:13:20.5"], dtype="datetime64[ms]")
    if kind == "npz":
        np.savez(path, time=np.array(texts), days=days, x=[1, 2])
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        clock = pyarrow.array([250, 500], type=pyarrow.time32("ms"))
        parquet.write_table(pyarrow.table({"time": texts, "days": days, "clock": clock, "x": [1, 2]}), path)
        assert read_sensor(path, columns=["x"], time_column="clock").times_n.tolist() == [0.25, 0.5]
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["time"], file["days"], file["x"] = texts, np.array(texts, dtype="S"), [1, 2]
    for column in ("time", "days"):
        read = read_sensor(path, columns=["x"], time_column=column, zero="first", start=0.25)
        np.testing.assert_allclose(read.times_n, [0.25, 0.5], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(read.values_nC[:, 0], [1, 2])
    (tmp_path / "a.json").write_text(json.dumps({"file": path.name, "zero": "2023-11-14T22:13:20Z"}))
    np.testing.assert_allclose(read_sensor(tmp_path / "a.json", columns=["x"]).times_n, [0.25, 0.5], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"there is no column 'x'; there are none"),
        ("time|x\n1|2\n", r"there is no column 'x'; there are 'time\|x'"),
        ("time;x\n1;1.5\n2;1,5\n", "line 3, column 'x': '1,5' is no number"),
        ("time;x\n1;1,5\n2;1.5\n", r"line 3, column 'x': '1\.5' is no number \(the file has decimal commas\)"),
        ("time;x\n1;1.234,5\n", r"line 2, column 'x': '1\.234,5' is no number"),
        ('time,x\n1,"1,5"\n', "line 2, column 'x': '1,5' is no number"),
        ("time,x\n1,1_000\n", "line 2, column 'x': '1_000' is no number"),
        ("time,x\n1_000,1\n", "line 2, column 'time': '1_000' is no time"),
        ("time,x\n1,٣\n", "line 2, column 'x': '٣' is no number"),
        ("time,x\n00:60:00,1\n", "'00:60:00' is no time; numbers, HH:MM:SS and ISO 8601"),
        ("time,x\n2024-02-30T00:00:00Z,1\n", "is no time"),
        ("time,x\n1,1\n00:00:02,2\n", "line 3, column 'time': the time '00:00:02' is written in another way"),
        ("time,x\n00:00:01,1\n2,2\n", "line 3, column 'time': the time '2' is written in another way"),
        ("time,x\n2024-02-01T00:00:00Z,1\n2024-02-01T00:00:01,1\n", "line 3, .* is written in another way"),
        ("t,x\n1,2\n", r"there is no time column 'time'; set time_column, or rate"),
        ("time,x,x\n1,2,3\n", "two columns have the name 'x'"),
        ("time,x\n1,2\n3\n", "line 3 has 1 cells, the header has 2"),
        ("time,x\n1,2\n2,two\n", "line 3, column 'x': 'two' is no number; leave the cell empty"),
        ("time,x\n,2\n", "the time of reading 0 is not a finite number"),
        ("time,x\n1,inf\n", "the value of 'x' in reading 0 is infinite"),
        ('time,x\n1,"2\n', "is not CSV"),
        ("time,x\n1," + "9" * 200_000 + "\n", "is not CSV: field larger"),
    ],
)
def test_bad_csv_is_one_sentence(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.csv: .*{words}") as caught:
        read_sensor(tmp_path / "a.csv", columns=["x"])
    assert "\n" not in str(caught.value)


def test_csv_with_a_byte_order_mark_quotes_and_blank_lines(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"time", x\r\n1,"2"\r\n\r\n2, 3\r\n')
    read = read_sensor(tmp_path / "a.csv", columns=["x"])
    assert read.times_n.tolist() == [1, 2] and read.values_nC[:, 0].tolist() == [2, 3]
    (tmp_path / "b.csv").write_bytes(b"time,x\n1,\xff\n")
    with pytest.raises(ValueError, match=r"b\.csv: it is not UTF-8 \(byte 0xff\)"):
        read_sensor(tmp_path / "b.csv", columns=["x"])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "h5"])
def test_damaged_files_are_named(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if kind in ("parquet", "h5"):
        pytest.importorskip({"parquet": "pyarrow", "h5": "h5py"}[kind])
    path = tmp_path / f"log.{kind}"
    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for content in (b"hello", b"", (tmp_path / "evil.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"log\.{kind}: ") as caught:
            read_sensor(path, columns=["0"], rate=1.0)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil-was-here").exists()
    write(path) if kind != "npy" else np.save(path, np.zeros((4, 2)))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=rf"log\.{kind}: "):
        read_sensor(path, columns=["0" if kind == "npy" else "speed"], rate=1.0)


def test_hdf5_does_not_lead_to_other_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    write(tmp_path / "secret.h5")
    np.arange(4.0).tofile(tmp_path / "raw.bin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["time"] = TIMES
        file["x"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/speed")
        file["soft"] = h5py.SoftLink("/x")
        layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "speed", shape=(4,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("outside", (4,), "f8", external=[(str(tmp_path / "raw.bin"), 0, 32)])
    for name, words in [
        ("x", "is a link"),
        ("soft", "is a link"),
        ("virtual", "in other files"),
        ("outside", "in other files"),
    ]:
        with pytest.raises(ValueError, match=rf"a\.h5: '{name}' .*{words}"):
            read_sensor(tmp_path / "a.h5", columns=[name])


def test_absurd_sizes_are_refused_before_they_are_read(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (10**12,), "f8", chunks=(1000,))
    with pytest.raises(ValueError, match=r"a\.h5: it holds 1000000000000 readings, more than the 50000000 that are read"):
        read_sensor(tmp_path / "a.h5", columns=["x"], rate=1.0)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(10**6))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    monkeypatch.setattr(sensor_files, "MAX_READINGS", 10**5)
    with pytest.raises(ValueError, match=r"bomb\.npz: it holds 10000\d\d readings"):
        read_sensor(tmp_path / "bomb.npz", columns=["x"], rate=1.0)
    monkeypatch.setattr(sensor_files, "MAX_READINGS", 3)
    with pytest.raises(ValueError, match="it holds 4 readings, more than the 3"):
        read_sensor(write(tmp_path / "a.csv"), columns=COLUMNS)


def test_other_endings_and_texts_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.xlsx: sensors are read from \.csv, \.tsv, .* and \.json files"):
        read_sensor(tmp_path / "a.xlsx", columns=["x"])
    np.savez(tmp_path / "a.npz", x=np.array(["one"]))
    with pytest.raises(ValueError, match=r"a\.npz: 'x' holds <U3, not numbers"):
        read_sensor(tmp_path / "a.npz", columns=["x"], rate=1.0)
    np.savez(tmp_path / "b.npz", x=np.zeros(3), time=np.zeros(2))
    with pytest.raises(ValueError, match=r"b\.npz: its columns are not of one length: 'x' has 3, 'time' has 2"):
        read_sensor(tmp_path / "b.npz", columns=["x"])
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"log\.parquet: column 'note' holds string, not numbers"):
        read_sensor(write(tmp_path / "log.parquet"), columns=["note"])


def test_one_time_far_away_is_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", [["time", "x"], [1, 1], [1e300, 2]])
    with pytest.raises(ValueError, match=r"a\.csv: it has a time of 1e\+300 s"):
        read_sensor(path, columns=["x"])


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet='time,x0123456789.e+-"\n\r \x00nainf', max_size=60), kind=st.sampled_from(["csv", "tsv", "json"]))
def test_any_text_is_read_or_refused_in_one_sentence(tmp_path_factory, text, kind):
    path = tmp_path_factory.getbasetemp() / f"fuzz.{kind}"
    path.write_bytes(("time,x\n" + text).encode() if kind == "csv" else text.encode())
    try:
        read = read_sensor(path, columns=["x"], unsorted="sort")
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error) and len(str(error)) < 600
    else:
        assert np.isfinite(read.times_n).all() and (np.diff(read.times_n) > 0).all()


# --- through samples


def test_a_sample_names_its_log_and_a_changed_log_is_read_again(tmp_path):
    video = tmp_path / "a.mp4"
    write_video(video, np.zeros((16, 32, 32, 3), np.uint8), fps=8)
    log = write(tmp_path / "log.csv")
    (tmp_path / "link.json").write_text(json.dumps({"file": "log.csv", "zero": 0.25}))
    chosen = {"columns": list(COLUMNS), "statistics": ["last", "share"]}
    encoder = build_encoder(EncoderConfig(name="sensor_windows", settings=chosen))
    assert read_source(encoder, str(video), None) is None
    samples = [
        Sample(id=name, video=str(video), question="q", answer="a", side_channels=side)
        for name, side in [
            ("none", {}),
            ("null", {"imu": None}),
            ("log", {"imu": str(log)}),
            ("link", {"imu": str(tmp_path / "link.json")}),
        ]
    ]

    def items():
        channels = {"imu": SideChannelConfig(kind="sensor", width=4)}
        data = PatchDataset(samples, FrameSampling(num_frames=2), {"imu": encoder}, channels, cache=str(tmp_path / "cache"))
        return [data[i].side["imu"] for i in range(4)], data.cache_report.misses

    (none, null, features, linked), _ = items()
    assert none is None and null is None
    assert features.times_K.tolist() == [0.5, 1.5, 3.5]
    torch.testing.assert_close(
        features.features_KMC[:, 0], torch.tensor([[8.0, 1.0, 1.0, 0.5], [9.0, 1.0, 2.5, 1.0], [10.0, 1.0, -4.0, 1.0]])
    )
    assert linked.times_K.tolist() == [0.5, 1.5, 2.5]
    assert items()[1] == 0
    write_csv(log, [["time", "speed", "turn"], [0.5, 1, 2]])
    (_, _, features, linked), misses = items()
    assert misses == 2 and len(features) == len(linked) == 1  # the link's own file did not change, the log behind it did


def test_a_number_that_no_reader_expected_is_the_fault_of_its_sample(tmp_path):
    video = tmp_path / "a.mp4"
    write_video(video, np.zeros((16, 32, 32, 3), np.uint8), fps=8)
    encoder = build_encoder(EncoderConfig(name="sensor_windows", settings={"columns": ["speed"]}))
    encoder.encode = lambda source: float(10**400)
    dataset = PatchDataset([], FrameSampling(num_frames=2), {"imu": encoder}, {"imu": SideChannelConfig(width=encoder.width)})
    sample = Sample(id="huge", video=str(video), question="q", side_channels={"imu": str(write(tmp_path / "log.csv"))})
    with pytest.raises(SampleError, match=r"sample 'huge': .*log\.csv: a number in it is out of range \(int too large"):
        dataset.read([sample])
