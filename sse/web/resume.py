"""How a client requests a recording of its response, and names a position in one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidOffset, InvalidRequest
from ..relay.upstream.request import UpstreamRequest
from ..settings import Settings

#: Fields that opt in, or belong to that; none of them goes upstream.
FIELDS = frozenset({"stream-ttl", "stream-leave", "idempotency-key"})

_SECONDS = re.compile(r"[0-9]{1,9}")
#: 16 characters are too many to guess, if they are random.
_KEY = re.compile(r"[\x21-\x7e]{16,255}")
_OFFSET = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True, kw_only=True)
class Resume:
    """How a client wants its response to be recorded."""

    #: Seconds for which it is kept after its end, and for which it goes on without a reader.
    ttl: int
    leave: float
    #: The idempotency key, "" for none.
    key: str = ""


def parse_resume(environ: Mapping[str, Any], settings: Settings, *, ttl: int | None = None) -> Resume | None:
    """Return how a request wants to be recorded, None if it does not.

    :param environ: the request's.
    :param ttl: seconds in its JSON.
    :raises InvalidRequest: if a field is malformed.
    """
    given, key = environ.get("HTTP_STREAM_TTL"), environ.get("HTTP_IDEMPOTENCY_KEY", "")
    if not settings.resume_ttl or (ttl is None and given is None and not key):
        return None
    if key and not _KEY.fullmatch(key):
        raise InvalidRequest("Idempotency-Key: must be 16 to 255 visible characters without blanks")
    if ttl is None:
        ttl = settings.resume_ttl if given is None else _parse_seconds("Stream-TTL", given)
    if not ttl:
        raise InvalidRequest("Stream-TTL: must be at least 1 second")
    leave = environ.get("HTTP_STREAM_LEAVE")
    return Resume(
        ttl=min(ttl, settings.resume_ttl),
        leave=settings.resume_leave
        if leave is None
        else min(_parse_seconds("Stream-Leave", leave), settings.resume_leave_max),
        key=key,
    )


def _parse_seconds(name: str, text: str) -> int:
    if not _SECONDS.fullmatch(text):
        raise InvalidRequest(f"{name}: must be a whole number of seconds")
    return int(text)


def parse_offset(text: str, end: int) -> int:
    """Return a position in a recording.

    :param end: what `now` stands for.
    :raises InvalidOffset: if the text names none.
    """
    if text in ("", "-1"):
        return 0
    if text == "now":
        return end
    if not _OFFSET.fullmatch(text):
        raise InvalidOffset(f"the offset must be a number of bytes, -1 or now, not {text[:40]!r}")
    return int(text)


def claim_key(owner: str, key: str) -> str:
    """Return what an idempotency key is stored as: the same key of another client is another one."""
    # A client without a name may change its address, and then the key alone is its right.
    name = owner if owner.startswith("name:") else ""
    return hashlib.sha256(f"{name}\0{key}".encode()).hexdigest()


def fingerprint(request: UpstreamRequest) -> str:
    """Return a digest that distinguishes one upstream request from another."""
    digest = hashlib.sha256()
    for part in (request.method.encode(), str(request.target.url).encode(), request.body or b""):
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()
