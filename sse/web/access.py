"""Who calls, and how often: credentials, the client's address, and the throttle."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flask import Flask, Request, Response, request
from flask_limiter import Limiter
from flask_limiter.errors import RateLimitExceeded
from flask_limiter.util import get_remote_address
from limits import RateLimitItem, parse_many

from ..errors import Throttled, Unauthenticated
from ..relay.store import SharedStore, nothing
from ..settings import Settings
from .count import Memory, SharedCounts

#: What an embedder may give to tell its users apart: the client's name, or None for nobody we know.
Authorize = Callable[[Request], "str | None"]

#: Throttles failed attempts where nothing else is throttled, so that a passcode cannot be guessed.
GUESSES = "60 per 10 second"

#: Addresses that are kept as they were read: a client calls again and again.
KEPT_ADDRESSES = 1024

# Where in a request's environ it stands who sent it: the name under which the client is counted, and its address.
_CLIENT, _ADDRESS = "sse.client", "sse.address"

#: Into every key, so that another strategy on the same store never meets our entries.
KEY_PREFIX = "sse-moving-window"


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Where a request was counted last: what its answer says of limits."""

    item: RateLimitItem
    identifiers: Sequence[str]
    is_exceeded: bool


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How often something may be done; `count` counts a request, and returns None where nothing is limited.

    :param items: the shortest window first; the first that is exceeded ends the counting.
    """

    items: Sequence[RateLimitItem]
    count: Callable[[Request], Counted | None]


class Access:
    """Decides who may call and how often.

    :param authorize: the site's own answer to who calls; asked before the passcodes.
    :param limiter: the site's Limiter; None makes one that takes nothing from the site and adds nothing to it.
    :param is_open: whether anybody may call.
    :param store: what processes share, if they do; the site's own Limiter counts where it counts.
    :param on_absence: called each time the store is needed for a call and away.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        authorize: Authorize | None,
        limiter: Limiter | None,
        is_open: bool,
        store: SharedStore | None = None,
        on_absence: Callable[[], object] = nothing,
    ) -> None:
        self._authorize = authorize
        self.is_open = is_open
        self._trusted_proxies = settings.trusted_proxies
        # Digests are of one length whatever the passcode's, and bytes, which str with other letters is not.
        self._digests = [(name, _digest(_encode(passcode))) for name, passcode in settings.passcodes.items()]
        self._is_own = limiter is None
        self._limiter = limiter or _own_limiter(store, on_absence)
        self._throttle = self._limit(settings.throttle, _CLIENT) if settings.throttle else None
        guesses = settings.throttle or GUESSES
        # One count for all endpoints: a guess is a guess, wherever it is made. To have no credential is no guess.
        self._anonymous = self._limit(guesses, _ADDRESS, scope="sse-anonymous")
        self._guess = self._limit(guesses, _ADDRESS, scope="sse-guess")
        self._guessed = self._limit(guesses, _ADDRESS, scope="sse-guess", counts=False)
        #: Whether others may have counted guesses too, and else until when (time.monotonic()) one of ours is counted.
        self._shares_guesses = limiter is not None or store is not None
        self._guesses_until = 0.0

    def _limit(self, value: str, key: str, *, scope: str = "", counts: bool = True) -> Limit:
        """Return a limit, for each endpoint if no scope is named.

        :param key: where in a request's environ it stands who is counted.
        :param counts: False only looks whether one more may come.
        """
        items = sorted(parse_many(value))
        if not self._is_own:
            return Limit(items=items, count=_by_decorator(self._limiter, value, key, scope=scope, counts=counts))
        ask = self._limiter.limiter.hit if counts else self._limiter.limiter.test

        def count(request: Request) -> Counted:
            identifiers = (KEY_PREFIX, request.environ[key], scope or str(request.endpoint))
            for item in items:
                if not ask(item, *identifiers):
                    return Counted(item=item, identifiers=identifiers, is_exceeded=True)
            return Counted(item=items[0], identifiers=identifiers, is_exceeded=False)

        return Limit(items=items, count=count)

    def admit(self, request: Request, passcode: str | None) -> str:
        """Return the name under which the client is counted: its own, or its address where anybody may call.

        :param passcode: the one in the request's JSON, if there is any; the request's fields are looked at here.
        :raises Throttled: if it called too often, or failed too often.
        :raises Unauthenticated: if a credential is needed and there is none, or a wrong one.
        """
        address = client_address(request, trusted_proxies=self._trusted_proxies)
        request.environ[_ADDRESS] = address
        name = self._identify(request, passcode)
        client = f"name:{name}" if name is not None else f"address:{address}"
        request.environ[_CLIENT] = client
        if self._throttle is not None:
            self._count(request, self._throttle)
        return client

    def has_store(self) -> bool:
        """Tell whether the store that the throttle is kept in can be used."""
        return bool(self._limiter.storage.check())

    def _identify(self, request: Request, passcode: str | None) -> str | None:
        """Return the client's name, None for a stranger where anybody may call."""
        if self._authorize is not None and (name := self._authorize(request)) is not None:
            return name
        credentials = _credentials(request, passcode)
        if credentials and self._digests and not self.is_open and self._may_have_guessed():
            # Whoever has failed too often is not told either when it guesses right.
            self._count(request, self._guessed)
        name = self._find(credentials)
        if name is None and not self.is_open:
            if credentials:
                self._guesses_until = time.monotonic() + max(item.get_expiry() for item in self._guess.items)
            self._count(request, self._guess if credentials else self._anonymous)
            raise Unauthenticated
        return name

    def _may_have_guessed(self) -> bool:
        # To ask costs as much as the throttle itself, and mostly nobody has.
        return self._shares_guesses or time.monotonic() < self._guesses_until

    def _find(self, credentials: list[bytes]) -> str | None:
        found = None
        for digest in map(_digest, credentials):
            for name, known in self._digests:
                # All are compared, whichever fits, so that time tells nothing.
                if hmac.compare_digest(digest, known):
                    found = name
        return found

    def _count(self, request: Request, limit: Limit) -> None:
        counted = request.environ["sse.counted"] = limit.count(request)
        if counted is not None and counted.is_exceeded:
            raise Throttled(retry_after=self._retry_after(limit, counted))

    def _retry_after(self, limit: Limit, counted: Counted) -> int:
        """Return the whole seconds after which the limit lets one more in: true if somebody waits so long."""
        # Of several limits the first that is exceeded is reported, and a longer one may be used up as well.
        windows = [self._window(item, counted.identifiers) for item in limit.items]
        return _seconds_until(max((reset for reset, remaining in windows if remaining <= 0), default=0.0))

    def _window(self, item: RateLimitItem, identifiers: Sequence[str]) -> tuple[float, int]:
        """Return when the next call is forgotten (time.time()), and how many more may come."""
        strategy = self._limiter.limiter
        try:
            reset, remaining = strategy.get_window_stats(item, *identifiers)
        except strategy.storage.base_exceptions:
            # A site's own store went away between two questions.
            return 0.0, item.amount
        return reset, remaining

    def rate_limit_fields(self, request: Request) -> list[tuple[str, str]]:
        """Return what the throttle says of a request, as response fields."""
        counted: Counted | None = request.environ.get("sse.counted")
        if counted is None or (self._throttle is None and not counted.is_exceeded):
            return []
        reset, remaining = self._window(counted.item, counted.identifiers)
        return [
            ("X-RateLimit-Limit", str(counted.item.amount)),
            ("X-RateLimit-Remaining", str(max(remaining, 0))),
            ("X-RateLimit-Reset", str(_seconds_until(reset))),
        ]


def _by_decorator(
    limiter: Limiter, value: str, key: str, *, scope: str, counts: bool
) -> Callable[[Request], Counted | None]:
    """Return what counts in a site's Limiter: whom it exempts and what it does without its store, its decorator knows.

    Ours has nothing of that, and its strategy is asked directly: a decorator finds out anew at each call what there is
    to ask, which takes a tenth of a request.
    """

    def admit() -> None: ...

    # Flask-Limiter tells limits apart by the function's name.
    admit.__qualname__ = f"admit.{scope}.{counts}.{id(admit)}"
    options: dict[str, Any] = {"key_func": lambda: request.environ[key], "deduct_when": None if counts else _never}
    limit = limiter.shared_limit(value, scope, **options) if scope else limiter.limit(value, **options)
    decorated = limit(admit)

    def count(_: Request) -> Counted | None:
        is_exceeded = False
        try:
            decorated()
        except RateLimitExceeded:
            is_exceeded = True
        current = limiter.current_limit
        if current is None:
            # It is disabled, exempts the request, or has swallowed that its store is away.
            return None
        return Counted(item=current.limit, identifiers=current.request_args, is_exceeded=is_exceeded)

    return count


def _own_limiter(store: SharedStore | None, on_absence: Callable[[], object]) -> Limiter:
    """Return a Limiter that is configured by us alone.

    It is put into a Flask app that serves nothing: a site's `RATELIMIT_*` keys would otherwise configure it too, its
    default limits would count twice, and its hooks would run on every request of the site.
    """
    options: dict[str, Any] = {"store": store, "on_absence": on_absence} if store is not None else {}
    limiter = Limiter(
        # It is never asked: the strategy is, with keys of ours.
        key_func=get_remote_address,
        storage_uri=f"{(SharedCounts if store is not None else Memory).STORAGE_SCHEME[0]}://",
        storage_options=options,
        strategy="moving-window",
    )
    limiter.init_app(Flask("sse-throttle"))
    return limiter


def _never(_: Response) -> bool:
    return False


def _seconds_until(reset: float) -> int:
    return max(1, math.ceil(reset - time.time()))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(passcode: bytes) -> bytes:
    return hashlib.sha256(passcode).digest()


def _credentials(request: Request, passcode: str | None) -> list[bytes]:
    """Return the one credential of a request, in each way its bytes can be meant.

    The query is not looked at: it ends up in logs.

    :param passcode: the one in the request's JSON, which goes first.
    """
    if passcode:
        return [_encode(passcode)]
    value = request.headers.get("X-Passcode") or bearer(request)
    if not value:
        return []
    # What came as latin-1 (all that `fetch` can send in a field), and what came as UTF-8 (all that curl can).
    return [_encode(value), value.encode("latin-1", "replace")]


def bearer(request: Request) -> str | None:
    """Return the token of `Authorization: Bearer`, which is the gateway's credential (RFC 6750, section 2.1)."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def client_address(request: Request, *, trusted_proxies: int) -> str:
    """Return whom the nearest proxy that is not ours saw; an IPv6 address stands for its /64, which is one household.

    :param trusted_proxies: so many values at the right end of X-Forwarded-For were written by proxies of ours; what
        is left of them is the client's own invention.
    """
    peer = request.remote_addr or "unknown"
    seen = request.headers.get("X-Forwarded-For", "").split(",") if trusted_proxies else []
    if not trusted_proxies or len(seen) < trusted_proxies:
        return _household(peer) or peer
    return _household(seen[-trusted_proxies].strip()) or _household(peer) or peer


@lru_cache(maxsize=KEPT_ADDRESSES)
def _household(text: str) -> str | None:
    # Some proxies write the port behind the address, in the form of a URL's authority.
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    # A socket that listens for both families says ::ffff:192.0.2.1 of an IPv4 client.
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))
