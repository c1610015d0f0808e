"""flask-sse-relay: streams an upstream's `text/event-stream` to browsers, safely, unchanged, at once."""

from .extension import SSE, end_with_worker
from .protocol.event import ServerSentEvent
from .web.own import EventSourceResponse, last_event_id

__all__ = ["SSE", "EventSourceResponse", "ServerSentEvent", "end_with_worker", "last_event_id"]
