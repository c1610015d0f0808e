"""What gunicorn makes of a request's head: fields are handed on as they were sent, and limits are refused in JSON."""

from __future__ import annotations

import ipaddress
import json
import os
from http import HTTPStatus
from typing import Any

from ..errors import FieldsTooLarge, SSEError, UriTooLong

#: Where environ has all fields of a request: names in upper case, repeated ones apart.
FIELDS = "sse.fields"


def separate_fields(request: Any, address: Any, cfg: Any) -> list[tuple[str, str]]:
    """Return all fields of a request, but let environ have none whose name has an underscore.

    There, `X_Forwarded_For` would be `X-Forwarded-For`, whose value proxies vouch for. gunicorn drops such fields for
    that, unless `header_map` is "dangerous"; with that the worker runs, and drops them here, when they have been kept.
    """
    fields: list[tuple[str, str]] = request.headers
    if "_" in "".join([name for name, _ in fields]):
        allowed = cfg.forwarder_headers if _is_forwarder(address, cfg.forwarded_allow_ips) else ()
        request.headers = [field for field in fields if "_" not in field[0] or field[0] in allowed or "*" in allowed]
    return fields


def _is_forwarder(address: Any, allowed: list[str]) -> bool:
    """Return whether a peer is one that `forwarded_allow_ips` names; those of a Unix socket are."""
    if "*" in allowed or not isinstance(address, tuple):
        return True
    peer = ipaddress.ip_address(address[0].partition("%")[0])
    return any(peer in ipaddress.ip_network(each, strict=False) for each in allowed)


def replace_refusal(response: bytes, *, is_shared: bool) -> bytes:
    """Return the response to a request that gunicorn refuses: its own, unless the head is beyond its limits.

    :param is_shared: whether scripts of other origins may read it; which, is not known, and it is the same for all.
    """
    # RFC 9112, section 4: "status-line = HTTP-version SP status-code".
    status = int(response[9:12])
    found = [refusal for refusal in (UriTooLong, FieldsTooLarge) if refusal.status == status]
    return _encode(found[0](), is_shared) if found else response


def _encode(refusal: SSEError, is_shared: bool) -> bytes:
    body = json.dumps(refusal.problem(request_id := os.urandom(16).hex())).encode()
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
