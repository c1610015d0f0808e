"""Which origins' scripts may read responses (Fetch, section 3.2), always without credentials."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flask import Request, Response, request

from ...errors import CrossSite

#: Seconds for which a browser keeps the result of a preflight.
PREFLIGHT_AGE = "600"

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

#: Schemes of `Authorization` that browsers add by themselves; "" stands for none: for an address or a certificate.
_AMBIENT_SCHEMES = frozenset(["", "basic", "digest", "negotiate", "ntlm"])


class CrossOrigin:
    """The origins of `SSE_CORS_ORIGINS`.

    :param origins: as browsers send them, and `*` for all.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._allows_all = "*" in origins
        self._named = frozenset(origins) - {"*"}

    def check_site(self, request: Request) -> None:
        """Check that no foreign page sent a request whose client is known by what browsers add by themselves.

        :raises CrossSite: if one did, and its origin is not named.
        """
        fields = request.headers
        scheme = fields.get("Authorization", "").partition(" ")[0].lower()
        if "Cookie" not in fields and scheme not in _AMBIENT_SCHEMES:
            # A page must have such a credential to send it.
            return
        origin, site = fields.get("Origin", ""), fields.get("Sec-Fetch-Site")
        is_foreign = site == "cross-site" if site else origin and origin.partition("://")[2] != request.host
        if is_foreign and origin not in self._named:
            raise CrossSite

    def share(self, response: Response) -> Response:
        """Let scripts of the allowed origins read a response; after a preflight, let them send the request."""
        headers, environ = response.headers, request.environ
        names = {name.lower(): name for name, _ in headers}
        if "access-control-allow-origin" in names:
            # The site has decided.
            return response
        origin = environ.get("HTTP_ORIGIN", "")
        if not self._allows_all:
            # A cache must not send the response for one origin to another.
            headers.add("Vary", "Origin")
            if origin not in self._named:
                return response
        headers.add("Access-Control-Allow-Origin", "*" if self._allows_all else origin)
        more = () if names.keys() <= _UNNAMED else [names[name] for name in names.keys() - _UNNAMED]
        headers.add("Access-Control-Expose-Headers", ", ".join((_EXPOSED, *more)))
        if environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
            headers.extend(self._preflight_fields(origin, headers.get("Allow", "")))
        return response

    def _preflight_fields(self, origin: str, methods: str) -> Iterator[tuple[str, str]]:
        headers = request.headers
        yield "Access-Control-Allow-Methods", methods
        yield "Access-Control-Allow-Headers", headers.get("Access-Control-Request-Headers", "")
        yield "Access-Control-Max-Age", PREFLIGHT_AGE
        # `*` is not enough: it would open a private network to every page of the public one.
        if headers.get("Access-Control-Request-Private-Network") == "true" and origin in self._named:
            yield "Access-Control-Allow-Private-Network", "true"
