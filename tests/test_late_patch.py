"""A site that is imported before gevent patches: what was taken by name then would stay the blocking one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .support.service import ROOT, RawClient
from .support.wsgi_server import start_server

#: What gevent replaces, by module; modules that it replaces whole have no names here.
PATCHED = {
    "queue": {"SimpleQueue", "Queue", "LifoQueue", "PriorityQueue"},
    "time": {"sleep"},
    "threading": {"Thread", "Lock", "RLock", "Condition", "Event", "Semaphore", "Timer", "local", "get_ident"},
    "_thread": {"allocate_lock", "start_new_thread", "get_ident"},
    "socket": {"socket", "create_connection", "create_server", "getaddrinfo", "gethostbyname", "socketpair"},
    "ssl": {"SSLSocket", "SSLContext", "create_default_context", "wrap_socket"},
    "select": {"select", "poll", "epoll"},
    "selectors": {"DefaultSelector"},
    "subprocess": {"Popen", "run", "call", "check_output", "check_call"},
    "os": {"fork", "forkpty", "waitpid"},
    "signal": {"signal", "getsignal"},
    "concurrent.futures": {"ThreadPoolExecutor"},
}


@pytest.mark.parametrize("path", sorted((ROOT / "sse").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_takes_by_name_what_gevent_replaces(path: Path) -> None:
    taken = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 0
        for alias in node.names
        if alias.name in PATCHED.get(node.module or "", ())
    }
    assert not taken


@pytest.fixture(scope="module", params=["gunicorn-preload", "uwsgi-gevent"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        process, port = start_server(request.param, "tests.apps.bodies:app", directory, {"FLASK_SSE_HEARTBEAT": "0.1"})
        stack.enter_context(process)
        yield port


@pytest.mark.parametrize("query", ["", "?heartbeat=0"], ids=["heartbeat", "no-heartbeat"])
def test_an_own_stream_delays_no_other(port: int, query: str) -> None:
    """`queue.SimpleQueue`, taken by name, blocked the whole worker."""
    with RawClient("127.0.0.1", port) as stream, RawClient("127.0.0.1", port) as other:
        stream.request("GET", f"/silent{query}")
        stream.read_until(b"data: one\n\n")
        other.request("GET", "/healthz")
        assert other.read_body() == b"ok"
        # It has been silent since.
        assert b"two" not in stream.body


def test_the_demonstration_upstream_is_started_once_by_many(port: int) -> None:
    """Its lock is as old as the app, and blocks the whole worker while a greenlet that holds it waits."""
    body = b'{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient("127.0.0.1", port)) for _ in range(8)]
        for client in clients:
            client.request("POST", "/upstream/demo/v1/chat/completions", {"Content-Type": "application/json"}, body)
        for client in clients:
            assert client.read_head().status == 200
