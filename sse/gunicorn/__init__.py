"""gunicorn's gevent worker, made for streams: one that waits for its source takes no greenlet, and so little memory.

A response begins in the greenlet of its connection, as any other. When nothing is left but to wait for the source, the
greenlet ends and the stream is parked: the event loop itself takes each piece from the source and sends it. What may
wait for something else (a slow client, the end of the stream) is done in a greenlet again. Other responses, and
connections with TLS, are gunicorn's as always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .worker import StreamWorker as StreamWorker


def __getattr__(name: str) -> Any:
    """Import the worker when it is used: `settings` has to patch the standard library first."""
    if name != "StreamWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .worker import StreamWorker

    return StreamWorker
