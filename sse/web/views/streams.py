"""`/streams/<id>`: read a recording from any position, stop it, or erase it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from flask import Request, Response

from ...errors import (
    ClientGone,
    Draining,
    InvalidOffset,
    InvalidRequest,
    NotFound,
    OffsetExpired,
    StreamExpired,
    StreamInterrupted,
)
from ...protocol.field import is_event_stream
from ...protocol.parser import EventParser
from ...relay.durable import Recordings
from ...relay.log.base import Snapshot, Trimmed
from ...relay.log.events import EventReader, encode_offset
from ...relay.stream.end import EndReason
from ...relay.stream.source import TruncatedBody
from ...relay.upstream.client import RETRY_AFTER
from ..call import Call, current_request
from ..recorded import Reading, find
from ..resume import parse_offset
from ..state import State, current_state
from .refusal import check_method

ALLOWED = ("GET", "HEAD", "PATCH", "DELETE", "OPTIONS")

#: Bytes of one response to a client that does not follow.
MAX_READ = 1024 * 1024
#: Seconds for which a long poll waits for the first byte.
LONG_POLL = 25.0


def stream(id: str) -> Response:
    """Serve a recording, or end it."""
    (request, call), state = current_request(), current_state()
    if (options := check_method(request.method, ALLOWED)) is not None:
        return options
    state.access.admit(request, call)
    recordings = state.recordings
    if recordings is None:
        raise NotFound
    if request.method in ("PATCH", "DELETE"):
        return _end(request, call, recordings, id)
    view = request.args.get("live", "")
    if view not in _VIEWS:
        raise InvalidRequest("live: must be long-poll, tail or events; without it, what is there is returned")
    snapshot = find(recordings, id, call)
    call.upstream = snapshot.header.upstream
    if state.metrics is not None:
        state.metrics.resumes.labels(view or "now").inc()
    response = _VIEWS[view](_Query(request, call, state, recordings, id, snapshot))
    response.headers["Cache-Control"] = "no-store"
    return response


def _end(request: Request, call: Call, recordings: Recordings, id: str) -> Response:
    """Stop a recording, and erase it if requested; doing it again is no error."""
    erase = request.method == "DELETE"
    if not erase and request.args.get("action") != "abort":
        raise InvalidRequest("action: must be abort")
    try:
        find(recordings, id, call)
    except StreamExpired:
        if not erase:
            raise
    recordings.log.stop(id, erase=erase)
    return Response(status=204)


@dataclass(frozen=True)
class _Query:
    """A request to read a recording, and the recording's state."""

    request: Request
    call: Call
    state: State
    recordings: Recordings
    id: str
    snapshot: Snapshot

    @property
    def is_complete(self) -> bool:
        return self.snapshot.reason is EndReason.COMPLETE

    def position(self, text: str | None = None) -> int:
        """Return the position that the request names, where something can be read, or will be.

        :param text: what names it, if `offset` does not.
        :raises InvalidOffset: if it names none.
        :raises OffsetExpired: if it is before what is kept.
        :raises StreamInterrupted: if nothing follows, and the recording is not complete.
        """
        snapshot = self.snapshot
        offset = parse_offset(self.request.args.get("offset", "") if text is None else text, snapshot.end)
        if offset < snapshot.start:
            raise OffsetExpired(encode_offset(snapshot.start))
        if self.is_complete and offset > snapshot.end:
            raise InvalidOffset(f"the stream is complete and has {snapshot.end} bytes")
        self.check_interrupted(offset)
        return offset

    def check_interrupted(self, offset: int) -> None:
        """Refuse a position behind which nothing follows, although the recording is not complete.

        :raises StreamInterrupted: if it is one.
        """
        if offset >= self.snapshot.end and self.snapshot.reason is not None and not self.is_complete:
            raise StreamInterrupted(str(self.snapshot.reason))

    def fields(self, offset: int) -> list[tuple[str, str]]:
        """Return what a client of durable-streams reads of its position."""
        fields = [("Stream-Next-Offset", encode_offset(offset))]
        if offset >= self.snapshot.end:
            fields.append(("Stream-Up-To-Date", "true"))
            if self.is_complete:
                fields.append(("Stream-Closed", "true"))
        return fields

    def read(self, offset: int) -> Response:
        """Return the bytes that are there from a position on."""
        data = b""
        if offset < self.snapshot.end:
            try:
                data = self.recordings.log.read(self.id, offset, MAX_READ)
            except Trimmed as error:
                raise OffsetExpired(encode_offset(error.start)) from error
        return Response(data, headers=self.fields(offset + len(data)), content_type="application/octet-stream")

    def reading(self, offset: int) -> Reading:
        """Begin to follow the recording from a position on."""
        return Reading(self.state, self.call, self.recordings, self.id, self.snapshot, offset)


def _now(query: _Query) -> Response:
    """Return the bytes that are there."""
    args = query.request.args
    # HEAD without a position describes the recording as a whole.
    return query.read(query.position("now" if query.request.method == "HEAD" and "offset" not in args else None))


def _long_poll(query: _Query) -> Response:
    """Return the bytes that are there, or the first that come."""
    offset = query.position()
    if offset >= query.snapshot.end and query.snapshot.reason is None:
        _wait(query, offset)
        query = replace(query, snapshot=find(query.recordings, query.id, query.call))
        query.check_interrupted(offset)
    if offset >= query.snapshot.end:
        return Response(status=204, headers=query.fields(offset))
    return query.read(offset)


def _wait(query: _Query, offset: int) -> None:
    """Wait until there is a byte at a position, the recording has ended, or the time is over."""
    deadline = time.monotonic() + LONG_POLL
    with query.reading(offset) as reading:
        try:
            while reading.reader.read() is None and (left := deadline - time.monotonic()) > 0:
                reading.reader.wait(left)
        except TruncatedBody:
            if reading.exchange.reason is EndReason.DRAINING:
                raise Draining(retry_after=RETRY_AFTER) from None
            if reading.exchange.reason is not None:
                raise ClientGone from None


def _tail(query: _Query) -> Response:
    """Stream the bytes to the end as they come, exactly as the upstream sent them."""
    offset = query.position()
    fields = [(name, value) for name, value in query.snapshot.header.fields if name.lower() == "content-type"]
    fields.append(("Stream-Next-Offset", encode_offset(offset)))
    if offset >= query.snapshot.end and query.is_complete:
        return Response(b"", headers=[*fields, ("Stream-Closed", "true")])
    return query.reading(offset).respond(fields)


def _events(query: _Query) -> Response:
    """Stream whole events, for an EventSource."""
    if not is_event_stream(dict(query.snapshot.header.fields).get("Content-Type", "")):
        raise InvalidRequest("live: the recording is not an event stream")
    text = query.request.headers.get("Last-Event-ID") or query.request.args.get("lastEventId")
    offset = query.position(text or None)
    if query.is_complete and not _has_event(query, offset):
        # WHATWG HTML, section 9.2.3: an EventSource does not come back after a status other than 200.
        return Response(status=204, headers=query.fields(query.snapshot.end))
    reading = query.reading(offset)
    reading.source = EventReader(reading.reader, max_event=query.state.settings.resume_max_bytes)
    fields = [("Content-Type", "text/event-stream; charset=utf-8")]
    return reading.respond(fields, is_event_stream=True)


def _has_event(query: _Query, offset: int) -> bool:
    """Return whether a whole event follows a position of a recording that has ended."""
    parser = EventParser(offset=offset, max_event=query.state.settings.resume_max_bytes)
    while offset < query.snapshot.end:
        piece = query.recordings.log.read(query.id, offset, MAX_READ)
        if not piece or parser.feed(piece):
            return bool(piece)
        offset += len(piece)
    return False


_VIEWS = {"": _now, "long-poll": _long_poll, "tail": _tail, "events": _events}
