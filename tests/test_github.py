"""The workflow and the hooks: their syntax, and that they do what the documentation says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml

from .support.service import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
CHECK = [sys.executable, "-m", "check_jsonschema"]


def jobs() -> dict[str, Any]:
    return {name: job for path in WORKFLOWS for name, job in yaml.safe_load(path.read_text())["jobs"].items()}


def commands() -> list[str]:
    """Return all lines that a step runs."""
    return [line for job in jobs().values() for step in job["steps"] for line in step.get("run", "").splitlines()]


def check(*args: str) -> None:
    done = subprocess.run([*CHECK, *args], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_workflows_have_the_syntax_of_github() -> None:
    """By the schema that comes with the checker, so nothing is fetched."""
    assert WORKFLOWS
    for schema in ("vendor.github-workflows", "custom.github-workflows-require-timeout"):
        check("--builtin-schema", schema, *map(str, WORKFLOWS))


def test_the_checker_finds_a_wrong_workflow(tmp_path: Any) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    with pytest.raises(AssertionError):
        check("--builtin-schema", "vendor.github-workflows", str(wrong))


def test_each_step_uses_or_runs_something() -> None:
    """Actions are named with the version of their interface."""
    for job in jobs().values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            assert "uses" not in step or re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step["uses"]), step


def test_expressions_name_what_there_is() -> None:
    """`${{ matrix.python }}` needs a `python` in the matrix; a misspelt one would be an empty string."""
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            matrix = job.get("strategy", {}).get("matrix", {})
            for found in re.findall(r"matrix\.(\w+)", yaml.safe_dump(job)):
                assert found in matrix, f"{name}: matrix.{found}"
    known = {"github.workflow", "github.ref", "github.event_name"}
    assert set(re.findall(r"github\.\w+", "".join(path.read_text() for path in WORKFLOWS))) <= known


def test_each_supported_python_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classified = {text.rpartition(" ")[2] for text in project["classifiers"] if re.search(r":: 3\.\d+$", text)}
    assert set(jobs()["tests"]["strategy"]["matrix"]["python"]) == classified


def test_lowest_newest_and_prereleases_are_tested() -> None:
    included = {each["versions"] for each in jobs()["tests"]["strategy"]["matrix"]["include"]}
    assert included == {"lowest", "newest"}
    assert any("--resolution lowest-direct" in line for line in commands())
    weekly = yaml.safe_load(WORKFLOWS[0].read_text())[True]["schedule"][0]["cron"]  # YAML 1.1 reads `on` as true
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", weekly)
    assert jobs()["prerelease"]["if"] == "github.event_name == 'schedule'"


@pytest.mark.parametrize("line", commands())
def test_what_is_run_is_there(line: str) -> None:
    """Files that a command names exist, and the shell can read the line."""
    words = shlex.split(line)
    for word in words:
        if word.startswith(("tests/", "docs/", ".ci/")):
            assert (ROOT / word).exists(), line
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    if words[0] == "pytest":
        named = set(words[words.index("-m") + 1].split()) - {"or"}
        assert named <= {marker.partition(":")[0] for marker in markers}


def test_hooks_have_the_syntax_of_pre_commit() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {"ruff", "ruff-format", "mypy"} <= {hook["id"] for hook in hooks}
    for hook in hooks:
        assert hook["language"] == "system" and set(hook) >= {"id", "name", "entry"}
        for word in shlex.split(hook["entry"]):
            assert not word.startswith("tests/") or (ROOT / word).exists(), word
