"""Who calls, and how often: credentials, the client's address, and the throttle."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import time
from collections.abc import Callable

from flask import Flask, Request, request
from flask_limiter import Limiter, RequestLimit
from flask_limiter.errors import RateLimitExceeded

from ..errors import Throttled, Unauthenticated
from ..settings import Settings

#: What an embedder may give to tell its users apart: the client's name, or None for nobody we know.
Authorize = Callable[[Request], "str | None"]

#: Throttles failed attempts where nothing else is throttled, so that a passcode cannot be guessed.
GUESSES = "60 per 10 second"

#: Into every key, so that another strategy on the same store never meets our entries.
KEY_PREFIX = "sse-moving-window"


class Access:
    """Decides who may call and how often.

    :param authorize: the site's own answer to who calls; asked before the passcodes.
    :param limiter: the site's Limiter; None makes one that takes nothing from the site and adds nothing to it.
    :param is_open: whether anybody may call.
    """

    def __init__(
        self, settings: Settings, *, authorize: Authorize | None, limiter: Limiter | None, is_open: bool
    ) -> None:
        self._authorize = authorize
        self.is_open = is_open
        self._trusted_proxies = settings.trusted_proxies
        # Digests are of one length whatever the passcode's, and bytes, which str with other letters is not.
        self._digests = [(name, _digest(passcode)) for name, passcode in settings.passcodes.items()]
        self._limiter = limiter or _own_limiter(settings.storage_uri)
        self._throttle = self._limit(settings.throttle, _client_key) if settings.throttle else None
        self._guesses = settings.throttle or GUESSES
        self._guess = self._limit(self._guesses, _guess_key)

    def _limit(self, value: str, key: Callable[[], str]) -> Callable[[], None]:
        # A function of its own for each limit: Flask-Limiter tells limits apart by the function's name.
        def admit() -> None: ...

        admit.__qualname__ = f"admit.{key.__name__}.{id(self)}"
        limited: Callable[[], None] = self._limiter.limit(value, key_func=key)(admit)
        return limited

    def admit(self, passcode: str | None) -> str:
        """Return the name under which the client is counted: its own, or its address where anybody may call.

        :param passcode: the one in the request's JSON, if there is any; the request's fields are looked at here.
        :raises Throttled: if it called too often, or failed too often.
        :raises Unauthenticated: if a credential is needed and there is none, or a wrong one.
        """
        address = client_address(request, trusted_proxies=self._trusted_proxies)
        request.environ["sse.address"] = address
        name = self._identify(passcode)
        if name is None and not self.is_open:
            self._hit(self._guess)
            raise Unauthenticated
        client = f"name:{name}" if name is not None else f"address:{address}"
        request.environ["sse.client"] = client
        if self._throttle is not None:
            self._hit(self._throttle)
        return client

    def _identify(self, passcode: str | None) -> str | None:
        if self._authorize is not None and (name := self._authorize(request)) is not None:
            return name
        credential = passcode or request.headers.get("X-Passcode") or bearer(request)
        if not credential or not self._digests:
            return None
        digest = _digest(credential)
        found = None
        for name, known in self._digests:
            # All are compared, whichever fits, so that time tells nothing.
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _hit(self, limited: Callable[[], None]) -> None:
        try:
            limited()
        except RateLimitExceeded as error:
            raise Throttled(retry_after=_seconds_left(self._limiter.current_limit)) from error

    def rate_limit_fields(self) -> list[tuple[str, str]]:
        """Return what the throttle says of the current request, as response fields."""
        limit = self._limiter.current_limit
        if limit is None:
            return []
        return [
            ("X-RateLimit-Limit", str(limit.limit.amount)),
            ("X-RateLimit-Remaining", str(limit.remaining)),
            ("X-RateLimit-Reset", str(_seconds_left(limit))),
        ]


def _own_limiter(storage_uri: str) -> Limiter:
    """Return a Limiter that is configured by us alone.

    It is put into a Flask app that serves nothing: a site's `RATELIMIT_*` keys would otherwise configure it too, its
    default limits would count twice, and its hooks would run on every request of the site.
    """
    limiter = Limiter(
        key_func=_client_key,
        storage_uri=storage_uri,
        strategy="moving-window",
        key_prefix=KEY_PREFIX,
    )
    limiter.init_app(Flask("sse-throttle"))
    return limiter


def _client_key() -> str:
    return str(request.environ["sse.client"])


def _guess_key() -> str:
    return f"guess:{request.environ['sse.address']}"


def _seconds_left(limit: RequestLimit | None) -> int:
    """Return the whole seconds after which the limit lets one more in: true if somebody waits so long."""
    return max(1, math.ceil(limit.window.reset_time - time.time())) if limit is not None else 1


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def bearer(request: Request) -> str | None:
    """Return the token of `Authorization: Bearer`, which is the gateway's credential (RFC 6750, section 2.1)."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def client_address(request: Request, *, trusted_proxies: int) -> str:
    """Return whom the nearest proxy that is not ours saw; an IPv6 address stands for its /64, which is one household.

    :param trusted_proxies: so many values at the right end of X-Forwarded-For were written by proxies of ours; what
        is left of them is the client's own invention.
    """
    address = request.remote_addr or "unknown"
    if trusted_proxies:
        seen = [value.strip() for value in request.headers.get("X-Forwarded-For", "").split(",")]
        if len(seen) >= trusted_proxies:
            address = seen[-trusted_proxies]
    try:
        parsed = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return request.remote_addr or "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))
    return str(parsed)
