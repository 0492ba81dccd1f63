"""The files around the code: workflows, forms, hooks. What they call exists."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"))


def commands(workflow):
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflows_call_what_exists_with_no_more_rights_than_needed(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(workflow):
        if command.startswith("make "):
            assert command.split()[1] in targets
        elif command.startswith("bash "):
            assert (ROOT / command.split()[1]).is_file()


def test_the_workflow_runs_every_python_that_is_supported():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    jobs = workflow["jobs"].values()
    run = {v for job in jobs for v in job.get("strategy", {}).get("matrix", {}).get("python", [])}
    run |= {
        step["with"]["python-version"] for job in jobs for step in job["steps"] if "${{" not in str(step.get("with", "${{"))
    }
    project = (ROOT / "pyproject.toml").read_text()
    low, high = map(int, re.search(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"$', project, re.MULTILINE).groups())
    assert run == {f"3.{minor}" for minor in range(low, high)}


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_forms_read(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        return
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"])


def test_hooks_are_the_checks_of_the_project():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == ["ruff check", "ruff format", "lint-imports"]
