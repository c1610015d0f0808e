"""How often something may be done: limits that Flask-Limiter counts, in memory, in a store, or in the site's way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flask import Flask, Request, Response, request
from flask_limiter import Limiter
from flask_limiter.errors import RateLimitExceeded
from flask_limiter.util import get_remote_address
from limits import RateLimitItem, parse_many

from ...errors import Throttled
from ...relay.redis import SharedStore
from .limit_storage import Memory, SharedCounts

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


class Throttle:
    """Counts requests in a Limiter.

    :param limiter: the site's; None makes one that takes nothing from the site and adds nothing to it.
    :param store: what processes share, if they do; the site's own Limiter counts where it counts.
    :param on_absence: called each time the store is needed for a call and away.
    """

    def __init__(self, limiter: Limiter | None, *, store: SharedStore | None, on_absence: Callable[[], object]) -> None:
        self._is_own = limiter is None
        self._limiter = limiter or _own_limiter(store, on_absence)

    def limit(self, value: str, key: str, *, scope: str = "", counts: bool = True) -> Limit:
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

    def count(self, request: Request, limit: Limit) -> None:
        """Count a request.

        :raises Throttled: if there were too many.
        """
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

    def fields(self, request: Request, *, only_exceeded: bool) -> list[tuple[str, str]]:
        """Return what there is to say of the limit that a request was counted in, as response fields.

        :param only_exceeded: whether a limit that lets it in is not spoken of.
        """
        counted: Counted | None = request.environ.get("sse.counted")
        if counted is None or (only_exceeded and not counted.is_exceeded):
            return []
        reset, remaining = self._window(counted.item, counted.identifiers)
        return [
            ("X-RateLimit-Limit", str(counted.item.amount)),
            ("X-RateLimit-Remaining", str(max(remaining, 0))),
            ("X-RateLimit-Reset", str(_seconds_until(reset))),
        ]

    def has_store(self) -> bool:
        """Tell whether the store that the throttle is kept in can be used."""
        return bool(self._limiter.storage.check())


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


def _seconds_until(reset: float) -> int:
    return max(1, math.ceil(reset - time.time()))


def _never(_: Response) -> bool:
    return False
