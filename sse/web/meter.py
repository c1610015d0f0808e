"""Counts the tokens of one relayed response: for the log, the metrics and the client's quota."""

from __future__ import annotations

import time

from limits import RateLimitItem

from ..errors import QuotaExceeded
from ..protocol.field import is_event_stream
from ..protocol.usage import COUNTS, Usage, UsageTap, usage_state
from ..relay.exchange import Exchange
from ..relay.upstream.request import UpstreamRequest
from ..relay.upstream.response import UpstreamResponse
from .access.quota import tokens_of
from .call import Call
from .state import State

#: Types of the responses that may report usage, besides event streams.
_JSON, _LINES = "application/json", ("application/x-ndjson", "application/ndjson", "application/jsonl")


def new_meter(request: UpstreamRequest, call: Call, state: State, exchange: Exchange) -> Meter | None:
    """Return a meter of the tokens of a response, None if nothing needs one.

    :raises QuotaExceeded: if the client has spent its quota.
    """
    quota = (call.rules and call.rules.quota) or state.quota
    if quota is None and not state.settings.usage:
        return None
    if quota is not None and (seconds := state.quotas.retry_after(call.client, quota)) is not None:
        raise QuotaExceeded(retry_after=seconds)
    return Meter(request, call, state, exchange, quota)


class Meter:
    """What one upstream request may cost, and has cost.

    :param exchange: whose boundary, if it has one, counts the events that were sent.
    :param quota: the client's; None if it has none.
    """

    def __init__(
        self, request: UpstreamRequest, call: Call, state: State, exchange: Exchange, quota: RateLimitItem | None
    ) -> None:
        # Not the request itself: a stream may be open for hours, and its prompt may be megabytes.
        self._method, self._length = request.method, len(request.body or b"")
        self._call = call
        self._state = state
        self._exchange = exchange
        self._quota = quota
        self._tap: UsageTap | None = None
        self._upstream: UpstreamResponse | None = None
        self._is_encoded = self._has_events = False

    def attach(self, upstream: UpstreamResponse, fields: dict[str, str]) -> bool:
        """Begin to look at a response, if it may report usage; return whether it may.

        :param fields: of the response to the client, by names in lower case.
        """
        kind = fields.get("content-type", "").partition(";")[0].strip().lower()
        self._has_events = is_event_stream(kind) or kind in _LINES
        has_body = self._method != "HEAD" and 200 <= upstream.status < 300 and upstream.status != 204
        if not has_body or not (self._has_events or kind == _JSON):
            return False
        self._upstream, self._is_encoded = upstream, "content-encoding" in fields
        self._tap = upstream.tap = UsageTap(time.monotonic)
        return True

    def settle(self) -> None:
        """Report and charge what the response has cost; call it before the client's lease is released."""
        tap, upstream = self._tap, self._upstream
        if tap is None or upstream is None:
            return
        self._tap = None
        usage = None if self._is_encoded else tap.usage()
        state = usage_state(usage, is_complete=upstream.is_complete, is_encoded=self._is_encoded)
        log_fields = self._call.log_fields
        log_fields["usage"] = state
        if usage is not None:
            log_fields["model"] = usage.model
            counts = {name: getattr(usage, name) for name in COUNTS}
            log_fields.update({f"{name}_tokens": count for name, count in counts.items() if count is not None})
        if self._state.metrics is not None:
            first = tap.first_event and tap.first_event - self._exchange.started
            self._state.metrics.observe_usage(self._call.upstream, state, usage, first)
        if self._quota is not None:
            self._charge(usage, self._quota, is_complete=state == "final", pieces=tap.pieces)

    def _charge(self, usage: Usage | None, quota: RateLimitItem, *, is_complete: bool, pieces: int) -> None:
        boundary = self._exchange.boundary
        # Nothing counts the events of NDJSON, of a compressed stream or of a recording, but each piece has one or more.
        events = (boundary.events if boundary is not None else pieces) if self._has_events else 0
        tokens, is_estimated = tokens_of(
            usage,
            is_complete=is_complete,
            is_post=self._method == "POST",
            events=events,
            body=self._length,
        )
        if is_estimated:
            self._call.log_fields["charged"] = "estimated"
        self._state.quotas.charge(self._call.client, quota, tokens)
