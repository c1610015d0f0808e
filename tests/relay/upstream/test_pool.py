"""Connections that are kept for requests to come."""

from __future__ import annotations

import gc
from collections.abc import Callable

from flask import Flask

from sse import SSE

from ...support.upstream import Upstream, answer


def test_an_app_that_is_discarded_closes_its_connections(upstream: Callable[..., Upstream]) -> None:
    """A site's tests make many apps, and with `-W error` a socket that is still open fails one of them."""
    server = upstream(answer(b"data: a\n\n"))

    def call() -> None:
        app = Flask(__name__)
        app.config["SSE_UPSTREAMS"] = {"test": server.url}
        SSE(app)
        assert app.test_client().get("/upstream/test/").data == b"data: a\n\n"

    call()
    gc.collect()
    server.connections[0].wait_closed()
