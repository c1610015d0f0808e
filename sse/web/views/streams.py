"""`/streams/<id>`: read a recording from any position, stop it, or erase it."""

from __future__ import annotations

import time

from flask import Response, request

from ...errors import InvalidRequest, NotFound, OffsetExpired, StreamExpired, StreamInterrupted
from ...protocol.field import is_event_stream
from ...protocol.parser import EventParser
from ...relay.durable import Recordings
from ...relay.log.base import Expired, Snapshot, Trimmed
from ...relay.log.events import EventReader, encode_offset
from ...relay.stream.end import EndReason
from ...relay.stream.source import TruncatedBody
from ..call import current_call
from ..recorded import Reading, find, store
from ..resume import parse_offset
from ..state import current_state
from .refusal import check_method

ALLOWED = ("GET", "HEAD", "PATCH", "DELETE", "OPTIONS")

#: Bytes of one response to a client that does not follow.
MAX_READ = 1024 * 1024
#: Seconds for which a long poll waits for the first byte.
LONG_POLL = 25.0

Fields = list[tuple[str, str]]


def stream(id: str) -> Response:
    """Serve a recording, or end it."""
    if (options := check_method(ALLOWED)) is not None:
        return options
    state, call = current_state(), current_call()
    state.access.admit(request, call, None)
    recordings = state.recordings
    if recordings is None:
        raise NotFound
    if request.method in ("PATCH", "DELETE"):
        return _end(recordings, id, erase=request.method == "DELETE")
    snapshot = find(recordings, id, call)
    call.upstream = snapshot.header.upstream
    view = _VIEWS.get(request.args.get("live", ""))
    if view is None:
        raise InvalidRequest("live: must be long-poll, tail or events; without it, what is there is returned")
    if state.metrics is not None:
        state.metrics.count_resume(request.args.get("live", "now"))
    response: Response = view(recordings, id, snapshot)
    response.headers["Cache-Control"] = "no-store"
    return response


def _end(recordings: Recordings, id: str, *, erase: bool) -> Response:
    """Stop a recording, and erase it if that is wanted; doing it again is no error."""
    if not erase and request.args.get("action") != "abort":
        raise InvalidRequest("action: must be abort")
    try:
        find(recordings, id, current_call())
    except StreamExpired:
        if not erase:
            raise
    with store():
        recordings.log.stop(id, erase=erase)
    return Response(status=204)


def _position(snapshot: Snapshot, *, text: str | None = None) -> int:
    """Return the position that the request names, where something can be read, or will be.

    :raises InvalidOffset: if it names none.
    :raises OffsetExpired: if it is before what is kept.
    :raises StreamInterrupted: if nothing follows, and the recording is not complete.
    """
    offset = parse_offset(request.args.get("offset", "") if text is None else text, snapshot)
    if offset < snapshot.start:
        raise OffsetExpired(start=encode_offset(snapshot.start))
    if offset >= snapshot.end and snapshot.reason not in (None, EndReason.COMPLETE):
        raise StreamInterrupted(reason=str(snapshot.reason))
    return offset


def _state_fields(snapshot: Snapshot, offset: int) -> Fields:
    """Return what durable-streams has a client know of its position."""
    fields = [("Stream-Next-Offset", encode_offset(offset))]
    if offset >= snapshot.end:
        fields.append(("Stream-Up-To-Date", "true"))
        if snapshot.reason is EndReason.COMPLETE:
            fields.append(("Stream-Closed", "true"))
    return fields


def _now(recordings: Recordings, id: str, snapshot: Snapshot) -> Response:
    """Return the bytes that are there."""
    is_head = request.method == "HEAD"
    # HEAD without a position describes the recording as a whole.
    offset = _position(snapshot, text="now" if is_head and "offset" not in request.args else None)
    return _bytes(recordings, id, snapshot, offset)


def _bytes(recordings: Recordings, id: str, snapshot: Snapshot, offset: int) -> Response:
    data = b""
    if offset < snapshot.end:
        try:
            with store():
                data = recordings.log.read(id, offset, MAX_READ)
        except Trimmed as error:
            raise OffsetExpired(start=encode_offset(error.start)) from error
    fields = _state_fields(snapshot, offset + len(data))
    return Response(data, headers=fields, content_type="application/octet-stream")


def _long_poll(recordings: Recordings, id: str, snapshot: Snapshot) -> Response:
    """Return the bytes that are there, or the first that come."""
    offset = _position(snapshot)
    if offset >= snapshot.end and snapshot.reason is None:
        snapshot = _wait(recordings, id, snapshot, offset)
        if offset >= snapshot.end and snapshot.reason not in (None, EndReason.COMPLETE):
            raise StreamInterrupted(reason=str(snapshot.reason))
    if offset >= snapshot.end:
        return Response(status=204, headers=_state_fields(snapshot, offset))
    return _bytes(recordings, id, snapshot, offset)


def _wait(recordings: Recordings, id: str, snapshot: Snapshot, offset: int) -> Snapshot:
    """Wait until there is a byte at a position, the recording has ended, or the poll has; return the state then."""
    deadline = time.monotonic() + LONG_POLL
    with Reading(recordings, id, snapshot, offset) as reading:
        try:
            while reading.source.read() is None and (left := deadline - time.monotonic()) > 0:
                reading.source.wait(left)
        except TruncatedBody:
            reading.check()
    return find(recordings, id, current_call())


def _tail(recordings: Recordings, id: str, snapshot: Snapshot) -> Response:
    """Stream the bytes to the end as they come, exactly as the upstream sent them."""
    offset = _position(snapshot)
    fields = [(name, value) for name, value in snapshot.header.fields if name.lower() == "content-type"]
    fields.append(("Stream-Next-Offset", encode_offset(offset)))
    if offset >= snapshot.end and snapshot.reason is EndReason.COMPLETE:
        return Response(b"", headers=[*fields, ("Stream-Closed", "true")])
    return Reading(recordings, id, snapshot, offset).respond(fields, is_event_stream=False)


def _events(recordings: Recordings, id: str, snapshot: Snapshot) -> Response:
    """Stream whole events, for an EventSource."""
    if not is_event_stream(dict(snapshot.header.fields).get("Content-Type", "")):
        raise InvalidRequest("live: the recording is not an event stream")
    text = request.headers.get("Last-Event-ID") or request.args.get("lastEventId")
    offset = _position(snapshot, text=text or None)
    most = current_state().settings.resume_max_bytes
    if snapshot.reason is EndReason.COMPLETE and not _has_event(recordings, id, snapshot, offset):
        # WHATWG HTML, section 9.2.3: an EventSource stops at a status other than 200, 204 among them.
        return Response(status=204, headers=_state_fields(snapshot, snapshot.end))
    reading = Reading(recordings, id, snapshot, offset)
    reading.source = EventReader(reading.source, max_event=most)
    fields = [("Content-Type", "text/event-stream; charset=utf-8")]
    return reading.respond(fields, is_event_stream=True)


def _has_event(recordings: Recordings, id: str, snapshot: Snapshot, offset: int) -> bool:
    """Return whether a whole event follows a position of a recording that has ended."""
    parser = EventParser(offset=offset, max_event=MAX_READ)
    while offset < snapshot.end:
        with store():
            piece = recordings.log.read(id, offset, MAX_READ)
        if not piece or parser.feed(piece):
            return bool(piece)
        offset += len(piece)
    return False


_VIEWS = {"": _now, "long-poll": _long_poll, "tail": _tail, "events": _events}
