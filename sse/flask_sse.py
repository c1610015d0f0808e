"""In place of Flask-SSE: its names and arguments on the channels of this project, so that only the import changes.

Differences: a reader that comes back gets what it has missed; readers take no connection to Redis each; without
`SSE_REDIS_URL` and `REDIS_URL` it works within one process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Flask, Response, current_app, request
from flask.sansio.app import App

from .extension import SSE
from .protocol.event import ServerSentEvent
from .protocol.parser import EventParser, ParsedEvent
from .relay.channel.history import parse_event_id
from .web.channel import publish_event, subscribe
from .web.own import last_event_id
from .web.state import state_of

log = logging.getLogger("sse")


@dataclass(repr=False)
class Message:
    """An event, as Flask-SSE has it.

    :param data: text, or what becomes JSON.
    :param type: the event type.
    :param id: sent instead of the id that lets a reader resume.
    :param retry: the reconnection time, in milliseconds.
    """

    data: Any
    type: str | None = None
    id: str | None = None
    retry: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, by name."""
        given = {"data": self.data, "type": self.type, "id": self.id, "retry": self.retry}
        return {name: value for name, value in given.items() if name == "data" or value is not None}

    def _event(self) -> ServerSentEvent:
        data = self.data if isinstance(self.data, str) else current_app.json.dumps(self.data)
        id_ = None if self.id is None else str(self.id)
        return ServerSentEvent(data=data, event=self.type, id=id_, retry=self.retry)

    def __str__(self) -> str:
        return self._event().encode().decode()

    def __repr__(self) -> str:
        return f"Message({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    def __hash__(self) -> int:
        return hash(tuple(map(str, self.to_dict().items())))


class ServerSentEventsBlueprint(Blueprint):
    """A blueprint that publishes, and streams `?channel=` to all that its `before_request` functions let in.

    An app that has no `SSE` gets one when the blueprint is registered.
    """

    def register(self, app: App, options: dict[str, Any]) -> None:
        super().register(app, options)
        assert isinstance(app, Flask)
        if "sse" not in app.extensions:
            url = app.config.get("SSE_REDIS_URL") or app.config.get("REDIS_URL")
            if url:
                app.config.setdefault("SSE_STORAGE_URI", url)
            SSE(app, relay=False, client=False)
        if not self.before_request_funcs:
            log.warning("sse.flask_sse: anybody may read any channel; a before_request function can refuse")

    def publish(
        self, data: Any, type: str | None = None, id: str | None = None, retry: int | None = None, channel: str = "sse"
    ) -> str:
        """Publish an event to a channel; its arguments are in Flask-SSE's order.

        :raises StoreUnavailable: if it was not published.
        """
        return publish_event(channel, Message(data, type, id, retry)._event())

    def messages(self, channel: str = "sse") -> Iterator[Message]:
        """Yield the messages of a channel from now on."""
        reader = state_of(current_app).channels.subscribe([channel])
        if reader is None:
            return
        parser = EventParser()
        try:
            while (piece := reader.read()) != b"":
                if piece is None:
                    reader.wait(None)
                    continue
                yield from (_message(event) for event in parser.feed(piece) if event.data is not None)
        finally:
            reader.close()

    def stream(self) -> Response:
        """Stream the channel that the query names, "sse" if it names none."""
        since = last_event_id()
        try:
            parse_event_id(since)
        except ValueError:
            # One that an event was given by its publisher, from which nothing can be resumed.
            since = ""
        return subscribe(request.args.get("channel") or "sse", since=since)


def _message(event: ParsedEvent) -> Message:
    type_ = None if event.type == "message" else event.type
    return Message(event.data, type=type_, id=event.last_event_id)


sse = ServerSentEventsBlueprint("sse", __name__)
sse.add_url_rule(rule="", endpoint="stream", view_func=sse.stream)
