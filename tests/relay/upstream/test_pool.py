"""Which connections are kept, for how long, and what a context trusts."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from sse.protocol.target.parse import parse_target
from sse.relay.exchange import Side, Stage
from sse.relay.upstream import pool as pool_module
from sse.relay.upstream.connection import Connection
from sse.relay.upstream.dial import Dialer
from sse.relay.upstream.pool import IDLE_LIMIT, Pool, tls_context

from ...support.service import ROOT
from ...support.upstream import PATIENCE, Upstream, respond


class Clock:
    """Stands for time.monotonic(), and can be set."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pool_module, "time", clock)
    return clock


@pytest.fixture
def pool() -> Pool:
    dialer = Dialer(allows=lambda host, address: True, lists=lambda host: True, timeout=PATIENCE)
    return Pool(dialer, tls_context(), size=2)


def connect(pool: Pool, upstream: Upstream) -> Connection:
    return pool.connect(parse_target(upstream.url), Side(Stage.OPEN))


@pytest.mark.parametrize(("idle", "is_kept"), [(IDLE_LIMIT - 1, True), (IDLE_LIMIT + 1, False)])
def test_a_connection_is_used_again_within_its_idle_limit(
    pool: Pool, clock: Clock, upstream: Callable[..., Upstream], idle: float, is_kept: bool
) -> None:
    """NATs and load balancers forget an idle connection without a word: the next call waited for its time-out."""
    server = upstream(lambda connection: connection.wait_closed())
    connection = connect(pool, server)
    pool.release(connection)
    clock.ahead = idle
    kept = pool.acquire(parse_target(server.url))
    assert kept is (connection if is_kept else None)
    if kept is None:
        server.wait_connection().wait_closed()
    else:
        assert kept.is_reused
        kept.transport.close()


def test_the_connection_that_was_used_last_is_taken(pool: Pool, upstream: Callable[..., Upstream]) -> None:
    server = upstream(lambda connection: connection.wait_closed())
    first, second = connect(pool, server), connect(pool, server)
    pool.release(first)
    pool.release(second)
    for expected in (second, first):
        taken = pool.acquire(parse_target(server.url))
        assert taken is expected
        taken.transport.close()
    assert pool.acquire(parse_target(server.url)) is None


def test_no_more_connections_are_kept_than_the_pool_holds(pool: Pool, upstream: Callable[..., Upstream]) -> None:
    servers = [upstream(lambda connection: connection.wait_closed()) for _ in range(3)]
    for server in servers:
        pool.release(connect(pool, server))
    servers[2].wait_connection().wait_closed()
    assert pool.acquire(parse_target(servers[2].url)) is None


def test_idle_connections_to_forgotten_upstreams_are_closed(
    pool: Pool, clock: Clock, upstream: Callable[..., Upstream]
) -> None:
    """They would stay open until the same upstream is called again."""
    forgotten, used = (upstream(lambda connection: connection.wait_closed()) for _ in range(2))
    pool.release(connect(pool, forgotten))
    clock.ahead = IDLE_LIMIT + 1
    pool.release(connect(pool, used))
    forgotten.wait_connection().wait_closed()


def test_a_connection_that_the_upstream_closed_is_not_used(pool: Pool, upstream: Callable[..., Upstream]) -> None:
    server = upstream(lambda connection: connection.close())
    connection = connect(pool, server)
    server.wait_connection().closed.wait(PATIENCE)
    connection.transport.wait(PATIENCE)
    pool.release(connection)
    assert pool.acquire(parse_target(server.url)) is None


def test_debians_tls_context_notices_a_truncated_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11.2 sets the option: a cut body looked complete."""
    create = ssl.create_default_context

    def create_like_debian(**options: Any) -> ssl.SSLContext:
        context = create(**options)
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
        return context

    monkeypatch.setattr(ssl, "create_default_context", create_like_debian)
    assert not tls_context().options & ssl.OP_IGNORE_UNEXPECTED_EOF


def test_a_context_verifies_by_alternative_names_alone() -> None:
    context = tls_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert not context.hostname_checks_common_name


#: Makes an app, lets it call the upstream, and waits until nothing of it is left. In a process of its own, because
#: other tests leave an event loop that does not run any more, and what waits in it.
DISCARD = """
import gc, os, sys, time, weakref
from flask import Flask
from sse import SSE

def sockets():
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).startswith("socket:") for link in links if os.path.islink(link))

def call():
    app = Flask(__name__)
    app.config["SSE_UPSTREAMS"] = {"test": sys.argv[1]}
    SSE(app)
    assert app.test_client().get("/upstream/test/").data == b"data: a\\n\\n"
    assert sockets() == before + 1, "the connection is not kept"
    return weakref.ref(app)

before = sockets()
app, deadline = call(), time.monotonic() + 10
while app() is not None or sockets() > before:
    assert time.monotonic() < deadline, (app(), sockets(), before)
    # A thread that looks at the clocks may hold the app for a moment.
    gc.collect()
    time.sleep(0.01)
"""


def test_an_app_that_is_discarded_closes_its_connections(upstream: Callable[..., Upstream]) -> None:
    """A site's tests make many apps, and with `-W error` a socket that is still open fails one of them."""
    server = upstream(respond(b"data: a\n\n"))
    command = [sys.executable, "-W", "error", "-c", DISCARD, server.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    # Python itself would close the socket too, but with a warning.
    assert (done.returncode, done.stderr) == (0, "")
