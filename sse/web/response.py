"""Answers: a relayed stream, an upstream's error, a refusal of our own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Request, Response
from werkzeug.datastructures import Headers
from werkzeug.wsgi import ClosingIterator

from ..errors import SSEError
from ..relay.stream.pump import HANDOVER, Handover, Pump
from .model import Problem
from .state import current_request

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: What keeps every proxy and browser on the way from holding back, changing or guessing.
STREAM_FIELDS = (
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
    ("X-Content-Type-Options", "nosniff"),
)

#: Fields that scripts of other origins may read.
EXPOSED_FIELDS = (
    "Retry-After",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "X-Request-Id",
    "X-Upstream-Request-Id",
    "X-Upstream-Status",
)


def shared_fields(origins: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return what an answer says where scripts of all origins may read it; nothing where that depends on who asks.

    Flask-CORS leaves alone what says so already. It finds the same out for each answer, in a twelfth of the time that a
    short stream takes in all.

    :param origins: of `SSE_CORS_ORIGINS`.
    """
    if "*" not in origins:
        return ()
    return ("Access-Control-Allow-Origin", "*"), ("Access-Control-Expose-Headers", ", ".join(EXPOSED_FIELDS))


_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(request: Request) -> str:
    """Return the id of a request: the client's if it is one, else made."""
    known = request.environ.get("sse.request_id")
    if known is None:
        given = request.headers.get("X-Request-Id", "")
        known = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        request.environ["sse.request_id"] = known
    return str(known)


class PumpResponse(Response):
    """A response whose body is a pump, which it offers to the server."""

    # A stream has no length, so nothing (an `after_request` that measures, say) may try to read it whole.
    implicit_sequence_conversion = False

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        body = super().get_app_iter(environ)
        if body is self.response:
            # werkzeug leaves what is passed through as it is, and `call_on_close` without effect.
            body = ClosingIterator(body, self.close)
        if isinstance(self.response, Pump) and self.response.has_body:
            environ[HANDOVER] = Handover(body, self.response)
        return body


class RelayedResponse(PumpResponse):
    """A response whose fields are final; werkzeug would copy them, to mend what an upstream's answer never has."""

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        # RFC 9110, sections 15.3.5 and 15.4.5: what has no content says nothing of it.
        has_content = self.status_code not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        return self.headers if has_content else super().get_wsgi_headers(environ)


def stream_response(
    body: Iterable[bytes], *, status: int, fields: Iterable[tuple[str, str]], request_id: str
) -> Response:
    """Return a response whose body goes out as it comes.

    :param fields: with a Content-Type.
    """
    # One id for one answer: the upstream's own stands beside ours.
    fields = [("X-Upstream-Request-Id" if name.lower() == "x-request-id" else name, value) for name, value in fields]
    headers = Headers([*fields, *STREAM_FIELDS, ("X-Request-Id", request_id)])
    return RelayedResponse(body, status=status, headers=headers, direct_passthrough=True)


def problem(error: SSEError) -> Response:
    """Return a refusal of ours (RFC 9457)."""
    id_ = request_id(current_request())
    body = Problem(
        title=error.title, status=error.status, detail=error.detail, code=error.code, request_id=id_
    ).model_dump_json()
    response = Response(body, status=_status_line(error.status), content_type="application/problem+json")
    response.headers.extend([("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")])
    response.headers["X-Request-Id"] = id_
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.should_retry is not None:
        response.headers["X-Should-Retry"] = str(error.should_retry).lower()
    if error.status == HTTPStatus.UNAUTHORIZED:
        # RFC 9110, section 15.5.2: "The server generating a 401 response MUST send a WWW-Authenticate header field".
        response.headers["WWW-Authenticate"] = 'Bearer realm="sse"'
    return response


def _status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Client Closed Request"
