"""flask-sse-relay: streams an upstream's `text/event-stream` to browsers, safely, unchanged, at once."""

from .extension import SSE
from .protocol.event import ServerSentEvent

__all__ = ["SSE", "ServerSentEvent"]
