"""Let scripts of other origins read a response, and call at all (Fetch, section 3.2)."""

from __future__ import annotations

from flask import Response, request

from .state import current_state

#: Seconds for which a browser keeps the result of a preflight.
PREFLIGHT_AGE = "600"


def share(response: Response) -> Response:
    """Let scripts of the allowed origins read a response; if it answers a preflight, let them send the request."""
    if "Access-Control-Allow-Origin" in response.headers:
        # The site allows it itself.
        return response
    asked, headers, cross_origin = request.headers, response.headers, current_state().cross_origin
    origin = asked.get("Origin", "")
    may_read = cross_origin.share(headers, origin)
    if may_read and request.method == "OPTIONS" and "Access-Control-Request-Method" in asked:
        headers["Access-Control-Allow-Methods"] = headers.get("Allow", "")
        headers["Access-Control-Allow-Headers"] = asked.get("Access-Control-Request-Headers", "")
        headers["Access-Control-Max-Age"] = PREFLIGHT_AGE
        # `*` is not enough: it would open a private network to every page of the public one.
        if asked.get("Access-Control-Request-Private-Network") == "true" and cross_origin.names(origin):
            headers["Access-Control-Allow-Private-Network"] = "true"
    return response
