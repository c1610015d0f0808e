"""Which origins' scripts may read responses (Fetch, section 3.2), always without credentials."""

from __future__ import annotations

from collections.abc import Sequence

from werkzeug.datastructures import Headers

#: Fields that scripts may read; they are named also where a response has them not, so that most need no longer list.
EXPOSED = (
    "Retry-After",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "X-Request-Id",
    "X-Upstream-Request-Id",
    "X-Upstream-Status",
)
_EXPOSED = ", ".join(EXPOSED)
#: Fields that need not be named: these, what scripts may read anyway, and what browsers alone use.
_UNNAMED = frozenset(name.lower() for name in EXPOSED) | frozenset(
    "cache-control connection content-language content-length content-security-policy content-type date expires "
    "last-modified pragma referrer-policy set-cookie vary x-accel-buffering x-content-type-options".split()
)


class CrossOrigin:
    """The origins of `SSE_CORS_ORIGINS`.

    :param origins: as browsers send them, and `*` for all.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self.allows_all = "*" in origins
        self._named = frozenset(origins) - {"*"}

    def names(self, origin: str) -> bool:
        """Tell whether an origin is named; `*` names none."""
        return origin in self._named

    def share(self, headers: Headers, origin: str) -> bool:
        """Add to a response's fields that scripts of the origin may read them; return whether they may."""
        if not self.allows_all:
            # A cache must not send the response for one origin to another.
            headers.add("Vary", "Origin")
            if origin not in self._named:
                return False
        more = [name for name in headers.keys() if name.lower() not in _UNNAMED]  # iterating gives pairs
        headers["Access-Control-Allow-Origin"] = "*" if self.allows_all else origin
        headers["Access-Control-Expose-Headers"] = ", ".join((_EXPOSED, *dict.fromkeys(more))) if more else _EXPOSED
        return True
