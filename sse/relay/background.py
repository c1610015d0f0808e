"""Do what may wait without waiting for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import gevent
import gevent.monkey


def run_soon(function: Callable[..., object], *arguments: Any) -> None:
    """Call a function in a greenlet, or in a thread where threads are not gevent's; callable from the event loop.

    There, `threading.Thread.start()` would wait for the thread to begin.
    """
    if gevent.monkey.is_module_patched("threading"):
        gevent.spawn(function, *arguments)
    else:
        threading.Thread(target=function, args=arguments, name="sse-background", daemon=True).start()


def wake_soon(wake: Callable[[], object]) -> None:
    """Call a function that wakes a reader, from the event loop where there is one.

    It may switch to the reader's greenlet, which does not switch back to the caller's.
    """
    if isinstance(gevent.getcurrent(), gevent.Greenlet):
        gevent.get_hub().loop.run_callback(wake)
    else:
        wake()
