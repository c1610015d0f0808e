"""The scripts under Node's own test runner: parser, connection, types, and the dialects that the page reads."""

from __future__ import annotations

import subprocess

import pytest

from .support.service import ROOT


@pytest.mark.parametrize("name", ["sse.test.js", "resume.test.js", "dialect.test.js", "types.test.js"])
def test_sse_js(node: str, name: str) -> None:
    done = subprocess.run([node, "--test", str(ROOT / "tests/js" / name)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    # A runner that found nothing to run is content as well.
    assert "# tests 0" not in done.stdout
