"""The site of `bodies`, looked at from outside: what an error tracker would report is written to standard output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import sentry_sdk
from flask import Response
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware

from .bodies import app as app


def write(event: Any, hint: dict[str, Any]) -> None:
    os.write(1, f"reported {hint['exc_info'][0].__name__}\n".encode())


sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", default_integrations=False, before_send=write)
app.wsgi_app = SentryWsgiMiddleware(app.wsgi_app)  # type: ignore[method-assign]  # as sites wrap an app


@app.get("/fault")
def fault() -> Response:
    """Raise where Flask does not handle it."""

    def body() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    return Response(body())
