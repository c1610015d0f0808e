"""The way from a request to the response that relays an upstream; all views that relay go it."""

from __future__ import annotations

import time
from functools import partial

from flask import Request, Response

from ..errors import ClientGone, Draining, EndedByOperator, SSEError
from ..protocol.field import is_event_stream, response_fields
from ..protocol.target.entry import Upstream
from ..relay.cleanup import Cleanup
from ..relay.drain import Phase
from ..relay.exchange import Exchange
from ..relay.stream.end import EndReason, StreamEnd
from ..relay.stream.pump import Pump
from ..relay.stream.source import Source
from ..relay.upstream.client import RETRY_AFTER
from ..relay.upstream.request import UpstreamRequest
from ..relay.upstream.response import UpstreamResponse
from .access.policy import check_call
from .call import Call
from .connection import client_connection
from .meter import new_meter
from .recorded import Attempt, usable_recordings
from .report import StreamReport
from .response import stream_response
from .resume import Resume
from .state import State

#: Bytes of an upstream's error response that are relayed.
MAX_ERROR_BODY = 64 * 1024


class Relay:
    """One exchange with an upstream, until its response is made; a block at whose end what it holds is released.

    :param request: the client's request.
    :raises Draining: at the begin of the block, if the process is about to stop.
    """

    def __init__(self, request: Request, call: Call, state: State) -> None:
        self._request = request
        self._call = call
        self._state = state
        self._held = Cleanup()
        self._client = client_connection(request.environ)
        self.exchange = Exchange(self._client.socket, state.limits)

    def __enter__(self) -> Relay:
        if self._state.drain.phase() >= Phase.FINISHING:
            raise Draining(retry_after=RETRY_AFTER)
        self._state.monitor.add(self.exchange)
        self._held.add(partial(self._state.monitor.discard, self.exchange))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

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
            return attempt.attach(self.exchange, self._held) or self._relay(outgoing, entry, attempt)

    def _relay(self, outgoing: UpstreamRequest, entry: Upstream | None, attempt: Attempt | None) -> Response:
        report = StreamReport(self._call, self._state.metrics)
        taken = self._held
        if attempt is not None:
            # What a recorder takes over: the lease, and the upstream.
            taken = Cleanup()
            self._held.add(taken.close)
        rules = self._call.rules
        taken.add(self._state.leases.take(self._call.client, rules.max_streams if rules is not None else None))
        # With a lease, because then only as many streams as the client may have are not charged yet; and for the same
        # reason the charge comes before the lease is released.
        meter = new_meter(outgoing, self._call, self._state, self.exchange)
        if rules is not None and rules.is_temporary:
            self.exchange.is_admitted = partial(self._state.access.is_valid, rules)
        report.begin(self.exchange)
        if self._state.metrics is not None:
            self._held.add(report.finish)
        if self._state.demonstration is not None:
            self._state.demonstration.ensure_started()
        if attempt is None or not attempt.outlives_client:
            self.exchange.watch_client()
        try:
            if entry is None or not entry.targets:
                upstream = self._state.upstreams.open(outgoing, self.exchange.upstream)
            else:
                upstream = self._state.failover.open(outgoing, entry, self.exchange, self._call.log_fields)
        except SSEError as error:
            self._call.end = _unopened(error, self.exchange)
            raise
        taken.add(upstream.close)
        report.count(upstream.status)
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
        pump = self._pump(upstream, named, report, reader)
        try:
            fields.extend(attempt.fields if reader is not None and attempt is not None else ())
            # The upstream's own limits go before those of the gateway.
            limits = self._state.access.rate_limit_fields(self._call)
            fields.extend([field for field in limits if field[0].lower() not in named])
            if upstream.status >= 400:
                # So that it is not taken for a refusal of the gateway's own.
                fields.append(("X-Upstream-Status", str(upstream.status)))
            return stream_response(pump, status=upstream.status, fields=fields, call=self._call)
        except BaseException:
            pump.close_unsent()
            raise

    def _pump(
        self, upstream: UpstreamResponse, named: dict[str, str], report: StreamReport, reader: Source | None
    ) -> Pump:
        """Return the body of the response, which from now on holds what the exchange holds.

        :param reader: of the recording, if there is one; nothing of the gateway's is put into it.
        """
        held, is_error = self._held, upstream.status >= 400

        pump = Pump(
            reader or upstream,
            self.exchange,
            status=upstream.status,
            # Nothing can be put between the events of a stream that is compressed.
            is_event_stream=reader is None
            and not is_error
            and is_event_stream(named["content-type"])
            and "content-encoding" not in named,
            heartbeat=self._state.settings.relay_heartbeat,
            limit=MAX_ERROR_BODY if is_error else 0,
            has_body=self._request.method != "HEAD" and upstream.status not in (204, 304),
            abort=self._client.abort,
            holds_back=self._client.socket is None,
            on_end=partial(_finish, self.exchange, held, report),
        )
        self._held = Cleanup()
        return pump


def _finish(exchange: Exchange, held: Cleanup, report: StreamReport, end: StreamEnd) -> None:
    # First, because a client that closes its connection behind a response has not left.
    exchange.client.close()
    held.close()
    report.log_end(end)


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
