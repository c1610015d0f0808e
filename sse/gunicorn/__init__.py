"""gunicorn's gevent worker, made for streams: one that waits for its upstream takes no greenlet, and so little memory.

An answer begins in the greenlet of its connection, as any other. When there is nothing to do but wait for the upstream,
the greenlet ends, and from then on the hub itself takes each piece from the body and sends it. What may wait for
something else (a client that is slow, the end of the stream) is done in a greenlet again. Other answers, and
connections with TLS, are left to gunicorn.
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
