"""Calls an upstream that has several targets: in which order, and when the next one is tried.

A request that a target may have run is never sent to another one, unless it may be repeated (RFC 9110, section 9.2.2).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...errors import SSEError, TargetNotAllowed, UpstreamTimeout, UpstreamUnreachable
from ...protocol.field import replace_fields
from ...protocol.target.entry import Upstream, UpstreamTarget
from ...protocol.target.order import Bench, order_targets, parse_retry_after
from ..exchange import Exchange, Limits
from ..stream.source import TruncatedBody
from .client import IDEMPOTENT, NoHead, UpstreamClient, ended
from .request import UpstreamRequest
from .response import UpstreamResponse

#: Targets that are tried for one request.
MAX_ATTEMPTS = 3
#: Bytes that are read of a response that is not relayed, and the seconds that this may take, to keep its connection.
MAX_DISCARDED = 64 * 1024
MAX_DISCARDING = 0.1


class Failover:
    """The way to the upstreams of one app that have several targets.

    :param limits: of an exchange; the attempts of a request share the time for the head.
    :param on_attempt: called with the upstream, the target, and the status or the code of an attempt's outcome.
    """

    def __init__(
        self,
        upstreams: UpstreamClient,
        *,
        limits: Limits,
        on_attempt: Callable[[str, str, int | str], object] | None = None,
    ) -> None:
        self._upstreams = upstreams
        self._limits = limits
        self._on_attempt = on_attempt
        self._bench = Bench()

    def open(
        self, request: UpstreamRequest, entry: Upstream, exchange: Exchange, log_fields: dict[str, Any]
    ) -> UpstreamResponse:
        """Send a request to the targets of an upstream, one after the other, and return the response of the last one.

        :param request: as it would be sent to an upstream without targets.
        :param log_fields: gets the last target, and the number of attempts.
        :raises SSEError: if the last attempt fails; see `UpstreamClient.open`.
        """
        left = self._limits.head or math.inf
        deadline = time.monotonic() + left
        chosen = self._choose(request, entry)
        for number, target in enumerate(chosen, 1):
            limits = self._share(request, left, targets=len(chosen) - number + 1)
            if (reason := exchange.begin_attempt(limits)) is not None:
                raise ended(reason)
            log_fields["target"], log_fields["attempts"] = target.id, number
            outcome = self._attempt(request, entry, target, exchange)
            left = deadline - time.monotonic()
            if number == len(chosen) or left <= 0 or not _allows_next(outcome, entry, request.method):
                break
            if isinstance(outcome, UpstreamResponse):
                _discard(outcome)
        if isinstance(outcome, SSEError):
            raise outcome
        return outcome

    def _choose(self, request: UpstreamRequest, entry: Upstream) -> list[UpstreamTarget]:
        """Return the targets to try: those that are not benched, or else the one that is so for the shortest time."""
        order, now = order_targets(_affinity(request, entry), entry.targets), time.monotonic()
        free = [target for target in order if self._bench.end(entry.name, target.id) <= now]
        return free[:MAX_ATTEMPTS] or [min(order, key=lambda target: self._bench.end(entry.name, target.id))]

    def _share(self, request: UpstreamRequest, left: float, *, targets: int) -> Limits:
        """Return the limits of the next attempt.

        :param left: seconds for it and those that follow.
        :param targets: how many those are.
        """
        # An equal share for each that can follow, so that a silent target does not hide the others.
        share = left / targets if request.method in IDEMPOTENT else left
        if share in (self._limits.head, math.inf):
            return self._limits
        return replace(self._limits, open=min(self._limits.open, share), head=share)

    def _attempt(
        self, request: UpstreamRequest, entry: Upstream, target: UpstreamTarget, exchange: Exchange
    ) -> UpstreamResponse | SSEError:
        try:
            located = entry.locate(request.target, target.base)
            sent = replace(request, target=located, fields=replace_fields(request.fields, target.headers))
            response = self._upstreams.open(sent, exchange.upstream)
        except SSEError as error:
            self._count(entry, target, error.code)
            return error
        try:
            self._bench_limited(entry, target, response)
            self._count(entry, target, response.status)
        except BaseException:
            response.close()
            raise
        return response

    def _count(self, entry: Upstream, target: UpstreamTarget, outcome: int | str) -> None:
        if self._on_attempt is not None:
            self._on_attempt(entry.name, target.id, outcome)

    def _bench_limited(self, entry: Upstream, target: UpstreamTarget, response: UpstreamResponse) -> None:
        if response.status == 429:
            value = next((value for name, value in response.fields if name.lower() == "retry-after"), "")
            seconds = parse_retry_after(value.strip(" \t"), time.time())
            self._bench.add(entry.name, target.id, seconds, time.monotonic())


def _affinity(request: UpstreamRequest, entry: Upstream) -> str:
    """Return what keeps a request to one target: the value of a field, if it has it, or else the client's name."""
    if entry.affinity == "none":
        return str(random.random())
    if entry.affinity != "client":
        for name, value in request.fields:
            if name.lower() == entry.affinity:
                return value
    return request.client


def _allows_next(outcome: UpstreamResponse | SSEError, entry: Upstream, method: str) -> bool:
    """Return whether another target may get the request."""
    if isinstance(outcome, UpstreamResponse):
        return outcome.status in entry.retry
    if not isinstance(outcome, UpstreamUnreachable | UpstreamTimeout | TargetNotAllowed | NoHead):
        return False
    # A request of which nothing was sent cannot have been run.
    return outcome.should_retry is None or method in IDEMPOTENT


def _discard(response: UpstreamResponse) -> None:
    """Read a response to its end, so that its connection is kept; close it if there is much, or it takes time."""
    left, until = MAX_DISCARDED, time.monotonic() + MAX_DISCARDING
    try:
        while left > 0 and (piece := response.read()) != b"":
            left -= len(piece or b"")
            if piece is None and (seconds := until - time.monotonic()) > 0:
                response.wait(seconds)
            elif piece is None:
                break
    except TruncatedBody:
        pass
    finally:
        response.close()
