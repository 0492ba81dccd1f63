"""Numbers in the tables and charts of the sections on channels, time, parts and cost, from answers as told."""

import re
from dataclasses import replace

import pytest

from evidence.contents import SECTIONS
from evidence.execution import first_clips
from evidence.plan import BASE, PATCH, SHORT, VIDEO_ONLY, Plan, compared_patches, seeds
from evidence.runs import AS_IT_IS, RESULT, Run
from evidence.scores import Accuracy, accuracy, difference
from evidence.sections import channels, parts, time
from evidence.sections.comparison import chart_and_table, compare
from evidence.tables import cell, gain
from evidence.worlds import WORLDS
from evidence_files import leave
from figure_checks import points
from pave.data.samples import Sample, write_samples
from pave.demo.plan import SILENT, video_only_patch
from pave.evaluation.metrics import Interval, accuracy_interval, difference_interval
from pave.patching.training_cost import training_cost
from pave.patching.training_memory import StepShape
from pave.playground.world import DURATION
from pave.utils.files import atomic_write_json
from pave.video_llms.known import load_config

PLAN = Plan(seeds=(0,), steps=4)


def rows_of(text):
    """The cells of all tables, intervals and anchors left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    plain = [re.sub(r" \[[^]]*\]|<a id=[^>]*></a>", "", line.replace("<br>", " ")) for line in lines]
    return [[part.strip() for part in line.split("|")[1:-1]] for line in plain]


def test_a_cell_has_its_interval_and_the_seeds_where_there_are_several():
    score = Accuracy(0.5, Interval(0.25, 0.75, "by hand"), (0.5,))
    assert cell(score) == "50.0 [25.0, 75.0]"
    assert cell(Accuracy(0.5, score.interval, (0.4, 0.6))) == "50.0 [25.0, 75.0]<br><sub>40.0 60.0</sub>"
    apart = Accuracy(0.5, score.interval, (0.2, 0.8))  # further apart than the interval is wide
    assert cell(apart) == "50.0 [25.0, 75.0]<br><sub><b>20.0 80.0</b></sub>"
    assert gain(-0.125, Interval(-0.25, 0.0625, "by hand")) == "-12.5 [-25.0, +6.2]"


def made_on_sensor(root, right):
    """Runs of the three variants, with as many right answers of twelve to each type as told."""
    world, made = WORLDS["sensor"], {}
    for variant, patch in ((BASE, None), (VIDEO_ONLY, video_only_patch()), (PATCH, world.patch())):
        made[variant] = seeds("sensor", variant, patch, PLAN)
        leave(made[variant][0], root, {kind: [i < n for i in range(12)] for kind, n in right[variant].items()})
    return made


def test_the_patch_is_compared_with_lora_on_video_only(tmp_path, drawn):
    right = {
        BASE: {"sensor": 0, "sensor_vision": 6, "light": 6},
        VIDEO_ONLY: {"sensor": 3, "sensor_vision": 6, "light": 12},
        PATCH: {"sensor": 12, "sensor_vision": 9, "light": 1},
    }
    made = made_on_sensor(tmp_path, right)
    groups = {kind: (kind,) for kind in right[BASE]}
    sensor, vision, light = compare("sensor", groups, made, tmp_path)
    assert sensor.cells[:2] == ["sensor", "50"] and light.cells[1] == ""
    assert [text.split(" [")[0] for text in sensor.cells[2:]] == ["0.0", "25.0", "100.0", "+75.0"]
    assert light.cells[-1].startswith("-91.7")
    assert (sensor.charted.mark, light.charted.mark) == (50, None)
    interval = accuracy_interval([1] * 9 + [0] * 3, list(range(12)))
    point = vision.charted.points[PATCH]
    assert (point.value, point.low, point.high) == (75, 100 * interval.low, 100 * interval.high)
    shown, table = chart_and_table(tmp_path, "name", "a title", "channel", {"chart": ("head", [sensor, vision])})
    assert shown == "![a title](evidence/name.png)"
    assert [row[:2] for row in rows_of(table)[2:]] == [["head", "sensor"], ["", "sensor vision"]]
    found = points(drawn["a title"])
    assert {name: [dot[0] for dot in dots] for name, dots in found.items()} == {
        BASE: [0, 50],
        VIDEO_ONLY: [25, 50],
        PATCH: [100, 75],
    }


def test_runs_that_were_not_asked_alike_are_not_compared(tmp_path):
    one = leave(Run("audio", "x", video_only_patch()), tmp_path, {"sound": [1]}, base_weights="a", frames={"num_frames": 8})
    other = leave(
        Run("audio", "y", video_only_patch(), steps=7), tmp_path, {"sound": [1]}, base_weights="b", frames={"num_frames": 8}
    )
    with pytest.raises(ValueError, match="cannot be compared: base_weights was 'a' in one and 'b' in the other"):
        difference([one], [other], tmp_path, ["sound"])
    alike = leave(
        Run("audio", "z", video_only_patch(), steps=8), tmp_path, {"sound": [0]}, base_weights="a", frames={"num_frames": 8}
    )
    assert difference([one], [alike], tmp_path, ["sound"])[0] == -1


def test_answers_that_were_given_anew_are_read_anew(tmp_path):
    run = leave(Run("audio", "x", video_only_patch()), tmp_path, {"sound": [1, 1]})
    assert accuracy([run], tmp_path, ["sound"]).mean == 1
    leave(run, tmp_path, {"sound": [1, 0]})
    assert accuracy([run], tmp_path, ["sound"]).mean == 0.5


def test_the_differences_over_seeds_are_one_cluster_a_video(tmp_path):
    first, second = [[1, 0, 0, 1], [1, 0, 0, 0]], [[1, 1, 1, 1], [1, 0, 1, 0]]
    one = [leave(Run("audio", "x", video_only_patch(), seed=i), tmp_path, {"sound": right}) for i, right in enumerate(first)]
    other = [leave(Run("audio", "y", None, seed=i), tmp_path, {"sound": right}) for i, right in enumerate(second)]
    by, interval = difference(one, other, tmp_path, ["sound"])
    assert by == 3 / 8
    assert interval == difference_interval([*first[0], *first[1]], [*second[0], *second[1]], ["v0", "v1", "v2", "v3"] * 2)


def test_the_table_of_the_section_on_time(tmp_path):
    for world, kind in time._ALIGNED.items():
        for place, (run,) in enumerate(time.variants(world, PLAN).values()):
            suffix = "".join(f"-{key}={value}" for key, value in run.asked_with.items())
            others = dict.fromkeys(set(WORLDS[world].own) - {kind}, [0] * 4)
            leave(run, tmp_path, {kind: [i < 4 - place for i in range(4)], **others}, AS_IT_IS + suffix)
            for number, change in enumerate(time.CHANGES):
                leave(run, tmp_path, {kind: [i < number for i in range(4)], **others}, change + suffix)
    text = SECTIONS["time"].write(PLAN, tmp_path)
    rows = rows_of(text)
    assert rows[0] == ["questions (guessing gives 50)", "alignment", AS_IT_IS, *time.CHANGES.values()]
    assert rows[2] == ["audio, sound vision", "by timestamps", "100.0", "0.0 -100.0", "25.0 -75.0", "50.0 -50.0"]
    assert rows[4] == ["audio, sound vision", "by index", "50.0", "0.0 -50.0", "25.0 -25.0", "50.0 +0.0"]
    assert rows[3][2] == "75.0" and rows[9][2] == "25.0" and rows[9][0].startswith("sensor")
    (line,) = SECTIONS["time"].in_short(PLAN, tmp_path)
    assert (
        "early: [-100.0](#time-audio-sound-vision-by-timestamps), [-75.0](#" in line
        and line.count("\n  - ") == 3
        and "a gap of 20 %, clear of the event: [-50.0](#" in line
    )
    assert all(f'id="{name}"' in text for name in re.findall(r"\(#([^)]*)\)", line))


def test_the_section_on_channels_in_short_and_its_questions(tmp_path):
    for name, world in WORLDS.items():
        for variant, patch in compared_patches(name).items():
            right = {BASE: [0, 0, 0, 0], VIDEO_ONLY: [1, 0, 0, 0], PATCH: [1, 1, name != "multiview", 0]}[variant]
            silent = [1, 1, 0, 0] if name == "sensor" and variant == PATCH else [1, 1, 1, 0]
            for run in seeds(name, variant, patch, PLAN):
                leave(run, tmp_path, {**dict.fromkeys(world.own, right), **dict.fromkeys(SILENT, silent)})
        lines = [
            Sample(id=f"{kind}{n}", video=f"{n}.mp4", type=kind, question=f"{kind}, {n} ?", answer=f"{kind} {n % 2}")
            for n in range(3)
            for kind in (*world.own, *SILENT)
        ]
        folder = PLAN.data(name, tmp_path)
        folder.mkdir(parents=True)
        write_samples(folder / "test.jsonl", lines)
    first, weak = channels._in_short(PLAN, tmp_path)
    assert (
        first.startswith("On questions that need the channel")
        and "[audio](#channels-audio) +50.0, [sensor](#channels-sensor) +50.0" in first
    )
    assert first.endswith("-25.0 to +0.0 against base alone and -25.0 to +0.0 against LoRA on video only.")
    assert weak.endswith(
        "steps: hidden colour 50.0 (guessing 25), hidden shape 50.0 (guessing 33), hidden vision 50.0 (guessing 50)."
    )
    rows = rows_of("\n\n".join(channels._questions(PLAN, tmp_path)))
    assert rows[2] == ["audio", "sound", "sound, 0 ?", "sound 0", "2", "3"] and rows[3][0] == ""
    assert [row[0] for row in rows[-5:]] == ["every channel", "", "", "", ""] and rows[-1][1] == "light vision"


def test_without_alignment_every_frame_sees_the_whole_stream():
    for world in time._ALIGNED:
        plain, nearest, by_index, unaligned = (
            run.patch.side_channels[world].fusion for (run,) in time.variants(world, PLAN).values()
        )
        assert unaligned == replace(plain, neighbourhood_seconds=unaligned.neighbourhood_seconds)
        assert unaligned.neighbourhood_seconds > DURATION and plain.alignment == "timestamps" and nearest == plain
        assert by_index == replace(plain, alignment="index")


def test_the_tables_of_the_section_on_parts(tmp_path, drawn):
    """One variant is better on the own questions and worse on the silent ones, all others are as good as the reference."""
    better = "by index"
    for run in SECTIONS["parts"].runs(PLAN):
        own = {"sound": [1, 1, 1, 0] if run.variant == better else [1, 1, 0, 0], "sound_vision": [1, 0, 0, 0]}
        leave(run, tmp_path, {**own, **dict.fromkeys(SILENT, [0, 0, 1, 1] if run.variant == better else [1, 1, 1, 1])})
        curve = [(1, 9.0), *((step, step / 100) for step in range(10, 351, 10))]
        atomic_write_json(run.folder(tmp_path) / RESULT, {"curve": curve})
    written = SECTIONS["parts"].write(PLAN, tmp_path)
    found = {row[0]: row[1:] for row in rows_of(written)}
    losses = ["0.30", "0.80", "1.80", "3.30"]  # the mean of the five entries up to the step
    assert found[better][:10] == ["75.0", "25.0", "50.0", "+12.5", "50.0", "-50.0", *losses]
    assert found["3 layers"][:10] == ["50.0", "25.0", "37.5", "+0.0", "100.0", "+0.0", *losses]
    assert found[parts.REFERENCE][3] == found[parts.REFERENCE][5] == ""
    assert int(found["concat"][-1]) == int(found["3 layers"][-1]) + 32 == int(found["interleave"][-1])
    (line,) = SECTIONS["parts"].in_short(PLAN, tmp_path)
    assert line.endswith(f"[{better}](#parts-alignment-by-index) +12.5.") and line.count(" +0.0") == len(line.split("](#")) - 2
    assert all(f'id="{name}"' in written for name in re.findall(r"\(#([^)]*)\)", line))
    need = difference_interval([1, 1, 0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0, 0], [0, 1, 2, 3] * 2)
    found = points(drawn["What each change gains over the demo's patch"])
    assert found["all that need the sound"][0][:3] == pytest.approx((12.5, 100 * need.low, 100 * need.high))
    assert found["silent questions"][0][0] == -50


def test_the_variants_of_the_parts_differ_in_one_thing_and_share_the_rest():
    runs = {run.variant: run for run in SECTIONS["parts"].runs(PLAN)}
    reference = runs[parts.REFERENCE]
    assert (
        len(runs) == 1 + sum(len(group) for group in parts.variants().values()) and len({r.steps for r in runs.values()}) == 1
    )
    assert all((r.seed, r.clips, r.world, r.base) == (0, 1200, "audio", reference.base) for r in runs.values())
    assert len({str(run.identity) for run in runs.values()}) == len(runs)


def test_the_costs_of_training_are_those_of_the_arithmetic(tmp_path):
    text = SECTIONS["cost"].write(SHORT, tmp_path)
    from pave.cli.show import preset_patch

    cost = training_cost(
        load_config("llava-onevision-qwen2-0.5b"), preset_patch("paper"), StepShape(batch_size=2, num_frames=32, text_tokens=64)
    )
    memory = cost.memory
    state = memory.patch_weights + memory.gradients + memory.optimizer
    row = [row for row in rows_of(text) if row[:2] == ["llava-onevision-qwen2-0.5b", "paper"]][1]
    assert row[2:] == [
        f"{memory.base_weights / 1e9:.1f} GB",
        f"{state / 1e6:.0f} MB",
        f"{memory.peak / 1e9:.1f} GB",
        f"{cost.memory_other.peak / 1e9:.1f} GB",
        f"{cost.step_flops / 1e12:.0f} TFLOP",
        f"{cost.step_flops / cost.forward_flops:.2f}",
    ]


def test_the_first_clips_are_asked_with_all_their_questions():
    samples = [Sample(id=f"{clip}{n}", video=f"{clip}.mp4", question="?", answer="a") for n in range(2) for clip in "abc"]
    assert [s.id for s in first_clips(samples, 2)] == ["a0", "b0", "a1", "b1"] and first_clips(samples, 0) == samples


def test_the_page_says_where_a_channel_was_trained_for_longer():
    assert channels._steps(Plan()).startswith("350 steps of training, 700 for multiview; LoRA on video only gets as many")
    assert channels._steps(PLAN).startswith("4 steps of training; LoRA")
