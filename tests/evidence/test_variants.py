"""A reader's own rows: what they change and share, what is refused before anything is trained, and where they stand on the page."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from evidence import page as page_module
from evidence import reuse
from evidence.__main__ import main
from evidence.contents import SECTIONS
from evidence.page import reproduce
from evidence.plan import SHORT, Plan, seeds
from evidence.reuse import PAGE_FILE
from evidence.runs import RESULT, recipe_of
from evidence.sections import parts
from evidence.sections.variants import own_variants
from evidence.worlds import WORLDS
from evidence_files import leave
from pave.demo.plan import SILENT, video_only_patch
from pave.utils.files import atomic_write_json

PLAN = Plan(seeds=(0, 1), steps=4)
FUSION = "patch.side_channels.audio.fusion"
ONE_LAYER = f"one layer, rope: {FUSION}.num_layers=1 {FUSION}.rope=true"
SLOW = "slow LoRA: training.lora_learning_rate=1e-4"


def planned(*texts, plan=PLAN):
    return replace(plan, variants=own_variants(texts))


def runs_of(plan, name):
    runs = SECTIONS["own"].runs(plan) if name in {variant.name for variant in plan.variants} else SECTIONS["parts"].runs(plan)
    return [run for run in runs if run.variant == name]


def refused(text, *further):
    with pytest.raises(ValueError) as error:
        own_variants([text, *further])
    return str(error.value)


def test_a_variant_has_its_changes_and_shares_all_else_with_the_reference():
    plan = planned(ONE_LAYER, SLOW)
    reference = runs_of(plan, parts.REFERENCE)
    assert [run.seed for run in reference] == [0, 1]
    changed = WORLDS["audio"].patch(num_layers=1, rope=True)
    assert runs_of(plan, "one layer, rope") == [replace(run, variant="one layer, rope", patch=changed) for run in reference]
    slow = runs_of(plan, "slow LoRA")
    assert slow == [replace(run, variant="slow LoRA", training={"lora_learning_rate": 1e-4}) for run in reference]
    before, now = (recipe_of(run, Path("data"), Path("out"), Path("store")).to_dict() for run in (reference[1], slow[1]))
    assert now.pop("training") == {**before.pop("training"), "lora_learning_rate": 1e-4} and now == before


def test_a_variant_that_is_there_already_is_the_same_run(tmp_path):
    texts = {
        "1 layer instead of 2": f"mine: {FUSION}.num_layers=1 {FUSION}.rope=false",
        "the final norm learns at the rate of the rest (published)": "mine: training.output_norm_multiplier=1",
        "none, every frame attends to the whole sound": f"mine: {FUSION}.neighbourhood_seconds=1e3",
        "fusion only": "mine: patch.lora=null",
    }
    for name, text in texts.items():
        plan = planned(text)
        assert [run.folder(tmp_path) for run in runs_of(plan, "mine")] == [run.folder(tmp_path) for run in runs_of(plan, name)]
    silent = runs_of(planned("mine: patch.side_channels={}"), "mine")
    assert [run.folder(tmp_path) for run in silent] == [
        run.folder(tmp_path) for run in seeds("audio", "x", video_only_patch(), PLAN)
    ]
    two = planned("mine: patch.lora.rank=4", f"yours: patch.lora.rank=4 {FUSION}.num_layers=2")
    assert runs_of(two, "mine")[0].folder(tmp_path) == runs_of(two, "yours")[0].folder(tmp_path)
    assert len({run.folder(tmp_path) for run in SECTIONS["own"].runs(planned(ONE_LAYER, SLOW))}) == 3 * 2  # with the reference


def test_values_are_read_as_a_shell_and_a_recipe_read_them():
    (found,) = own_variants(["  ranks  of two: patch.lora.ranks='{q_proj: 4, v_proj: 2}' patch.lora.targets.1=k_proj "
                                   "patch.lora.ranks={k_proj:\\ 3}"])  # fmt: skip
    assert (found.name, found.patch.lora.ranks, found.patch.lora.targets) == (
        "ranks of two",
        {"k_proj": 3},
        ("q_proj", "k_proj"),
    )
    assert found.changes[0] == "patch.lora.ranks={q_proj: 4, v_proj: 2}" and found.training == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patch.lora=null", "--variant 'patch.lora=null': expected \"NAME: KEY=VALUE ...\", such as \"one layer: "),
        (" : patch.lora=null", "--variant ': patch.lora=null': the name is empty; expected \"NAME: KEY=VALUE"),
        ("a: ", "--variant 'a:': no change follows the name; expected"),
        ("a: patch.lora", "--variant 'a': expected KEY=VALUE, got 'patch.lora'; a value with spaces stands in quotes"),
        ("a: over.yaml", "--variant 'a': expected KEY=VALUE, got 'over.yaml'"),
        ("a: patch.lora.targets=[q_proj, k_proj]", "--variant 'a': expected KEY=VALUE, got 'k_proj]'; a value with spaces"),
        ("a: 'patch.lora=null", "--variant \"a: 'patch.lora=null\": a quote is not closed"),
        ("a: patch.lora=null\nb", "it stands in one line of a page, so it takes no backtick, no line break and nothing else"),
        ("a`: patch.lora=null", "it takes no backtick, no line break and nothing else that does not print"),
        ("a|b: patch.lora=null", "the name stands in a table, so it takes none of | < > [ ] \\ *, got '|'"),
        ("a" * 41 + ": patch.lora=null", "the name stands beside a chart, so it has at most 40 characters, got 41"),
        ("a: data.cache=null", "--variant 'a': 'data.cache' cannot be changed; a variant changes keys of a recipe that begin with "
         "patch. or training."),
        ("a: training={}", "--variant 'a': 'training' cannot be changed; a variant changes keys"),
        ("a: training.steps=9", "--variant 'a': training.steps cannot be changed, as every row is trained for the same number of steps"),
        ("lr: training.trainer.max_grad_norm=.inf", "training.trainer.max_grad_norm cannot be changed, as it holds settings of the Trainer"),
        (f"a: {FUSION}.dropout=.nan", "'a': '" + FUSION + ".dropout=.nan' is no finite number, text, true, false, null, list or mapping"),
        ("a: patch.vocabulary=2020-01-01", "'a': patch.vocabulary: Input should be a valid integer, got '2020-01-01'"),
        (f"a: {FUSION}.rope=no", f"'a': {FUSION}.rope: Input should be a valid boolean, got 'no'"),
        ("\u65e5\u672c: patch.lora=null", "the name has no letter from a to z and no digit, which links to its row are made of"),
        ("the demo s patch: patch.lora=null", "there is a row of that name already, but for signs"),
        ("a: training.epochs=9", "training.epochs cannot be changed, as every row is trained for the same number of steps"),
        ("a: training.seed=9", "training.seed cannot be changed, as every row is trained with the same seeds, which --size says"),
        ("a: training.log_every=1", "training.log_every cannot be changed, as no weight depends on it"),
        (f"a: {FUSION}.num_layer=1", f"--variant 'a': unknown key '{FUSION}.num_layer'; did you mean '{FUSION}.num_layers'?"),
        (f"a: {FUSION}.num_layers=many", f"--variant 'a': {FUSION}.num_layers: Input should be a valid integer"),
        ("a: patch.lora.rank={", "--variant 'a': override 'patch.lora.rank={': not a YAML value"),
        ("a: training.train=[fusion.x]", "--variant 'a': training.train: 'fusion.x' is no part of the patch"),
        (f"a: {FUSION}.num_layers=2", f"--variant 'a': it changes nothing, {FUSION}.num_layers=2 is what the demo's patch has already"),
        ("a: training.lora_learning_rate=1.5e-3", "it changes nothing, training.lora_learning_rate=1.5e-3 is what"),
        ("3 Layers: patch.lora=null", "--variant '3 Layers': there is a row of that name already, but for signs; choose another name"),
        ("the  demo's patch: patch.lora=null", "there is a row of that name already"),
        ("a: patch.lora.targets=[far]", "--variant 'a': lora.targets: the language model has no linear layer named ['far']"),
        ("a: patch.side_channels.audio.width=3", "patch.side_channels.audio: its encoder gives features of width 64, but width is 3"),
        ("a: patch.side_channels.audio.encoder.name=text_hash", "its encoder 'text_hash' reads a file for each clip"),
        (f"a: {FUSION}.query_source=learnable {FUSION}.num_frames=8 {FUSION}.tokens_per_frame=4",
         f"{FUSION}: num_frames and tokens_per_frame must be 8 and 9 here, got 8 and 4"),
        ("a: training.lora_learning_rate=-1", "--variant 'a': lora_learning_rate must be a finite number that is not negative"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_row_is_refused(text, message):
    found = refused(text)
    assert message in found and "\n" not in found


def test_a_page_of_all_sections_and_own_rows_names_the_sections():
    """Without them the command would make the rows alone."""
    every = page_module.default_sections("one-seed")
    assert page_module.command([*every, "own"], planned(SLOW), "one-seed") == (
        f"python -m evidence {' '.join(every)} --size one-seed --variant '{SLOW}'"
    )
    assert page_module.command(every, PLAN, "one-seed") == "python -m evidence --size one-seed"
    assert page_module.command(["own"], planned(SLOW), "full") == f"python -m evidence --variant '{SLOW}'"


def test_two_rows_have_two_names():
    assert refused("Mine: patch.lora=null", "mine : patch.lora.rank=4") == (
        "--variant 'mine': there is a row of that name already, but for signs; choose another name"
    )


def test_a_wrong_variant_costs_no_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page_module, "execute_all", lambda *_: pytest.fail("something was made"))
    with pytest.raises(ValueError, match='the section own has no rows yet; --variant "NAME: KEY=VALUE" gives it one'):
        reproduce(tmp_path / "made", ["time", "own"], "short")
    wrong = ["parts", "--size", "short", "--out", str(tmp_path / "made"), "--variant", SLOW, "--variant", "x: y"]
    assert main(wrong) == 2
    assert capsys.readouterr().err == (
        "pave: --variant 'x': expected KEY=VALUE, got 'y'; a value with spaces stands in quotes\n"
    )
    assert not (tmp_path / "made").exists()


def finished(plan, root):
    """Answers and a learning curve of every run; the variants of the plan are right where no other is."""
    own = {variant.name for variant in plan.variants}
    for run in SECTIONS["own"].runs(plan):
        sound = [1, 1, 1, 0] if run.variant in own else [1, 0, 0, 0]
        leave(run, root, {**dict.fromkeys(WORLDS["audio"].own, sound), **{kind: [1, 1, 1, 0] for kind in SILENT}})
        curve = [(step, 0.25 if run.variant in own else 0.5) for step in range(10, 351, 10)]
        atomic_write_json(run.folder(root) / RESULT, {"curve": curve})
        (run.folder(root) / "answers-as_it_is.done").touch()


def test_own_rows_have_a_table_and_charts(tmp_path, drawn):
    plan = planned("quick & early: patch.lora.rank=4", SLOW, plan=replace(PLAN, seeds=(0,)))
    finished(plan, tmp_path)
    text = SECTIONS["own"].write(plan, tmp_path)
    assert "*quick & early* with `patch.lora.rank=4`; *slow LoRA* with `training.lora_learning_rate=1e-4`." in text
    rows = {line.split("</a>")[1].split(" |")[0]: line for line in text.splitlines() if "</a>" in line}
    assert list(rows) == [parts.REFERENCE, "quick & early", "slow LoRA"]
    assert "+50.0 [" in rows["slow LoRA"] and "| 0.25 |" in rows["slow LoRA"] and "+50.0" not in rows[parts.REFERENCE]
    assert "(evidence/curves-own.png)" in text and "(evidence/own.png)" in text
    names = [parts.REFERENCE, "quick & early", "slow LoRA"]
    assert [line.get_label() for line in drawn["Training loss by step: own"].axes[0].lines] == names
    chart = drawn["What each change gains over the demo's patch"].axes[0]
    assert [label.get_text() for label in chart.get_yticklabels()] == names[1:]
    (line,) = SECTIONS["own"].in_short(plan, tmp_path)
    assert line.endswith("[quick & early](#own-quick-early) +50.0, [slow LoRA](#own-slow-lora) +50.0.")
    assert 'id="own-quick-early"' in text and 'id="own-slow-lora"' in text


def test_more_curves_than_colours_are_drawn_in_several_charts(tmp_path, monkeypatch):
    plan = planned(*(f"rank {n}: patch.lora.rank={n}" for n in range(9, 18)), plan=replace(PLAN, seeds=(0,)))
    finished(plan, tmp_path)
    charts, draw = [], parts.curve_chart
    monkeypatch.setattr(parts, "curve_chart", lambda *a, **k: charts.append(draw(*a, **k)) or charts[-1])
    text = SECTIONS["own"].write(plan, tmp_path)
    files = re.findall(r"\(evidence/(.*)\.png\)", text)
    assert files == ["own", "curves-own", "curves-own-2"]
    first, second = ([line.get_label() for line in figure.axes[0].lines] for figure in charts)
    assert first == [parts.REFERENCE, *(f"rank {n}" for n in range(9, 16))]
    assert second == [parts.REFERENCE, "rank 16", "rank 17"]


def test_the_command_on_the_page_makes_the_same_rows_again(tmp_path, monkeypatch):
    made = []

    def finish(runs, data, root, processes):
        made.append([run.folder(root) for run in runs])
        finished(planned(*texts, plan=SHORT), root)

    monkeypatch.setattr(page_module, "execute_all", finish)
    monkeypatch.setattr(page_module, "make_worlds", lambda *_: {})
    monkeypatch.setattr(reuse, "check_world", lambda *_: None)
    texts = [ONE_LAYER, "it's quick: patch.lora.targets='[q_proj, k_proj]' patch.lora.rank=4"]
    page = reproduce(tmp_path, [], "short", variants=texts).read_text(encoding="utf-8")
    command = re.search("^Made by `(.*)` with pave", page, re.MULTILINE)[1]
    words = shlex.split(command)
    assert words == ["python", "-m", "evidence", "--size", "short", "--variant", texts[0], "--variant", texts[1]]
    assert main([*words[3:], "--out", str(tmp_path)]) == 0
    assert made[0] == made[1] and (tmp_path / "evidence.md").read_text(encoding="utf-8") == page


def test_own_rows_stay_on_the_page_until_their_name_is_given_again(tmp_path, monkeypatch, caplog):
    texts = [SLOW]

    def finish(runs, data, root, processes):
        for run in runs:
            if not run.folder(root).exists():
                finished(replace(planned(*texts, plan=SHORT)), root)

    monkeypatch.setattr(page_module, "execute_all", finish)
    monkeypatch.setattr(page_module, "make_worlds", lambda *_: {})
    monkeypatch.setattr(reuse, "check_world", lambda *_: None)
    reproduce(tmp_path, [], "short", variants=texts)
    page = reproduce(tmp_path, ["cost"], "short").read_text()
    assert "## Variants of one's own" in page and "## What it costs" in page and "*slow LoRA* with" in page
    assert f"Made by `python -m evidence cost --size short --variant '{SLOW}'`" in page
    texts = ["Slow lora: training.lora_learning_rate=1e-5", "rank: patch.lora.rank=4"]
    page = reproduce(tmp_path, [], "short", variants=texts).read_text()
    assert "*Slow lora* with `training.lora_learning_rate=1e-5`; *rank* with" in page and "=1e-4" not in page
    assert (
        "the variant 'slow LoRA' was training.lora_learning_rate=1e-4 and is training.lora_learning_rate=1e-5 now"
        in caplog.text
    )
    noted = tmp_path / PAGE_FILE
    noted.write_text(noted.read_text().replace("patch.lora.rank", "patch.lora.rang"))
    page = reproduce(tmp_path, ["cost"], "short").read_text()
    assert "the variant 'rank: patch.lora.rang=4' does not stay on the page: --variant 'rank': unknown key" in caplog.text
    assert "*rank*" not in page and "*Slow lora*" in page
    shutil.rmtree(runs_of(planned("Slow lora: training.lora_learning_rate=1e-5", plan=SHORT), "Slow lora")[0].folder(tmp_path))
    assert "*Slow lora*" not in reproduce(tmp_path, ["cost"], "short").read_text()
    assert "does not stay on the page: some of its runs are not there" in caplog.text
    noted.write_text("[1]")
    with pytest.raises(ValueError, match=r"page\.json"):
        reproduce(tmp_path, ["cost"], "short")
