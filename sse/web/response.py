"""Responses: a relayed stream or error of an upstream, and a refusal of the gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Response
from werkzeug.datastructures import Headers
from werkzeug.wsgi import ClosingIterator

from ..errors import SSEError
from ..relay.stream.pump import HANDOVER, Handover, Pump
from .call import Call

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Fields that keep proxies and browsers from holding back or changing a stream, or guessing its type.
STREAM_FIELDS = (
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
    ("X-Content-Type-Options", "nosniff"),
)


class PumpResponse(Response):
    """A response whose body is a pump, which it offers to the server."""

    # A stream has no length, so nothing (an `after_request` that measures, say) may try to read it whole.
    implicit_sequence_conversion = False

    _held: tuple[Pump, Call] | None = None
    _is_closed_by_server = False

    def close_if_dropped(self, pump: Pump, call: Call) -> None:
        """Let the pump be closed behind the request if the server does not get this response; Flask does not."""
        self._held = (pump, call)
        call.unsent.append(pump)

    def call_on_close(self, func: Callable[[], object]) -> Callable[[], object]:
        self._is_closed_by_server = True
        return super().call_on_close(func)

    def get_app_iter(self, environ: WSGIEnvironment) -> Iterable[bytes]:
        held, self._held = self._held, None
        if held is not None:
            pump, call = held
            call.unsent.remove(pump)
        body = super().get_app_iter(environ)
        if body is self.response and self._is_closed_by_server:
            # werkzeug leaves what is passed through as it is, and `call_on_close` without effect. Without one, nothing
            # needs the response any more, and a stream may be open for hours.
            body = ClosingIterator(body, self.close)
        if isinstance(self.response, Pump) and self.response.has_body:
            environ[HANDOVER] = Handover(body, self.response)
        return body


class RelayedResponse(PumpResponse):
    """A response whose fields are final; werkzeug would copy them, to correct what an upstream's never need."""

    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Headers:
        # RFC 9110, sections 15.3.5 and 15.4.5: a response without content has no fields that describe it.
        has_content = self.status_code not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        return self.headers if has_content else super().get_wsgi_headers(environ)


def set_event_stream_fields(response: Response, call: Call) -> None:
    """Set the fields of an event stream of the site's own; but for its type, a site may have set others."""
    response.headers["Content-Type"] = "text/event-stream; charset=utf-8"
    for name, value in (*STREAM_FIELDS, ("X-Request-Id", call.id)):
        response.headers.setdefault(name, value)


def stream_response(pump: Pump, *, status: int, fields: Iterable[tuple[str, str]], call: Call) -> Response:
    """Return a response whose body is sent as it comes, and closed if the server does not get it.

    :param fields: with a Content-Type.
    """
    # A response has one request id: the upstream's own gets another name.
    fields = [("X-Upstream-Request-Id" if name.lower() == "x-request-id" else name, value) for name, value in fields]
    headers = Headers([*fields, *STREAM_FIELDS, ("X-Request-Id", call.id)])
    response = RelayedResponse(pump, status, headers, direct_passthrough=True)
    response.close_if_dropped(pump, call)
    return response


def problem(error: SSEError, call: Call) -> Response:
    """Return a refusal of the gateway's own (RFC 9457)."""
    body = json.dumps(error.problem(call.id), ensure_ascii=False, separators=(",", ":"))
    response = Response(body, status=_status_line(error.status), content_type="application/problem+json")
    response.headers.extend([("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")])
    response.headers["X-Request-Id"] = call.id
    response.headers.extend(error.fields)
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
