"""What README and docs say is true of the code: links, commands, recipes, code blocks, tables, quoted messages."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer.main
import yaml

from evidence.__main__ import app as evidence_app
from evidence.contents import SECTIONS as SECTION_NAMES
from evidence.page import SIZES
from pave.cli import main
from pave.cli.app import VERBS, app
from pave.config import LoraSettings, PatchConfig
from pave.data.samples import Sample
from pave.side_channels import ENCODERS, build_encoder
from pave.training import DataConfig, TrainingConfig
from pave.training.recipe import read_recipe
from pave.training.sampler import Stage

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests" / "golden" / "README.md"])
RECIPES = sorted(ROOT.glob("recipes/*.yaml"))
PARTS = sorted(ROOT.glob("recipes/*/*.yaml"))
SCRIPTS = sorted([*ROOT.glob("examples/*.py"), *ROOT.glob("docs/*.py")])
EVIDENCE = sorted(ROOT.glob("evidence/**/*.py"))
SECTIONS = {"data": DataConfig, "training": TrainingConfig}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def load_script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(path: Path, *languages: str) -> list[str]:
    return [body for language, body in BLOCK.findall(path.read_text(encoding="utf-8")) if language in languages]


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return BLOCK.sub("", path.read_text(encoding="utf-8"))


# --- links


def anchors(path: Path) -> set[str]:
    """Anchors as GitHub makes them of titles (lower case, punctuation dropped, a hyphen for each blank), and those that are written."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles} | set(
        re.findall(r'<a id="([^"]+)"></a>', prose(path))
    )


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(path))


def broken_links(path: Path) -> list[str]:
    broken = []
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title: here\n[1](#a-title-here) [2](page.md) [3](#other) [4](gone.md) [5](https://x.org)\n")
    assert broken_links(page) == ["#other", "gone.md"]


def test_every_page_can_be_reached_from_the_readme():
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page) if not re.match(r"[a-z]+:", link)}
        todo += [target for target in targets - seen if target.suffix == ".md" and target.is_file()]
    assert set(ROOT.glob("docs/*.md")) <= seen


# --- commands


def commands(text: str) -> list[list[str]]:
    """The ``pave`` commands of a shell block, as words. A line may have a prompt, a comment, or several commands."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            if command[:1] in (["torchrun"], ["accelerate"]) and "-m" in command:
                command = command[command.index("-m") + 1 :]
            if command[:1] in (["pave"], ["pave.cli"]):
                found.append(command[1:])
    return found


def quoted_commands(text: str) -> list[list[str]]:
    """Commands in running text between back quotes."""
    return [shlex.split(words)[1:] for words in re.findall(r"`(pave [^`]+)`", text)]


def documented_commands() -> list[tuple[str, list[str], bool]]:
    """(where, words, complete) for every command that a document, recipe or example shows."""
    found = []
    for path in (path for path in DOCUMENTS if path.name != "CHANGELOG.md"):  # which tells of verbs that are gone, too
        found += [(name_of(path), words, True) for block in blocks(path, "sh", "console") for words in commands(block)]
        found += [(name_of(path), words, False) for words in quoted_commands(prose(path))]
    for path in (*RECIPES, *PARTS):
        comments = re.sub(r"^#", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found += [
            (name_of(path), words, True)
            for line in re.findall(r"^ +(?:pave|torchrun|accelerate) .*$", comments, re.M)
            for words in commands(line.strip())
        ]
    for path in SCRIPTS:
        found += [
            (name_of(path), words, False) for words in quoted_commands(ast.get_docstring(ast.parse(path.read_text())) or "")
        ]
    return found


def evidence_commands() -> list[list[str]]:
    """The words behind ``python -m evidence`` in documents, recipes and examples, in blocks and in running text."""
    texts = [path.read_text(encoding="utf-8") for path in (*DOCUMENTS, *RECIPES)]
    texts += [ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in SCRIPTS]
    text = "\n".join(texts).replace("\\\n", " ")
    found = re.findall(r"python -m evidence(?![.\w])([^`\n]*)", text)
    return [shlex.split(words, comments=True) for words in dict.fromkeys(found)]


@pytest.mark.parametrize("words", evidence_commands(), ids=" ".join)
def test_commands_of_the_evidence_parse(words):
    with typer.main.get_command(evidence_app).make_context("evidence", list(words)) as context:
        assert set(context.params["sections"] or ()) <= set(SECTION_NAMES)
        assert context.params["size"] in SIZES


def parse(words: list[str]) -> None:
    """Raise if the command line does not take these words."""
    group = typer.main.get_command(app)
    with group.make_context("pave", ["--debug"]) as context:
        verb, command, rest = group.resolve_command(context, [word for word in words if word != "--debug"])
        with command.make_context(verb, rest, parent=context) as inner:
            if hasattr(command, "resolve_command"):  # a verb of verbs
                name, command, rest = command.resolve_command(inner, rest)
                with command.make_context(name, rest, parent=inner):
                    pass


@pytest.mark.parametrize(
    ("where", "words", "complete"),
    documented_commands(),
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_commands_parse(where, words, complete):
    inner = getattr(typer.main.get_command(app).commands.get(words[0]), "commands", {})
    if inner and len(words) == 2 and not complete:
        assert words[1] in inner, where
    elif not complete and ("..." in words or len(words) == 1):
        assert words[0] in VERBS or words[0].startswith("-"), where
    else:
        parse(words)


def test_every_verb_is_shown():
    shown = {words[0] for _, words, _ in documented_commands()}
    assert set(VERBS) <= shown


@pytest.mark.parametrize(
    "line",
    [
        "pave data convert x --no-such-option",
        "pave shwo",
        "pave ask video.mp4",
        "pave eval x.jsonl --no-such-option",
        "pave show --frames many",
    ],
)
def test_a_wrong_command_is_found(line):
    (words,) = commands(line)
    with pytest.raises(Exception, match=r"(?i)no such|missing|valid integer"):
        parse(words)


def test_commands_are_found_in_all_their_forms():
    text = "make demo\n$ pave show x\npave init a && pave train a/r.yaml \\\n  b=1   # and so on\ntorchrun --n 2 -m pave.cli eval x\n"
    assert commands(text) == [["show", "x"], ["init", "a"], ["train", "a/r.yaml", "b=1"], ["eval", "x"]]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_make_targets_exist(path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`)make (?:[A-Z]+=\S+ )*([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= targets


# --- recipes


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder in which ``pave init my-patch`` ran."""
    folder = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["init", "my-patch"]) == 0
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_read_strictly_and_their_encoders_exist(path):
    recipe = read_recipe(path)
    for channel in recipe.patch.side_channels.values():
        assert channel.encoder.name in ENCODERS
        if "model" not in str(channel.encoder.to_dict()).replace(
            "'model': None", ""
        ):  # else weights would have to be downloaded
            assert build_encoder(channel.encoder).width == channel.width


def test_overrides_of_documented_commands_fit_their_recipes(started, monkeypatch):
    monkeypatch.chdir(ROOT)  # where the files that are laid over a recipe are named from
    train = typer.main.get_command(app).commands["train"]
    checked = 0
    for _where, words, complete in documented_commands():
        if words[0] != "train" or not complete:
            continue
        with train.make_context("train", words[1:]) as context:
            file, overrides = context.params["recipe"], context.params["overrides"] or []
        recipe = next((path for path in (ROOT / file, started / file) if path.is_file()), started / "my-patch" / "recipe.yaml")
        read_recipe(recipe, overrides)
        checked += bool(overrides)
    assert checked >= 30


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_yaml_blocks_are_parts_of_a_recipe(path):
    for block in blocks(path, "yaml"):
        values = yaml.safe_load(block)
        (key,) = set(values) - {"encoders"}
        if key in ("patch", "side_channels"):
            values = values.get("patch", values)
            patch = PatchConfig.from_dict(values, where=name_of(path))
            for channel in patch.side_channels.values():
                if channel.encoder.model is None and ":" not in channel.encoder.name:  # a class of the reader's own
                    assert build_encoder(channel.encoder).width == channel.width
        elif key == "lora":
            LoraSettings.from_dict(values[key], where=name_of(path))
        elif key in SECTIONS:
            assert SECTIONS[key].from_dict(values[key], where=name_of(path))
        else:
            assert key == "stages", f"{name_of(path)}: a block of a kind that this test does not know"
            assert [Stage.from_dict(stage) for stage in values[key]]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_json_blocks_are_samples(path):
    for block in blocks(path, "json"):
        for line in block.splitlines():
            assert Sample(**yaml.safe_load(line)).turns


# --- code


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path, "python")], ids=name_of)
def test_python_blocks_compile_and_import(path):
    for block in blocks(path, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.slow
def test_python_of_the_quickstart_runs(started, monkeypatch, capsys):
    monkeypatch.chdir(started)
    few = "data.stages=[{steps: 2, weights: {sound: 1}}]"
    assert main(["train", "my-patch/recipe.yaml", few, "training.batch_size=2", "training.save_every=null"]) == 0
    names: dict = {}
    for block in blocks(ROOT / "docs" / "quickstart.md", "python"):
        exec(compile(block, "docs/quickstart.md", "exec"), names)
    assert "SideTokens(2 videos" in capsys.readouterr().out


@pytest.mark.slow
def test_python_of_the_readme_runs(started, monkeypatch, capsys):
    monkeypatch.chdir(started)
    if not Path("my-patch/run/patch").exists():
        few = "data.stages=[{steps: 2, weights: {sound: 1}}]"
        assert main(["train", "my-patch/recipe.yaml", few, "training.batch_size=2", "training.save_every=null"]) == 0
    for block in blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


# --- facts that documents repeat


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in DOCUMENTS
        if "<!-- fields" in p.read_text() or "<!-- layers" in p.read_text() or "<!-- families" in p.read_text()
    ],
    ids=name_of,
)
def test_tables_made_from_the_code_are_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert load_script(ROOT / "docs" / "make_tables.py").refreshed(text) == text, "run: python docs/make_tables.py"


@pytest.mark.slow
def test_the_costs_in_the_readme_are_those_of_pave_show():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- costs -->" in text and "$ pave show" in text
    assert load_script(ROOT / "docs" / "make_tables.py").refreshed(text) == text, "run: python docs/make_tables.py"


def test_every_section_of_a_recipe_has_a_table():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(#(\w+)\)", re.sub(r"(?s)^.*## Every field", "", text)))
    titles = {title.lower() for title in re.findall(r"^### (\w+)$", text, re.MULTILINE)}
    assert named <= titles and len(titles) >= 11


def test_the_table_of_samples_has_every_field():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- sample fields -->\n(.*?)<!-- /sample fields -->", text, re.DOTALL)[1]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {field.name for field in dataclasses.fields(Sample)}


def test_the_table_of_defects_is_that_of_the_doctor():
    from pave.data.doctor import DEFECTS

    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- defects -->\n(.*?)<!-- /defects -->", text, re.DOTALL)[1].splitlines()[2:]
    assert table == [f"| `{code}` | {d.severity} | {d.what} | {d.remedy} |" for code, d in DEFECTS.items()]


def test_the_table_of_encoders_has_every_encoder():
    text = (ROOT / "docs" / "side_channels.md").read_text(encoding="utf-8")
    table = text.split("## Encoders that exist")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(ENCODERS)
    log_mel = build_encoder(PatchConfig.compact(audio=64).side_channels["audio"].encoder)
    assert "| `log_mel` | nothing | 4 | 64 | 1 |" in text
    assert (log_mel.spec().settings["step_seconds"], log_mel.width, log_mel.tokens_per_step) == (0.25, 64, 1)


def test_every_benchmark_is_described_with_its_counts_scorers_and_prompt():
    from pave.evaluation.benchmarks import BENCHMARKS
    from pave.evaluation.benchmarks.choices import mvbench_prompt, video_mme_prompt
    from pave.evaluation.benchmarks.ego_exo4d import QUESTION

    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for benchmark in BENCHMARKS.values():
        section = sections[benchmark.title]
        assert f"| name | `{benchmark.name}` |" in section and f"pave data convert {benchmark.name} " in section
        assert all(f"`{scorer.version}`" in section for scorer in benchmark.scorers)
        assert all(f"{n:,}" in section for releases in benchmark.totals.values() for n in releases.values())
    options = ("QUESTION", ["FIRST", "SECOND", "THIRD", "FOURTH"])
    prompts = {"video_mme": video_mme_prompt(*options), "mvbench": mvbench_prompt(*options), "ego_exo4d": QUESTION}
    found = dict(re.findall(r"<!-- prompt (\w+) -->\n```text\n(.*?)\n```\n<!-- /prompt -->", text, re.DOTALL))
    assert {name: found.get(name) for name in prompts} == prompts


def test_every_family_and_every_reason_against_one_is_in_the_docs():
    from pave.video_llms import NOT_SUPPORTED, supported_types

    text = (ROOT / "docs" / "video_llms.md").read_text(encoding="utf-8")
    for model_type in (*supported_types(), *NOT_SUPPORTED):
        assert f"`{model_type}`" in text
    for reason in NOT_SUPPORTED.values():
        assert reason in text


def test_every_base_with_video_features_is_supported_or_said_not_to_be():
    import transformers

    from pave.video_llms.verified import transformers_version

    if transformers.__version__ != transformers_version():
        pytest.skip(f"the documents are about transformers {transformers_version()}")
    text = (ROOT / "docs" / "video_llms.md").read_text(encoding="utf-8")
    folder = Path(transformers.__file__).parent / "models"
    found = [p.parent.name for p in folder.glob("*/modeling_*.py") if "def get_video_features" in p.read_text(encoding="utf-8")]
    assert len(found) > 30
    assert [name for name in found if f"`{name}`" not in text and f"`{name}_thinker`" not in text] == []


# --- messages


@cache
def messages() -> list[str]:
    """Every text in the library and the Makefile, with an ellipsis where something is filled in."""
    found = [(ROOT / "Makefile").read_text()]
    for path in (*ROOT.glob("src/pave/**/*.py"), *EVIDENCE):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%\.?\d*[sdfr]", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    return found


def quoted_messages() -> list[str]:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return [title for title in re.findall(r"^### (.+)$", text, re.MULTILINE) if "…" in title or title[0].islower()]


@pytest.mark.parametrize("message", quoted_messages())
def test_quoted_messages_are_those_of_the_library(message):
    assert any(message in text for text in messages()), "no message of the library reads like this"


# --- words that do not belong

FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:work|root|tmp|home|mnt|Users)/",
    "something left to do": r"\b(?:TODO|FIXME|XXX|TBD)\b",
    "an address of a package index": r"(?i)pypi\.org|pythonhosted",
    "marketing": r"(?i)\b(?:revolutionary|seamless(?:ly)?|blazing|cutting-edge|effortless(?:ly)?|state-of-the-art|powerful)\b",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_words_that_do_not_belong(what):
    found = []
    for path in [
        *DOCUMENTS,
        *RECIPES,
        *PARTS,
        *SCRIPTS,
        *EVIDENCE,
        ROOT / "CITATION.cff",
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
    ]:
        found += [f"{name_of(path)}: {match[0]}" for match in re.finditer(FORBIDDEN[what], path.read_text(encoding="utf-8"))]
    assert found == []


def test_the_citation_names_the_paper_and_this_version():
    values = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = values["references"]
    assert paper["title"].startswith("PAVE: ") and paper["year"] == 2025 and len(paper["authors"]) == 5
    assert f'version = "{values["version"]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_scripts_of_the_docs_are_not_part_of_the_package():
    done = subprocess.run([sys.executable, "-c", "import pave.docs"], capture_output=True, text=True)
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr
