"""`flask sse settings`, and what a wrong start says: one line that says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..support.service import ROOT, Process, environment, start_refused
from ..support.service import run as run_command

CANARY = "canary-secret"


def run(*args: str, env: dict[str, str] | None = None, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flask", "--app", "app", "sse", *args]
    variables = environment(settings, env or {})
    return run_command(command, env=variables)


def test_settings_are_shown_without_secrets() -> None:
    done = run(
        "settings",
        SSE_PASSCODES={"front-end": CANARY},
        SSE_UPSTREAMS={
            "llm": {"url": "http://127.0.0.1:9/v1/", "headers": {"Authorization": CANARY}},
            "pair": {"url": "http://127.0.0.1:9/", "targets": [{"id": "a", "headers": {"X-Key": CANARY}}]},
        },
        SSE_STORAGE_URI=f"redis://user:{CANARY}@127.0.0.1:1/0?password={CANARY}",
        SSE_MAX_STREAMS=7,
    )
    assert (done.returncode, CANARY in done.stdout + done.stderr) == (0, False)
    assert "* SSE_MAX_STREAMS" in done.stdout and "  SSE_MAX_BODY" in done.stdout
    assert '"front-end": "***"' in done.stdout
    assert "redis://***@127.0.0.1:1/0?***" in done.stdout
    assert '"llm": "http://127.0.0.1:9/v1/", "pair": {"a": "http://127.0.0.1:9/"}' in done.stdout
    assert len(done.stdout.splitlines()) >= 20


def test_defaults_are_shown_unmarked() -> None:
    done = run("settings")
    assert done.returncode == 0 and not any(line.startswith("*") for line in done.stdout.splitlines())


FILES = {
    "missing": (None, "cannot be read: No such file or directory"),
    "directory": ("", "cannot be read: Is a directory"),
    "not-toml": ("SSE_MAX_STREAMS = \n", "is not TOML"),
    "value": ("SSE_MAX_STREAMS = -1\n", "SSE_MAX_STREAMS: must be a whole number"),
    "throttle": ('SSE_THROTTLE = "1/s"\n', "SSE_THROTTLE: "),
    "store": ('SSE_STORAGE_URI = "redis+sentinel://127.0.0.1:1"\n', "SSE_STORAGE_URI: must name the primary"),
}


def config(tmp_path: Path, case: str) -> Path:
    text, _ = FILES[case]
    path = tmp_path / "settings.toml"
    if text == "":
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    return path


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_is_one_line_under_gunicorn(case: str, tmp_path: Path) -> None:
    """A wrong setting wrote 60 lines, with the reason in the middle."""
    log = start_refused("--workers", "1", env={"SSE_CONFIG": str(config(tmp_path, case))})
    said = [line for line in log.splitlines() if FILES[case][1] in line]
    assert len(said) == 1, log
    assert "Traceback" not in log
    # The rest are the lines that gunicorn writes at each start and stop.
    assert len(log.splitlines()) <= 10


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_is_one_line_under_flask(case: str, tmp_path: Path) -> None:
    done = run("settings", env={"SSE_CONFIG": str(config(tmp_path, case))})
    assert done.returncode == 1 and FILES[case][1] in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_port_in_use_is_logged_with_its_remedy() -> None:
    with Process([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]) as other:
        port = other.wait_log(r"port (\d+)")[1]
        command = [sys.executable, "-m", "gunicorn", "app:app"]
        with Process(command, env=environment({}, {"PORT": port})) as process:
            process.wait_log(f"Port {port} is in use: stop what listens there, or set PORT or -b to another")


@pytest.mark.parametrize("module", ["app", "gunicorn.conf"])
def test_an_older_python_is_named(module: str) -> None:
    code = f"import sys, runpy; sys.version_info = (3, 10, 1); runpy.run_path('{module}.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("flask-sse-relay needs Python 3.11 or newer, and this is")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("package", "settings", "extra"),
    [
        ("prometheus_client", {"SSE_METRICS": True}, "metrics"),
        ("redis", {"SSE_STORAGE_URI": "redis://127.0.0.1:1"}, "redis"),
        ("redis", {"SSE_STORAGE_URI": "valkey://127.0.0.1:1"}, "redis"),
    ],
)
def test_a_missing_package_is_named(package: str, settings: dict[str, Any], extra: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(f"import sys\nsys.modules[{package!r}] = None\nfrom app import app\n")
    command = [sys.executable, "-m", "flask", "--app", "shop", "sse", "settings"]
    variables = environment(settings, {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"pip install 'flask-sse-relay[{extra}]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
