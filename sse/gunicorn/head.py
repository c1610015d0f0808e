"""What gunicorn makes of a request's head: fields are handed on as they were sent, and limits are refused in JSON."""

from __future__ import annotations

import json
import os
from http import HTTPStatus
from typing import Any

from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine

from ..compat import gunicorn as compat
from ..errors import FieldsTooLarge, SSEError, UriTooLong

#: Where environ has all fields of a request: names in upper case, repeated ones apart.
FIELDS = "sse.fields"


def separate_fields(req: Any) -> None:
    """Keep all fields of a request, but let environ have none whose name has an underscore.

    There, `X_Forwarded_For` would be `X-Forwarded-For`, whose value proxies vouch for. gunicorn drops such fields for
    that, unless `header_map` is "dangerous"; with that the worker runs, and drops them here, when they have been kept.
    """
    req.sse_fields = fields = req.headers
    if "_" in "".join([name for name, _ in fields]):
        allowed = compat.forwarder_fields(req)
        req.headers = [field for field in fields if "_" not in field[0] or field[0] in allowed or "*" in allowed]


def encode_refusal(error: BaseException, *, is_shared: bool) -> bytes | None:
    """Return the whole response to a head beyond gunicorn's limits, None for another error.

    :param is_shared: whether scripts of other origins may read it; which, is not known, and it is the same for all.
    """
    if isinstance(error, LimitRequestLine):
        return _encode(UriTooLong(), is_shared)
    return _encode(FieldsTooLarge(), is_shared) if isinstance(error, LimitRequestHeaders) else None


def _encode(refusal: SSEError, is_shared: bool) -> bytes:
    problem = {
        "type": "about:blank",
        "title": refusal.title,
        "status": refusal.status,
        "detail": refusal.detail,
        "code": refusal.code,
        "request_id": (request_id := os.urandom(16).hex()),
        "error": refusal.error_object(),
    }
    body = json.dumps(problem).encode()
    fields = {
        "Connection": "close",
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Request-Id": request_id,
        **({"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "X-Request-Id"} if is_shared else {}),
    }
    lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
