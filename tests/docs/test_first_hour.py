"""What goes wrong in the first hour is answered with what to do, in one line and without a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..support.document import PATIENCE, clean_environment
from ..support.service import ROOT, Service, call, forward


def run_python(*args: str, **env: str) -> tuple[int, str]:
    """Return the exit status, and what is written."""
    command = [sys.executable, *args]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(PORT="0", **env), capture_output=True, text=True, timeout=PATIENCE
    )
    return done.returncode, done.stdout + done.stderr


def test_running_the_app_says_how_to_serve_it() -> None:
    status, text = run_python("app.py")
    assert status == 1 and "gunicorn app:app" in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("FLASK_SSE_THROTTLE", "60 per s", "'60 per s' is no limit, such as \"60 per 10 second\""),
        ("FLASK_SSE_UPSTREAMS", '{"a": "https://a.example/"', "SSE_UPSTREAMS"),
        ("FLASK_SSE_UPSTREAM", "{}", "SSE_UPSTREAMS"),
        ("SSE_CONFIG", "/nowhere.toml", "/nowhere.toml"),
    ],
)
def test_a_wrong_setting_is_one_line(key: str, value: str, remedy: str) -> None:
    status, text = run_python("-m", "gunicorn", "app:app", **{key: value})
    assert status != 0 and remedy in text and "Traceback" not in text
    assert len(text.splitlines()) < 12


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("https://api.example.com/v1?key=canary", "no upstream covers https://api.example.com"),
        ("http://127.0.0.1:11434/api/chat", "no upstream covers http://127.0.0.1:11434"),
        ("ftp://a.example/", "the URL is one that is never called"),
    ],
)
def test_a_refused_target_is_named_in_the_log_alone(shared_service: Service, target: str, cause: str) -> None:
    """The client gets no reason, because that would show a network; the operator does, without path and query."""
    start = len(shared_service.log())
    with forward(shared_service, target, http_fields={"X-Request-Id": "first-hour"}) as client:
        body = client.read_body()
    assert b"target_not_allowed" in body and cause.encode() not in body
    line = shared_service.wait_log("^.*refused status=403 .*request_id=first-hour$", start=start)[0]
    assert f'cause="{cause}"' in line and "canary" not in line


def test_a_missing_upstream_is_distinct_from_a_missing_page(shared_service: Service) -> None:
    with call(shared_service, "GET", "/upstream/nowhere/v1/models") as client:
        assert client.json()["code"] == "not_found"
