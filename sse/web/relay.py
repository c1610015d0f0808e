"""The way from a request to the response that relays an upstream; all views that relay go it."""

from __future__ import annotations

import time
from typing import Self

from flask import Response

from ..errors import ClientGone, Draining, EndedByOperator, SSEError
from ..protocol.field import is_event_stream, response_fields
from ..protocol.target.entry import Upstream
from ..relay.cleanup import Cleanup
from ..relay.drain import Phase
from ..relay.exchange import Exchange
from ..relay.stream.end import EndReason, StreamEnd
from ..relay.upstream.client import RETRY_AFTER
from ..relay.upstream.request import UpstreamRequest
from ..relay.upstream.response import UpstreamResponse
from .access.policy import check_call
from .meter import new_meter
from .recorded import Attempt, usable_recordings
from .response import stream_response
from .resume import Resume
from .stream import ClientStream

#: Bytes of an upstream's error response that are relayed.
MAX_ERROR_BODY = 64 * 1024


class Relay(ClientStream):
    """One exchange with an upstream, until its response is made.

    :raises Draining: at the begin of the block, if the process is about to stop.
    """

    def __enter__(self) -> Self:
        if self._state.drain.phase() >= Phase.FINISHING:
            raise Draining(retry_after=RETRY_AFTER)
        self.monitor()
        return self

    def respond(self, outgoing: UpstreamRequest, entry: Upstream | None, resume: Resume | None = None) -> Response:
        """Send a request to the upstream and return the response that relays its response.

        :param entry: the upstream's in the table; None for a public target.
        :param resume: how to record the response, None if it is not recorded.
        :raises SSEError: if there are too many streams, or the upstream cannot be reached.
        """
        check_call(self._call, entry, outgoing)
        if resume is None or (recordings := usable_recordings(self._state, self._request)) is None:
            return self._relay(outgoing, entry, None)
        with Attempt(resume, outgoing, self._call, self._state, recordings) as attempt:
            return attempt.attach(self.exchange, self.held) or self._relay(outgoing, entry, attempt)

    def _relay(self, outgoing: UpstreamRequest, entry: Upstream | None, attempt: Attempt | None) -> Response:
        taken = self.held
        if attempt is not None:
            # What a recorder takes over: the lease, and the upstream.
            taken = Cleanup()
            self.held.add(taken.close)
        rules = self._call.rules
        taken.add(self._state.leases.take(self._call.client, rules.max_streams if rules is not None else None))
        # With a lease, because then only as many streams as the client may have are not charged yet; and for the same
        # reason the charge comes before the lease is released.
        meter = new_meter(outgoing, self._call, self._state, self.exchange)
        self.count()
        if attempt is None or not attempt.outlives_client:
            self.exchange.watch_client()
        upstream = self._open(outgoing, entry)
        taken.add(upstream.close)
        self.report.count(upstream.status)
        fields = response_fields(upstream.fields, listed=entry.response_headers if entry is not None else ())
        if outgoing.method == "HEAD":
            # RFC 9110, section 9.3.2: the fields of a HEAD "as if the request method had been GET".
            lengths = [value for name, value in upstream.fields if name.lower() == "content-length"]
            # Values that are repeated are equal.
            fields.extend([("Content-Length", value.partition(",")[0].strip(" \t")) for value in lengths[:1]])
        named = {name.lower(): value for name, value in fields}
        if meter is not None and meter.attach(upstream, named):
            taken.add(meter.settle)
        # A stream may be open for hours, and needs them no more.
        upstream.fields.clear()
        reader = None
        if attempt is not None:
            reader = attempt.record(upstream, fields, self.exchange, taken)
            attempt.watch(self.exchange)
        is_error = upstream.status >= 400
        pump = self.pump(
            # Nothing of the gateway's is put into a recording, nor between the events of a stream that is compressed.
            reader or upstream,
            status=upstream.status,
            is_event_stream=reader is None
            and not is_error
            and is_event_stream(named["content-type"])
            and "content-encoding" not in named,
            heartbeat=self._state.settings.relay_heartbeat,
            limit=MAX_ERROR_BODY if is_error else 0,
            holds_back=True,
        )
        try:
            fields.extend(attempt.fields if reader is not None and attempt is not None else ())
            # The upstream's own limits go before those of the gateway.
            limits = self._state.access.throttle.fields(self._call)
            fields.extend([field for field in limits if field[0].lower() not in named])
            if is_error:
                # So that it is not taken for a refusal of the gateway's own.
                fields.append(("X-Upstream-Status", str(upstream.status)))
            return stream_response(pump, status=upstream.status, fields=fields, call=self._call)
        except BaseException:
            pump.close_unsent()
            raise

    def _open(self, outgoing: UpstreamRequest, entry: Upstream | None) -> UpstreamResponse:
        if self._state.demonstration is not None:
            self._state.demonstration.ensure_started()
        try:
            if entry is None or not entry.targets:
                return self._state.upstreams.open(outgoing, self.exchange.upstream)
            return self._state.failover.open(outgoing, entry, self.exchange, self._call.log_fields)
        except SSEError as error:
            self._call.end = _unopened(error, self.exchange)
            raise


def _unopened(error: SSEError, exchange: Exchange) -> StreamEnd:
    """Return how a stream ended that never began."""
    reasons = {
        ClientGone: EndReason.CLIENT_GONE,
        Draining: EndReason.DRAINING,
        EndedByOperator: EndReason.ENDED_BY_OPERATOR,
    }
    elapsed = time.monotonic() - exchange.started
    return StreamEnd(
        reason=reasons.get(type(error), EndReason.UPSTREAM_FAILED),
        status=error.status,
        events=0,
        bytes=0,
        head=elapsed,
        first_byte=None,
        longest_gap=None,
        total=elapsed,
    )
