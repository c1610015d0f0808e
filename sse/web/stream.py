"""What every stream to a client has: a watched exchange, a report, what is released at its end, and the pump."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Self

from flask import Request

from ..relay.cleanup import Cleanup
from ..relay.exchange import Cancellable, Exchange, Limits
from ..relay.stream.end import StreamEnd
from ..relay.stream.pump import HEARTBEAT, Pump
from ..relay.stream.source import Source
from .call import Call
from .connection import client_connection
from .report import StreamReport
from .state import State


class ClientStream:
    """A stream to a client, until its response is made; a block at whose end what it holds is released.

    From then on the pump releases it, which is the body of the response.

    :param exchange: of the request, if it has begun and is monitored.
    """

    def __init__(
        self, request: Request, call: Call, state: State, limits: Limits, exchange: Exchange | None = None
    ) -> None:
        self.held = Cleanup()
        self._request = request
        self._call = call
        self._state = state
        self._client = client_connection(request.environ)
        self._is_new, self._has_pump = exchange is None, False
        self.exchange = exchange or Exchange(self._client.socket, limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._has_pump:
            self.held.close()

    @cached_property
    def report(self) -> StreamReport:
        """Made when the call's upstream is known."""
        return StreamReport(self._call, self._state.metrics)

    def monitor(self) -> None:
        """Keep the deadlines of the exchange from now on."""
        if self._is_new:
            self._state.monitor.add(self.exchange)
            self.held.add(partial(self._state.monitor.discard, self.exchange))

    def count(self) -> None:
        """Count the stream as open, until its end, which comes too if the client's credential is valid no more."""
        rules = self._call.rules
        if rules is not None and rules.is_temporary:
            self.exchange.is_admitted = partial(self._state.access.directory.is_valid, rules)
        self.report.begin(self.exchange)
        if self._state.metrics is not None:
            self.held.add(self.report.finish)

    def begin(self, source: Cancellable) -> None:
        """Begin a stream of the site's own, whose source ends with the exchange."""
        self.exchange.upstream.attach(source)
        self.count()
        self.monitor()
        self.exchange.watch_client()

    def pump(
        self,
        source: Source,
        *,
        status: int = 200,
        is_event_stream: bool = True,
        heartbeat: float,
        limit: int = 0,
        holds_back: bool = False,
        has_opening: bool = False,
    ) -> Pump:
        """Return the body of the response, which from now on holds what the stream holds.

        :param limit: bytes after which the response is aborted; 0 is no limit.
        :param holds_back: whether only whole events are sent to a client that cannot be shown an abort.
        :param has_opening: whether it begins with a comment if the server sends no head before the first byte.
        """
        pump = Pump(
            source,
            self.exchange,
            status=status,
            is_event_stream=is_event_stream,
            heartbeat=heartbeat,
            limit=limit,
            has_body=self._request.method != "HEAD" and status not in (204, 304),
            abort=self._client.abort,
            holds_back=holds_back and self._client.socket is None,
            opening=HEARTBEAT if has_opening and not self._client.sends_head else b"",
            # It keeps nothing of the request, because a stream may be open for hours.
            on_end=partial(_finish, self.exchange, self.held, self.report),
        )
        self._has_pump = True
        return pump


def _finish(exchange: Exchange, held: Cleanup, report: StreamReport, end: StreamEnd) -> None:
    # First, because a client that closes its connection behind a response has not left.
    exchange.client.close()
    held.close()
    report.log_end(end)
