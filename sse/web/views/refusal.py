"""What the endpoints respond to refusals and to OPTIONS."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from flask import Response, request

from ...compat.environ import GUNICORN_SOCKET
from ...errors import MalformedBody, MethodNotAllowed, SSEError
from ...relay.linger import discard
from ..call import current_call
from ..report import report_refusal
from ..response import problem
from ..state import current_state

#: All methods that an endpoint takes in, so that scripts of other origins may read why one is refused.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def refuse(error: SSEError) -> Response:
    """Return the response to a request that is refused."""
    call = current_call()
    report_refusal(error)
    response = problem(error, call)
    if request.content_length or "chunked" in request.headers.get("Transfer-Encoding", ""):
        # Read again, a malformed body seems to be at its end.
        body = None if isinstance(error, MalformedBody) else request.environ["wsgi.input"]
        response.call_on_close(partial(discard, body, request.environ.get(GUNICORN_SOCKET)))
    if error.retry_after is not None or error.status < 500:
        response.headers.extend(current_state().access.throttle.fields(call))
    if isinstance(error, MethodNotAllowed):
        # RFC 9110, section 15.5.6: "The origin server MUST generate an Allow header field in a 405 response".
        response.headers["Allow"] = ", ".join(error.allowed)
    return response


def check_method(method: str, allowed: Sequence[str]) -> Response | None:
    """Return the response to OPTIONS: Flask's own would list all methods that are taken in.

    :param method: the request's.
    :raises MethodNotAllowed: if the method is not allowed.
    """
    if method == "OPTIONS":
        return Response(headers={"Allow": ", ".join(allowed)})
    if method not in allowed:
        raise MethodNotAllowed(allowed=allowed)
    return None
