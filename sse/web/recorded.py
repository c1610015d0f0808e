"""Record a relayed response, attach a request to a recording that there is, and read recordings."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from functools import cache
from typing import Self

from flask import Request, Response, request, url_for

from ..errors import (
    Draining,
    IdempotencyKeyReused,
    OffsetExpired,
    StreamNotFound,
)
from ..relay.cleanup import Cleanup
from ..relay.drain import Phase
from ..relay.durable import RecordingEnd, Recordings
from ..relay.exchange import Exchange, Limits
from ..relay.log.base import Claim, Expired, Header, Snapshot
from ..relay.log.events import encode_offset
from ..relay.stream.source import Source
from ..relay.upstream.client import RETRY_AFTER, ended
from ..relay.upstream.request import UpstreamRequest
from ..relay.upstream.response import UpstreamResponse
from .call import Call
from .report import RecordingReport
from .response import stream_response
from .resume import Resume, claim_key, fingerprint
from .state import State
from .stream import ClientStream

log = logging.getLogger("sse")

#: Seconds between two looks at whether a recording has begun that another request makes.
POLL = 0.05
#: The endpoint of `/streams/<id>`.
ENDPOINT = "sse_relay.stream"

Fields = Sequence[tuple[str, str]]


def find(recordings: Recordings, id: str, call: Call) -> Snapshot:
    """Return the state of a recording that the client may read.

    :raises StreamNotFound: if there is none, or it is another client's.
    :raises StreamExpired: if it has expired or was erased.
    :raises StoreUnavailable: if nothing is known.
    """
    try:
        snapshot = recordings.log.look(id)
    except Expired as error:
        _check_owner(error.owner, call)
        raise
    _check_owner(snapshot.header.owner, call)
    return snapshot


def _check_owner(owner: str, call: Call) -> None:
    # A client without a name is known by its address, which a phone changes; its right is the id alone.
    if owner.startswith("name:") and owner != call.client:
        raise StreamNotFound


class Reading(ClientStream):
    """A client's reading of a recording, until its response is made.

    :raises TooManyStreams: if the recording has enough readers.
    :raises Draining: if the process is about to stop, and the recording can be read from another one.
    """

    def __init__(
        self,
        state: State,
        call: Call,
        recordings: Recordings,
        id: str,
        snapshot: Snapshot,
        offset: int,
        exchange: Exchange | None = None,
    ) -> None:
        if state.drain.phase() >= (Phase.DRAINING if recordings.is_shared else Phase.FINISHING):
            raise Draining(retry_after=RETRY_AFTER)
        super().__init__(request, call, state, Limits(send=state.settings.send_timeout), exchange)
        self.reader = reader = recordings.log.follow(id, snapshot, offset)
        #: What the response is made of: the bytes as they are, unless it is changed.
        self.source: Source = reader
        self.held.add(reader.close)
        if exchange is None:
            self.exchange.watch_client()
        self.monitor()
        self.exchange.read_recording(reader, ends_early=recordings.is_shared)

    def respond(self, fields: Fields, *, status: int = 200, is_event_stream: bool = False) -> Response:
        """Return the response whose body is the recording.

        :param is_event_stream: whether heartbeats and an error event may be sent between events.
        """
        self.count()
        self.report.count(status)
        pump = self.pump(
            self.source,
            status=status,
            is_event_stream=is_event_stream,
            heartbeat=self._state.settings.heartbeat,
            holds_back=True,
        )
        return stream_response(pump, status=status, fields=fields, call=self._call)


def usable_recordings(state: State, request: Request) -> Recordings | None:
    """Return the recordings if every process that clients may reach can read them, else None."""
    recordings = state.recordings
    if recordings is None or recordings.is_shared or not request.environ.get("wsgi.multiprocess"):
        return recordings
    warn_of_memory()
    return None


@cache
def warn_of_memory() -> None:
    """Log, once in a process, why nothing is recorded."""
    log.warning("responses are not recorded: SSE_STORAGE_URI is memory://, and there are several processes")


class Attempt:
    """A request that wants its response to be recorded, until it is known whether it is.

    A block at whose end the idempotency key is released, unless something was recorded.
    """

    def __init__(
        self, resume: Resume, outgoing: UpstreamRequest, call: Call, state: State, recordings: Recordings
    ) -> None:
        self._resume = resume
        self._call = call
        self._state = state
        self._recordings = recordings
        self._key = claim_key(call.client, resume.key) if resume.key else ""
        self._claim = Claim(id=secrets.token_urlsafe(24), fingerprint=fingerprint(outgoing) if resume.key else "")
        self._is_mine = self._is_watched = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_mine:
            self._recordings.log.release(self._key, self._claim)

    @property
    def outlives_client(self) -> bool:
        """Whether the upstream request goes on if the client leaves before the response, because it can come back."""
        return bool(self._key)

    @property
    def fields(self) -> Fields:
        """Where the response is recorded."""
        return _place(self._claim.id, self._resume.ttl)

    def watch(self, exchange: Exchange) -> None:
        """Notice from now on that the client leaves."""
        if self.outlives_client and not self._is_watched:
            self._is_watched = True
            exchange.watch_client()

    def attach(self, exchange: Exchange, held: Cleanup) -> Response | None:
        """Return a response that reads the recording of the same request, None if this request is the first.

        :param exchange: of the request.
        :param held: what is released when the response has ended.
        :raises IdempotencyKeyReused: if the key is that of another request.
        :raises StoreUnavailable: if it cannot be known; then the request is not run, for it may run twice.
        """
        if not self._key or (found := self._find(exchange)) is None:
            return None
        self.watch(exchange)
        id_, snapshot = found
        if snapshot.start:
            raise OffsetExpired(encode_offset(snapshot.start))
        self._call.upstream = snapshot.header.upstream
        reading = Reading(self._state, self._call, self._recordings, id_, snapshot, 0, exchange)
        reading.held.take(held)
        header = snapshot.header
        return reading.respond([*header.fields, *_place(id_, header.ttl)], status=header.status)

    def _find(self, exchange: Exchange) -> tuple[str, Snapshot] | None:
        """Return the recording of the same request, None if this one has claimed the key; wait until that is known."""
        replaced: Claim | None = None
        while True:
            found = self._recordings.log.claim(self._key, self._claim, instead_of=replaced)
            if found.id == self._claim.id:
                self._is_mine = True
                return None
            if found.fingerprint != self._claim.fingerprint:
                raise IdempotencyKeyReused
            snapshot, replaced = self._look(found)
            if snapshot is not None:
                return found.id, snapshot
            if replaced is None:
                self.watch(exchange)
                time.sleep(POLL)
            if exchange.reason is not None:
                raise ended(exchange.reason)

    def _look(self, claim: Claim) -> tuple[Snapshot | None, Claim | None]:
        """Return the state of a claim's recording, and the claim if it can be replaced; none if it has not begun."""
        if not claim.has_begun:
            return None, None
        try:
            return self._recordings.log.look(claim.id), None
        except (StreamNotFound, Expired):
            return None, claim

    def record(self, upstream: UpstreamResponse, fields: Fields, exchange: Exchange, taken: Cleanup) -> Source | None:
        """Begin to record a response, and return what its client reads; None if it is not recorded.

        :param fields: that clients get.
        :param taken: what is released when the recording has ended, if there is one.
        """
        names = {name.lower() for name, _ in fields}
        has_body = request.method != "HEAD" and upstream.status != 204
        if not (200 <= upstream.status < 300 and has_body and "content-encoding" not in names):
            return None
        header = Header(
            owner=self._call.client,
            upstream=self._call.upstream,
            status=upstream.status,
            fields=tuple(fields),
            ttl=self._resume.ttl,
            leave=self._resume.leave,
            claim=self._key,
        )
        report = RecordingReport(self._call, self._state.metrics, self._claim.id)
        held = Cleanup()

        def on_end(end: RecordingEnd) -> None:
            held.close()
            report.log_end(end)

        report.begin()
        # Before, because the recording may end at once.
        held.take(taken)
        reader = self._recordings.record(self._claim.id, header, upstream, exchange, on_end)
        if reader is None:
            taken.take(held)
            report.finish()
            return None
        self._is_mine = False
        return reader


def _place(id: str, ttl: int) -> Fields:
    """Return where a response is recorded, and for how long."""
    return (("Location", url_for(ENDPOINT, id=id)), ("Stream-Next-Offset", encode_offset(0)), ("Stream-TTL", str(ttl)))
