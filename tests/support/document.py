"""The documentation's pages as tests see them: their blocks by name, and ways to run a block."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from .program import program
from .service import ROOT, Process

#: Each page of the documentation, the READMEs included.
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {*(ROOT / "docs/_build").rglob("*")})

#: What names the test that runs the next block: `test_<name>`.
NAME = re.compile(r"<!-- (?:test: )?([\w ]+) -->")

#: Where the documentation says that the service listens, and Ollama.
HERE, OLLAMA = "http://127.0.0.1:8000", "http://127.0.0.1:11434"

#: The passcode of all blocks that have one.
PASSCODE = "a long random text"

#: Seconds that a block may take.
PATIENCE = 20


def page(name: str) -> str:
    """Return the text of a page, such as `docs/quickstart.md`."""
    return (ROOT / name).read_text()


def named_blocks(text: str) -> list[tuple[str, str]]:
    """Return the name and text of each block of a page; the name is empty if it has none.

    Blocks whose language is in braces are Sphinx's, and left out.
    """
    found, lines = [], iter(text.splitlines())
    name = ""
    for line in lines:
        if line.startswith("```"):
            inside = "".join(f"{each}\n" for each in iter(lambda: next(lines), "```"))
            if not line.startswith("```{"):
                found.append((name, inside))
        known = NAME.fullmatch(line)
        name = known[1] if known else ""
    return found


def block(name: str) -> str:
    """Return the text of the block of that name.

    :raises AssertionError: if no page has it, or two have it with different texts.
    """
    found = {text for path in PAGES for known, text in named_blocks(path.read_text()) if known == name}
    assert len(found) == 1, f"{len(found)} texts are named {name!r}"
    return found.pop()


def table(text: str, first: str) -> list[list[str]]:
    """Return the cells of the rows of the table whose first heading is `first`."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def codes(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]*)`", cell)


def clean_environment(**extra: str) -> dict[str, str]:
    """Return our environment, with this Python's programs first, and without what would configure the service."""
    kept = {name: value for name, value in os.environ.items() if not re.match(r"FLASK_|SSE_|HOST$|PORT$", name)}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", **extra}


@contextmanager
def started(text: str, *, cwd: Path = ROOT, **extra: str) -> Iterator[str]:
    """Run a block that starts gunicorn, on a port of the kernel's choice, and return the service's URL.

    :param extra: more of the environment.
    """
    assert text.endswith("gunicorn app:app\n")
    script = re.sub("gunicorn app:app\n$", "exec gunicorn app:app\n", text).replace("SSE_CONFIG=", "export SSE_CONFIG=")
    script = script.replace(".toml exec", ".toml\nexec")
    env = clean_environment(PORT="0", PYTHONPATH=str(ROOT), **extra)
    with Process(["bash", "-euc", script], cwd=cwd, env=env) as process:
        yield process.wait_log(r"Listening at: (http://\S+)", PATIENCE)[1]


def playground(url: str) -> dict[str, Any]:
    """Return what the page gets from the service: `upstreams`, and whether it is `open`."""
    document: dict[str, Any] = httpx.get(
        f"{url}/playground.json", headers={"X-Passcode": PASSCODE}, timeout=PATIENCE
    ).json()
    return document


def site_of(text: str) -> Any:
    """Return the app that a block of Python makes."""
    names: dict[str, Any] = {"__name__": "site_of_the_documentation"}
    exec(text, names)
    return names["app"]


def run(text: str, *, cwd: Path = ROOT, **extra: str) -> str:
    """Return what a block of shell commands prints; it has to succeed and to warn of nothing."""
    program("curl", "curl")
    env = clean_environment(**extra)
    done = subprocess.run(
        ["bash", "-euc", text], cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_python(text: str) -> str:
    """Return what a block of Python prints; a warning is an error."""
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout
