"""flask-sse-relay: relay event streams from LLM APIs to browsers, and send event streams of your own.

The public names are imported when they are first used, because gunicorn's master imports `sse.gunicorn.settings`, and
what it imports stays in it when new code is loaded by SIGHUP.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .extension import SSE, end_with_worker
    from .protocol.event import ServerSentEvent
    from .web.own import EventSourceResponse, last_event_id
    from .web.refused import Refused

__all__ = ["SSE", "EventSourceResponse", "Refused", "ServerSentEvent", "end_with_worker", "last_event_id"]

__version__ = "0.1.0"

#: Where each public name is defined.
_MODULES = {
    "SSE": ".extension",
    "end_with_worker": ".extension",
    "ServerSentEvent": ".protocol.event",
    "EventSourceResponse": ".web.own",
    "last_event_id": ".web.own",
    "Refused": ".web.refused",
}


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562).

    :raises AttributeError: if there is no such name.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
