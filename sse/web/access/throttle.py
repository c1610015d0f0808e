"""Limit how often something may be done, with Flask-Limiter: in memory, in the shared store, or in a site's Limiter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from flask import Request, Response, has_request_context
from flask_limiter import Limiter
from flask_limiter.errors import RateLimitExceeded
from flask_limiter.util import get_remote_address
from limits import RateLimitItem, parse_many
from limits.storage import Storage
from limits.strategies import MovingWindowRateLimiter

from ...compat.flask_limiter import identifiers
from ...errors import Throttled
from ...relay.redis import SharedStore
from ..call import Call, current_call
from .limit_storage import Check, Limit, Memory, SharedCounts, Verdict, Window


class RelayLimiter(Limiter):
    """A Limiter with counts of its own: an app's `RATELIMIT_*` keys do not change it, and it adds no hooks to an app.

    :param counts: where it counts.
    """

    def __init__(self, counts: Memory) -> None:
        super().__init__(get_remote_address, strategy="moving-window")
        self._counts = counts

    @property
    def storage(self) -> Memory:
        return self._counts

    @property
    def limiter(self) -> MovingWindowRateLimiter:
        return MovingWindowRateLimiter(self._counts)

    def count(self, request: Request, call: Call, limits: Sequence[Limit]) -> Sequence[Verdict]:
        """Count a request in all limits at once."""
        checks = [
            Check(
                name=f"{getattr(call, limit.key)}/{limit.scope or request.endpoint}",
                items=limit.items,
                amount=int(limit.counts),
            )
            for limit in limits
        ]
        return self._counts.check_all(checks)


class SiteLimiter:
    """Counts in a site's Limiter as a decorated view would: its exemptions, fallback and hooks apply.

    Flask-Limiter identifies a decorated function by its name and reads limit, key and scope at each request, so the two
    functions below serve every app and every limit.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._hit = limiter.shared_limit(_value, _scope, key_func=_key)(_counted)
        self._test = limiter.shared_limit(_value, _scope, key_func=_key, deduct_when=_never)(_looked_at)

    @property
    def storage(self) -> Storage:
        return self._limiter.storage

    def count(self, request: Request, call: Call, limits: Sequence[Limit]) -> Iterator[Verdict]:
        """Count a request in one limit after the other."""
        for limit in limits:
            call.limit = limit
            is_exceeded = False
            try:
                (self._hit if limit.counts else self._test)()
            except RateLimitExceeded:
                is_exceeded = True
            finally:
                call.limit = None
            # None if it is disabled, exempts the request, or has swallowed that its store is unavailable.
            if (current := self._limiter.current_limit) is not None:
                # A site can have other limits for the time in which its store is unavailable.
                items = limit.items if current.limit in limit.items else [current.limit]
                windows = [self._window(item, identifiers(current)) for item in items]
                yield Verdict(exceeded=items.index(current.limit) if is_exceeded else None, windows=windows)

    def _window(self, item: RateLimitItem, arguments: Sequence[str]) -> Window:
        strategy = self._limiter.limiter
        try:
            reset, remaining = strategy.get_window_stats(item, *arguments)
        except strategy.storage.base_exceptions:
            # The site's store has become unavailable since the request was counted.
            return Window(item=item, reset=0.0, remaining=item.amount)
        return Window(item=item, reset=reset, remaining=remaining)


def _counted() -> None: ...


def _looked_at() -> None: ...


def _current() -> Limit | None:
    # Flask-Limiter reads all limits of an endpoint before each request, when none is counted yet.
    return current_call().limit if has_request_context() else None


def _value() -> str:
    limit = _current()
    return limit.value if limit is not None else ""


def _key() -> str:
    limit = _current()
    return str(getattr(current_call(), limit.key)) if limit is not None else ""


def _scope(endpoint: str) -> str:
    limit = _current()
    return (limit.scope if limit is not None else "") or endpoint


def _never(_: Response) -> bool:
    return False


class Throttle:
    """Counts requests in a Limiter.

    :param limiter: the site's; None makes one that takes nothing from the site and adds nothing to it.
    :param store: what processes share, if they do; a site's own Limiter counts in its own storage.
    :param on_unavailable: called each time the store is needed for a request and unavailable.
    :param shows_all: whether responses show also a limit that allows their request.
    """

    def __init__(
        self,
        limiter: Limiter | None,
        *,
        store: SharedStore | None,
        on_unavailable: Callable[[], object],
        shows_all: bool,
    ) -> None:
        self._shows_all = shows_all
        #: Whether other processes may count too.
        self.is_shared = limiter is not None or store is not None
        self._limiter: RelayLimiter | SiteLimiter
        if limiter is not None:
            self._limiter = SiteLimiter(limiter)
        else:
            counts = Memory() if store is None else SharedCounts(store=store, on_unavailable=on_unavailable)
            self._limiter = RelayLimiter(counts)

    def limit(self, value: str, key: Literal["client", "address"], *, scope: str = "", counts: bool = True) -> Limit:
        """Return a limit, for each endpoint if no scope is named.

        :param key: what is counted of a call.
        :param counts: False only looks whether one more is allowed.
        """
        return Limit(value=value, items=sorted(parse_many(value)), key=key, scope=scope, counts=counts)

    def count(self, request: Request, call: Call, *limits: Limit) -> None:
        """Count a request in all limits, with one round trip to the shared store.

        :raises Throttled: if there were too many.
        """
        call.counted = None
        for verdict in self._limiter.count(request, call, limits):
            call.counted = verdict
            if verdict.exceeded is not None:
                raise Throttled(retry_after=_retry_after(verdict))

    def fields(self, call: Call) -> list[tuple[str, str]]:
        """Return the limit that a request was counted in last, as response fields."""
        verdict = call.counted
        if verdict is None or (not self._shows_all and verdict.exceeded is None):
            return []
        window = verdict.windows[verdict.exceeded or 0]
        return [
            ("X-RateLimit-Limit", str(window.item.amount)),
            ("X-RateLimit-Remaining", str(max(window.remaining, 0))),
            ("X-RateLimit-Reset", str(_seconds_until(window.reset))),
        ]

    def has_store(self) -> bool:
        """Return whether the storage of the counts can be used."""
        return bool(self._limiter.storage.check())


def _retry_after(verdict: Verdict) -> int:
    """Return the whole seconds after which one more request is allowed."""
    # Of several limits the first that is exceeded is reported, and a longer one may be used up as well.
    resets = [window.reset for window in verdict.windows if window.remaining <= 0]
    return _seconds_until(max(resets, default=0.0))


def _seconds_until(reset: float) -> int:
    return max(1, math.ceil(reset - time.time()))
