"""Each block of the documentation has a test, each link a target, and what is made from the code is whole."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import sse
from docs.generated import END_REASONS, PARTS, endpoints, metrics, openapi, refusals, settings
from sse.errors import REFUSALS, ClientGone
from sse.relay.stream.end import EndReason
from sse.settings import PREFIX, Settings

from ..support.document import PAGES, block, codes, named_blocks, page, table
from ..support.service import ROOT

NAMES = sorted({name for path in PAGES for name, _ in named_blocks(path.read_text())})


@cache
def functions() -> set[str]:
    """Return the names of all test functions, of whatever file."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", NAMES)
def test_each_block_has_a_test(name: str) -> None:
    """A block without a name, or with one that no test has, is one that nothing has run."""
    assert name, [text for path in PAGES for known, text in named_blocks(path.read_text()) if not known]
    assert f"test_{name.replace(' ', '_')}" in functions()
    assert block(name)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Sphinx checks those of docs/; GitHub shows the others."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match("https?://", target):
            assert (path.parent / target).exists(), target


def test_the_readmes_are_short_and_have_the_same_blocks() -> None:
    english, chinese = page("README.md"), page("README.zh-CN.md")
    assert max(len(english.splitlines()), len(chinese.splitlines())) <= 150
    assert named_blocks(english) == named_blocks(chinese)


def test_each_page_is_in_the_index() -> None:
    entries = re.findall(r"^([a-z/-]+)$", page("docs/index.md") + page("docs/decisions/index.md"), re.MULTILINE)
    pages = {path.stem for path in PAGES if path.is_relative_to(ROOT / "docs")}
    assert {entry.rpartition("/")[2] for entry in entries} == pages


def test_every_setting_is_documented() -> None:
    listed = {codes(row[0])[0] for row in table(settings(), "key")}
    assert listed == {PREFIX + name.upper() for name in Settings.__dataclass_fields__}
    assert all(row[2] for row in table(settings(), "key"))


def test_the_default_of_a_setting_is_shown() -> None:
    shown = {codes(row[0])[0]: codes(row[1])[0] for row in table(settings(), "key")}
    assert (shown["SSE_THROTTLE"], shown["SSE_CONNECT_TIMEOUT"]) == ('"60 per 10 second"', "5")
    assert (shown["SSE_CORS_ORIGINS"], shown["SSE_PASSCODES"]) == ('["*"]', "{}")


def test_every_refusal_is_documented() -> None:
    listed = {(row[0], codes(row[1])[0]) for row in table(refusals(), "status")}
    assert listed == {(str(refusal.status), refusal.code) for refusal in REFUSALS if refusal is not ClientGone}


def test_every_end_reason_is_documented() -> None:
    assert set(END_REASONS) == set(EndReason)


def test_every_metric_is_documented() -> None:
    rows = {codes(row[0])[0]: codes(row[2]) for row in table(metrics(), "metric")}
    assert rows["sse_requests_total"] == ["upstream", "status", "code"]
    assert rows["sse_first_byte_seconds"] == ["upstream"]
    assert len(rows) >= 8 and all(row[3] for row in table(metrics(), "metric"))


def test_every_endpoint_is_documented() -> None:
    text = endpoints()
    for path, item in openapi()["paths"].items():
        found = re.search(rf"^### `(.*) {re.escape(path.translate({123: '<', 125: '>'}))}`$", text, re.MULTILINE)
        assert found, path
        assert set(found[1].lower().split(" / ")) == set(item) - {"parameters"}


def test_every_public_name_is_documented() -> None:
    named = set(re.findall(r"^\.\. auto\w+:: sse\.(\w+)$", page("docs/api.md"), re.MULTILINE))
    assert named >= set(sse.__all__)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_on_a_page(part: str) -> None:
    assert sum(f"```{{generated}} {part}\n" in path.read_text() for path in PAGES) == 1
