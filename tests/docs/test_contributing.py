"""CONTRIBUTING.md."""

from __future__ import annotations

import re
import tomllib

from ..support.document import block, codes, page, table
from ..support.service import ROOT


def test_contributing_setup() -> None:
    """Three commands, and what they name is there."""
    lines = block("contributing_setup").splitlines()
    assert lines == [
        "python3 -m venv .venv && . .venv/bin/activate",
        "pip install -r tests/requirements.txt",
        "pytest -m unit",
    ]


def test_contributing_tiers() -> None:
    """Each tier that the page names is a marker that the tests have, and the other way round."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    markers = [line.partition(":")[0] for line in project["tool"]["pytest"]["ini_options"]["markers"]]
    assert [codes(row[0])[0] for row in table(page("CONTRIBUTING.md"), "tier")] == markers
    assert set(re.findall(r"unit|service", block("contributing_tiers"))) <= set(markers)


def test_contributing_checks() -> None:
    """They are those of CI."""
    script = (ROOT / ".ci/run").read_text()
    for command in re.split(r" && |\n", block("contributing_checks").strip()):
        assert command.replace(" docs/_build", "") in script, command


def test_what_is_said_to_live_somewhere_does() -> None:
    for row in table(page("CONTRIBUTING.md"), "to change"):
        for path in codes(row[1]):
            assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), path
