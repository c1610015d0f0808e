"""Publish to channels and read them, from the views of a site."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from functools import cache

from flask import Response, current_app, has_request_context, request

from ..errors import Draining, InvalidRequest
from ..protocol.event import ServerSentEvent
from ..relay.channel.history import check_channel
from ..relay.channel.hub import MAX_CHANNELS
from ..relay.channel.reader import ChannelReader
from ..relay.drain import Phase
from ..relay.exchange import Limits
from ..relay.upstream.client import RETRY_AFTER
from ..signals import event_published
from .access.access import client_address
from .call import Call, current_call
from .own import Event, last_event_id
from .refused import refusing
from .response import PumpResponse, set_event_stream_fields
from .state import State, current_app_itself, state_of
from .stream import ClientStream

log = logging.getLogger("sse")


def publish(channel: str, data: Event, *, event: str | None = None, retry: int | None = None) -> str:
    """Publish an event to a channel and return its id; in a view, a command, or any process with an app context.

    :param channel: 1 to 200 of `A-Z a-z 0-9 . _ : ~ / @ -`.
    :param data: the event, its text, or what becomes JSON.
    :param event: the event type; None leaves it "message".
    :param retry: the reconnection time, in milliseconds.
    :raises ValueError: for a bad channel name, an event with an `id`, or one above `SSE_CHANNEL_MAX_EVENT`.
    :raises StoreUnavailable: if the event was not published; no reader gets it. In a view Flask turns it into a
        response unless the view catches it.
    """
    if not isinstance(data, ServerSentEvent):
        data = ServerSentEvent(data=data if isinstance(data, str) else current_app.json.dumps(data))
    if data.id is not None:
        raise ValueError("an event of a channel gets its id when it is published; id must be None")
    return publish_event(
        channel,
        dataclasses.replace(
            data, event=data.event if event is None else event, retry=data.retry if retry is None else retry
        ),
    )


@refusing()
def publish_event(channel: str, event: ServerSentEvent) -> str:
    """Do what `publish` does; the event may have an id of its own, from which a reader cannot resume."""
    state = state_of(app := current_app_itself())
    if len(event.encode()) > state.settings.channel_max_event:
        raise ValueError(f"the event is longer than SSE_CHANNEL_MAX_EVENT, {state.settings.channel_max_event} bytes")
    event_id = state.channels.publish(check_channel(channel), event)
    if state.metrics is not None:
        state.metrics.channel_events.inc()
    if state.settings.storage_uri == "memory://" and has_request_context() and request.environ.get("wsgi.multiprocess"):
        warn_of_memory()
    event_published.send(app, channel=channel, event=event, id=event_id)
    return event_id


@cache
def warn_of_memory() -> None:
    """Log, once in a process, that readers of other workers do not get what is published here."""
    log.warning("SSE_STORAGE_URI is memory://, so readers of other workers do not get what this one publishes")


@refusing()
def subscribe(
    *channels: str,
    since: str | None = None,
    replay: int = 0,
    duration: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response that streams channels to the client of the current request.

    A client that comes back gets what was published meanwhile, or `event: reset` if that is not kept any more.

    :param channels: up to 16; who may read them is for the view to decide.
    :param since: the last event ID that the client has had; None: that of the request.
    :param replay: past events that a client without an id gets, at most.
    :param duration: seconds after which the stream ends, and the client comes back; None: `SSE_MAX_DURATION`.
    :param headers: more response fields.
    :raises Refused: for a bad channel name, a malformed id, too many channels or readers, or if the store is
        unavailable; Flask turns it into a response unless the view catches it.
    """
    if not 1 <= len(channels) <= MAX_CHANNELS:
        raise InvalidRequest(f"a stream reads 1 to {MAX_CHANNELS} channels, not {len(channels)}")
    state, call = state_of(current_app), current_call()
    if state.drain.phase() >= Phase.FINISHING:
        raise Draining(retry_after=RETRY_AFTER)
    if request.method == "HEAD":
        return _finished(Response(status=200), call, headers)
    call.address = call.address or client_address(request, trusted_proxies=state.settings.trusted_proxies)
    call.client = call.client or f"address:{call.address}"
    settings = state.settings
    limits = Limits(send=settings.send_timeout, duration=settings.max_duration if duration is None else duration)
    with ClientStream(request, call, state, limits) as stream:
        stream.held.add(state.readers.take(call.client))
        reader = _reader(state, channels, since, replay)
        if reader is None:
            # WHATWG HTML, section 9.2.3: 204 makes an EventSource fail the connection, and not come back.
            return _finished(Response(status=204), call, headers)
        stream.held.add(reader.close)
        if state.metrics is not None:
            state.metrics.channel_readers.inc()
            stream.held.add(state.metrics.channel_readers.dec)
        call.upstream = f"own:{request.endpoint}"
        stream.begin(reader)
        pump = stream.pump(reader, heartbeat=settings.heartbeat)
    response = PumpResponse(pump, status=200)
    response.close_if_dropped(pump, call)
    return _finished(response, call, headers)


def _reader(state: State, channels: tuple[str, ...], since: str | None, replay: int) -> ChannelReader | None:
    try:
        channels = tuple(map(check_channel, channels))
        return state.channels.subscribe(channels, since=last_event_id() if since is None else since, replay=replay)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def _finished(response: Response, call: Call, headers: Mapping[str, str] | None) -> Response:
    set_event_stream_fields(response, call)
    response.headers.update(headers or {})
    return response
