"""The code and its documentation are in plain English: software has no voice, and every subject has a name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support.service import ROOT

#: A pattern, and what to write instead.
WORDS = {
    r"whoever|whomever|who asks": "name the client, the upstream, the worker, the caller",
    r"nobody|somebody": "name the client, or write what does not happen",
    r"of (ours|theirs|yours)": "name the owner: the site's, the upstream's, this project's",
    r"let(s|ting)? go|(gives?|given|gave|giving) back|takes? along": "close, release",
    r"tells?|told|hears?|heard": "software returns, logs, sends, receives",
    r"farewell|last words": "error event",
    r"mend(s|ed|ing)?": "fix",
    r"household": "network prefix",
    r"befalls?|befallen": "happens",
    r"(is|are) to be": "must be, or the verb itself",
}

#: Has the table of these words; has these patterns; other people's code.
EXEMPT = {ROOT / "docs/style.md", Path(__file__), ROOT / "sse/static/marked.js"}
#: A quotation of WHATWG HTML.
QUOTED = re.compile(r'"told to stop reconnecting')


def texts() -> Iterator[Path]:
    for folder, kinds in (
        (".", ".py .md"),
        ("sse", ".py .js .ts .html .css"),
        ("tests", ".py .js .mjs"),
        ("docs", ".md"),
        ("npm", ".md"),
        ("deploy", ".conf .service"),
    ):
        paths = (ROOT / folder).rglob("*") if folder != "." else ROOT.iterdir()
        yield from (path for path in paths if path.suffix in kinds.split() and path not in EXEMPT)


@pytest.mark.parametrize("pattern", WORDS)
def test_the_words_are_plain(pattern: str) -> None:
    word = re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(texts())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word.search(line) and not QUOTED.search(line)
    ]
    assert not found, "\n".join([f"write instead: {WORDS[pattern]}", *found])
