"""Sections on several channels, damaged channels and cost: which runs they need, and the numbers in their tables."""

import re
from dataclasses import replace

import pytest

from benchmarks.prefill import Measurement
from evidence.contents import SECTIONS, all_runs
from evidence.execution import execute_all
from evidence.measurement import FILE
from evidence.plan import PATCH, SHORT, Plan, compared_runs, run, seeds
from evidence.runs import AS_IT_IS, RESULT, Run, silent
from evidence.scores import accuracy, difference
from evidence.sections import cost, multi, robustness
from evidence.worlds import WORLDS, make_worlds
from evidence_files import leave
from pave.demo.plan import SILENT, video_only_patch
from pave.patching.cost import patch_cost
from pave.utils.files import atomic_write_json
from pave.video_llms.known import load_config


def folders(names, root, plan):
    return {made.folder(root) for made in all_runs(names, plan)}


def test_runs_of_other_sections_are_used_again(tmp_path):
    plan = Plan()
    channels = folders(["channels"], tmp_path, plan)
    more = folders(["multi", "robustness", "cost"], tmp_path, plan) - channels
    added = {made.folder(tmp_path) for made in all_runs(["multi"], plan) if made.added}
    assert len(added) == 3 and len(more - added) == 3 + 2 * 3  # both channels, and dropout on each of two worlds
    both = next(made for made in all_runs(["multi"], plan) if made.variant == multi.BOTH)
    assert both.steps == WORLDS["audio"].steps + WORLDS["sensor"].steps and list(both.patch.side_channels) == [
        "audio",
        "sensor",
    ]
    assert not SECTIONS["cost"].runs(plan)


def test_a_sum_is_another_run_where_a_part_is(tmp_path):
    parts = tuple(run(world, PATCH, WORLDS[world].patch(), SHORT, 0) for world in multi.CHANNELS)
    one = Run("audio+sensor", "x", None, added=parts)
    renamed = replace(parts[0], variant="another name", counterfactuals=("removed",))
    assert Run("audio+sensor", "y", None, added=(renamed, parts[1])).folder(tmp_path) == one.folder(tmp_path)
    other = replace(parts[0], steps=9)
    assert Run("audio+sensor", "x", None, added=(other, parts[1])).folder(tmp_path) != one.folder(tmp_path)
    assert Run("audio+sensor", "x", None).folder(tmp_path) != one.folder(tmp_path)
    assert one.to_dict()["added"][0]["seed"] == 0 and "added" not in parts[0].identity


def test_types_are_found_with_and_without_their_world(tmp_path):
    single = leave(Run("audio", "x", video_only_patch()), tmp_path, {"colour": [1, 0], "sound": [1, 1]})
    both = leave(
        Run("audio+sensor", "y", video_only_patch()),
        tmp_path,
        {"audio:colour": [1, 1], "sensor:colour": [0, 0], "sound": [0, 1]},
    )
    kinds = ("audio:colour",)
    assert (accuracy([single], tmp_path, kinds).mean, accuracy([both], tmp_path, kinds).mean) == (0.5, 1.0)
    assert difference([single], [both], tmp_path, kinds)[0] == 0.5
    assert accuracy([both], tmp_path, ("colour",)).mean == 0.5
    assert difference([single], [both], tmp_path, ("sound",))[0] == -0.5
    with pytest.raises(ValueError, match="no answer of the types"):
        accuracy([single], tmp_path, ("sensor:colour",))


def plain(text):
    """Without the anchors of rows."""
    return re.sub(r"<a id=[^>]*></a>", "", text)


def own(world, right):
    return dict.fromkeys(WORLDS[world].own, right)


def quiet(right):
    return dict.fromkeys(SILENT, right)


def test_the_table_of_several_channels(tmp_path):
    plan = Plan(seeds=(0,), steps=4)
    for world in multi.CHANNELS:
        for variant, (made,) in compared_runs(world, plan).items():
            right = {"base alone": [0, 0, 0, 0], "patch": [1, 1, 1, 1]}.get(variant, [1, 0, 0, 0])
            silent_right = {kind: [1, 1, 1, 0] if variant == "base alone" else [1, 1, 1, 1] for kind in SILENT}
            leave(made, tmp_path, {**own(world, right), **silent_right})
    for variant, (made,) in multi.runs_for_both(plan).items():
        right = [1, 1, 1, 0] if variant == multi.BOTH else [1, 0, 0, 0]
        others = {f"{world}:{kind}": [1, 1, 0, 0] for world in multi.CHANNELS for kind in SILENT}
        leave(made, tmp_path, {**own("audio", right), **own("sensor", right), **others})
    text = plain(SECTIONS["multi"].write(plan, tmp_path))
    rows = [[cell.split(" [")[0].strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    found = {row[1]: row[2:] for row in rows[2:5]}
    assert rows[2][0] == "audio"
    assert found["sound"] == ["25", "0.0", "25.0", "100.0", "75.0", "-25.0", "25.0", "-75.0"]
    assert found["silent questions"] == ["", "75.0", "100.0", "100.0", "50.0", "-50.0", "50.0", "-50.0"]
    assert rows[-1] == ["sensor", "+25.0", "+25.0", "-25.0", "-25.0"]
    both, added = SECTIONS["multi"].in_short(plan, tmp_path)
    assert both.startswith("One patch for both, ") and "[audio](#multi-audio) -25.0 (silent questions -50.0)" in both
    assert added.startswith("The two patches added, ") and "[sensor](#multi-sensor) -75.0 (silent questions -50.0)" in added


def test_the_tables_of_damaged_channels(tmp_path):
    plan = Plan(seeds=(0,), steps=4)
    for world in robustness._WORLDS:
        for runs in robustness.without_channel(world, plan).values():
            leave(runs[0], tmp_path, {**own(world, [1, 0, 0, 0]), **quiet([1, 1, 1, 1])})
        for variant, (made,) in robustness.variants(world, plan).items():
            suffix = "-missing_channel=lora_only" if variant == robustness.LORA_ON else ""
            as_it_is = [1, 1, 1, variant != robustness.DROPOUT]
            leave(made, tmp_path, {**own(world, as_it_is), **quiet([1, 1, 1, 1])}, AS_IT_IS + suffix)
            for place, change in enumerate(made.counterfactuals):
                if change == silent("removed"):
                    kept = [1, 1, 1, 1] if variant == PATCH else [1, 1, 0, 0]
                    leave(made, tmp_path, quiet(kept), silent("removed") + suffix)
                else:
                    right = [index < place for index in range(4)]
                    leave(made, tmp_path, own(world, right), change + suffix)
    written = SECTIONS["robustness"].write(plan, tmp_path)
    text = plain(written)
    lines = [[cell.replace("<br>", " ").split(" [")[0].strip() for cell in line.split("|")[1:-1]]
             for line in text.splitlines() if "|" in line]  # fmt: skip
    assert lines[2][:5] == ["audio, sound", "25", "patch", "100.0", "0.0"] and lines[2][5:] == ["25.0", "50.0", "75.0", "100.0"]
    removed = next(line for line in text.splitlines() if line.startswith("| audio, sound | 25 | patch |")).split("|")[5]
    assert removed.strip().startswith("0.0 [") and "<br>-100.0 [-100.0, +14.4]" in removed  # from as it is to removed
    assert lines[3][3:] == ["100.0", "0.0", *["as above"] * 4]
    assert lines[5][1:4] == ["25", "*base alone*", "25.0"]
    (line,) = SECTIONS["robustness"].in_short(plan, tmp_path)
    named = "#robustness-audio-sound-25-patch"
    assert f"on the stream as it is: noise of 1 deviation [-75.0]({named}) and [-75.0](#" in line
    assert f"half of its steps missing [+0.0]({named}) and" in line and "2 s late" not in line
    dropout = "#robustness-audio-sound-25-trained-with-channel-dropout-0.3"
    assert f"on the same stream: as it is [-25.0]({dropout}) and [-25.0](#" in line and f"missing [+0.0]({dropout})" in line
    assert all(f'id="{name}"' in written for name in re.findall(r"\(#([^)]*)\)", line))
    found = {row[1]: row[2:] for row in lines if row[0] == "sensor"}
    assert found[PATCH] == ["100.0", "100.0", "+0.0"] and found[robustness.DROPOUT] == ["100.0", "50.0", "-50.0"]


def test_dropout_is_what_the_variants_of_a_damaged_channel_differ_in():
    for world in robustness._WORLDS:
        (plain_run,), (kept,), (dropout,) = robustness.variants(world, Plan(seeds=(0,), steps=4)).values()
        assert plain_run.training.get("channel_dropout", 0) == 0 and plain_run.patch.missing_channel == "base"
        assert kept.identity == plain_run.identity and kept.asked_with == {"missing_channel": "lora_only"}
        assert dropout.training == {**plain_run.training, "channel_dropout": robustness.RATE}
        assert dropout.patch == replace(plain_run.patch, missing_channel="lora_only")


def test_patches_of_one_seed_are_added_up():
    plan = Plan(seeds=(0, 5))
    sums = multi.runs_for_both(plan)[multi.ADDED]
    assert [(made.seed, [part.seed for part in made.added]) for made in sums] == [(0, [0, 0]), (5, [5, 5])]
    assert [part.world for part in sums[1].added] == list(multi.CHANNELS)


def test_costs_are_those_of_pave_show_and_a_measurement_is_told(tmp_path):
    from pave.cli.show import PRESETS, preset_patch

    assert cost.presets() == {name: preset_patch(name) for name in PRESETS}
    counted = patch_cost(load_config("llava-onevision-qwen2-7b"), preset_patch("compact"))
    short = plain(SECTIONS["cost"].write(SHORT, tmp_path))
    row = next(line for line in short.splitlines() if "7b | compact" in line)
    share = 100 * (counted.fusion_flops + counted.lora_flops) / counted.base_prefill_flops
    assert f"{counted.fusion_bytes / 1e6:.2f} + {counted.lora_bytes / 1e6:.2f} MB" in row and f"+{share:.3f} %" in row
    assert "Nothing was measured" in short and not (tmp_path / FILE).exists()
    known = Measurement(
        base=cost.BASE, frames=4, tokens=1633, dtype="bfloat16", rounds=2, base_seconds=20.0, ratio=1.01, fusion_seconds=0.05,
        base_bytes=2_500_000_000, patched_bytes=2_512_000_000, machine="a machine",
        patch=preset_patch("compact").to_dict(),
    )  # fmt: skip
    atomic_write_json(tmp_path / FILE, known.to_dict())
    full = plain(SECTIONS["cost"].write(Plan(), tmp_path))
    assert "Measured on a machine" in full and "| seconds | 20.00 | +0.250 % | +1.000 % |" in full
    (line,) = SECTIONS["cost"].in_short(Plan(), tmp_path)
    size = (counted.fusion_bytes + counted.lora_bytes) / 1e6
    assert f"[llava-onevision-qwen2-7b](#cost-llava-onevision-qwen2-7b-compact) {share:.3f} % and {size:.1f} MB" in line
    assert "| 2.50 GB |  | +12 MB |" in full and "Nothing was measured" not in full


@pytest.mark.slow
def test_sums_and_silent_questions_under_a_change_are_really_made(tmp_path):

    plan = Plan(seeds=(0,), train_clips=8, test_clips=2, steps=1)
    (base,) = seeds("audio", "base", None, plan)
    gone = ("removed", silent("removed"))
    kept = seeds(
        "audio", "kept", WORLDS["audio"].patch(), plan, asked_with={"missing_channel": "lora_only"}, counterfactuals=gone
    )
    trained = seeds("audio", PATCH, WORLDS["audio"].patch(), plan, counterfactuals=gone)
    other = seeds("sensor", PATCH, WORLDS["sensor"].patch(), plan)
    added = run("audio+sensor", multi.ADDED, None, plan, 0, added=(*trained, *other))
    runs = [added, *kept, *trained, *other, base]
    data = make_worlds(("audio", "sensor", "audio+sensor"), tmp_path, plan.train_clips, plan.test_clips, 2)
    execute_all(runs, data, tmp_path, 1)
    assert (added.folder(tmp_path) / RESULT).exists() and len(list((tmp_path / "runs" / "audio").iterdir())) == 2
    assert len(added.answers(tmp_path)) == 2 * 7 * 2
    alone = {p.id: p.prediction for p in base.answers(tmp_path)}
    without = {p.id: p.prediction for name in gone for p in trained[0].answers(tmp_path, name)}
    assert without == alone  # missing_channel "base": exactly the base, on own and silent questions
    assert {p.type for p in kept[0].answers(tmp_path, silent("removed"))} == set(SILENT)
    stamp = (trained[0].folder(tmp_path) / "trained.json").stat().st_mtime_ns
    execute_all(runs, data, tmp_path, 1)
    assert (trained[0].folder(tmp_path) / "trained.json").stat().st_mtime_ns == stamp
