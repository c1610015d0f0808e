"""The service behind a middleware that changes each piece of a body."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from werkzeug.wsgi import ClosingIterator

from app import app


def _shout(application: Callable[..., Any]) -> Callable[..., Any]:
    def call(environ: dict[str, Any], start_response: Any) -> Any:
        body = application(environ, start_response)
        return ClosingIterator(_shouted(body), body.close)

    return call


def _shouted(body: Any) -> Iterator[bytes]:
    for piece in body:
        yield piece.upper()


app.wsgi_app = _shout(app.wsgi_app)  # type: ignore[method-assign]  # as sites wrap an app
