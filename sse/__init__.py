"""flask-sse-relay: streams an upstream's `text/event-stream` to browsers, safely, unchanged, at once."""

from .extension import SSE
from .protocol.event import ServerSentEvent
from .web.stream import EventSourceResponse, last_event_id

__all__ = ["SSE", "EventSourceResponse", "ServerSentEvent", "last_event_id"]
