"""An iterable of the site's as a source: read as fast as it is passed on, closed on every ending.

A generator cannot be closed while it runs, and only a thread of its own lets others notice that it is silent. In a
greenlet, what it waits for is interrupted, so that it ends at once; a thread ends when what it waits for does.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gevent
from gevent import monkey

#: Threads that may wait for iterables at the same time: one whose client has left cannot be interrupted.
MAX_THREADS = 256

_threads = threading.BoundedSemaphore(MAX_THREADS)


class StreamCancelled(gevent.GreenletExit):  # type: ignore[misc]  # gevent leaves its compiled parts untyped
    """Raised where an iterable waits, in a greenlet, when its stream is cancelled; `finally` and `with` see it."""


class IterableFailed(Exception):
    """The iterable raised an OSError: as it is, servers would take it for the client's leaving and not report it."""


class Producer:
    """The items of an iterable, encoded; they are produced where their reader waits for them.

    :param items: taken only as fast as they are passed on; closed in the end, whatever that end is.
    :param encode: makes the bytes of an item; never none.
    :param on_start: called with this producer before the first item is taken.
    """

    def __init__(
        self, items: Iterable[object], encode: Callable[[Any], bytes], *, on_start: Callable[[Producer], None]
    ) -> None:
        self._items = items
        self._encode = encode
        self._on_start: Callable[[Producer], None] | None = on_start
        self._iterator: Iterator[object] | None = None
        self._is_cancelled = False
        #: The greenlet that waits for the next item, to be interrupted.
        self._waiting: Any = None
        self._loop: Any = None
        #: What was produced and not read yet: a piece, b"" at the end, or what was raised.
        self._piece: bytes | BaseException | None = None

    def read(self) -> bytes | None:
        """Return the next piece, None if it has not been produced yet, b"" at the end.

        :raises IterableFailed: if the iterable raised an OSError; what else it raised is raised as it is.
        """
        self._start()
        piece = self._piece
        if self._is_cancelled or piece == b"":
            return b""
        self._piece = None
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def wait(self, timeout: float | None) -> None:
        """Produce the next piece."""
        self._piece = self._produce()

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        """Return None: the iterable waits where it is read."""

    def cancel(self) -> None:
        """End the stream, interrupting the iterable where that is possible."""
        self._is_cancelled = True
        waiting = self._waiting
        if isinstance(waiting, gevent.Greenlet):
            # Only the hub may throw into a greenlet, and it alone can be sure that the greenlet waits.
            self._loop.run_callback_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        if self._waiting is not None:
            self._waiting.throw(StreamCancelled)

    def close(self) -> None:
        """End the stream and close the iterable; may be called again."""
        self.cancel()
        self._close_items()

    def _start(self) -> None:
        on_start, self._on_start = self._on_start, None
        if on_start is not None:
            on_start(self)

    def _produce(self) -> bytes | BaseException:
        """Return the next piece, b"" at the end, or what was raised; the iterable is closed where it ends."""
        try:
            item = self._next()
            return self._encode(item)
        except (StopIteration, StreamCancelled):
            self._close_items()
            return b""
        except OSError as error:
            self._close_items()
            failure = IterableFailed(f"the iterable raised {type(error).__name__}")
            failure.__cause__ = error
            return failure
        except Exception as error:
            self._close_items()
            return error

    def _next(self) -> object:
        if self._is_cancelled:
            raise StreamCancelled
        if self._iterator is None:
            self._iterator = iter(self._items)
        self._loop = gevent.get_hub().loop
        self._waiting = gevent.getcurrent()
        try:
            return next(self._iterator)
        finally:
            self._waiting = None

    def _close_items(self) -> None:
        items, self._items = self._items, ()
        iterator, self._iterator = self._iterator, None
        if iterator is not None and iterator is not items:
            _close(iterator)
        _close(items)


def make_producer(
    items: Iterable[object],
    encode: Callable[[Any], bytes],
    *,
    heartbeat: float,
    on_start: Callable[[Producer], None],
) -> Producer:
    """Return a producer for an iterable; it has a thread of its own if a heartbeat needs one and there may be another.

    :param heartbeat: seconds of silence to be noticed; 0 is none.
    """
    if not heartbeat or isinstance(items, list | tuple):
        return Producer(items, encode, on_start=on_start)
    if monkey.is_module_patched("threading"):
        # A greenlet: it can be interrupted.
        return ThreadProducer(items, encode, on_start=on_start)
    if not _threads.acquire(blocking=False):
        return Producer(items, encode, on_start=on_start)
    return ThreadProducer(items, encode, on_start=on_start, on_exit=_threads.release)


class ThreadProducer(Producer):
    """The items of an iterable that runs in a thread of its own, a greenlet where threads are patched.

    It is one item ahead of its reader at most, which may wait for it with a time-out, or subscribe.

    :param on_exit: called when the thread has ended, or will not begin.
    """

    def __init__(
        self,
        items: Iterable[object],
        encode: Callable[[Any], bytes],
        *,
        on_start: Callable[[Producer], None],
        on_exit: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(items, encode, on_start=on_start)
        self._on_exit = on_exit
        self._is_running = False
        #: Whether the piece that was produced last has been read, but not yet been passed on.
        self._is_read = False
        #: Wakes the thread to produce the next item.
        self._requests: queue.SimpleQueue[None] = queue.SimpleQueue()
        #: What the thread has produced.
        self._ready: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        self._wake: Callable[[], None] | None = None

    def read(self) -> bytes | None:
        if not self._is_running:
            self._start()
            self._is_running = True
            run = contextvars.copy_context().run
            threading.Thread(target=run, args=(self._run,), name="sse-producer", daemon=True).start()
        if self._is_read:
            self._is_read = False
            self._requests.put(None)
        if self._piece is None:
            self.wait(0)
        piece = super().read()
        self._is_read = bool(piece)
        return piece

    def wait(self, timeout: float | None) -> None:
        """Wait for the next piece."""
        if self._piece is None and not self._is_cancelled:
            try:
                self._piece = self._ready.get(block=timeout != 0, timeout=timeout)
            except queue.Empty:
                return

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None] | None:
        schedule = gevent.get_hub().loop.run_callback_threadsafe
        self._wake = lambda: schedule(wake)
        if not self._ready.empty():
            self._wake()
        return self._unsubscribe

    def _unsubscribe(self) -> None:
        self._wake = None

    def cancel(self) -> None:
        super().cancel()
        self._requests.put(None)
        self._put(b"")

    def close(self) -> None:
        """End the stream; the iterable is closed by its thread, if that has begun."""
        self.cancel()
        if not self._is_running:
            self._close_items()
            self._exit()

    def _exit(self) -> None:
        on_exit, self._on_exit = self._on_exit, None
        if on_exit is not None:
            on_exit()

    def _put(self, piece: bytes | BaseException) -> None:
        self._ready.put(piece)
        if (wake := self._wake) is not None:
            wake()

    def _run(self) -> None:
        try:
            self._run_items()
        finally:
            self._exit()

    def _run_items(self) -> None:
        while True:
            try:
                piece = self._produce()
            except BaseException as error:
                piece = error
            if isinstance(piece, BaseException) and self._is_cancelled:
                # There is no reader any more, so it is reported where threads report what was raised in them.
                raise piece
            self._put(piece)
            if not piece or isinstance(piece, BaseException):
                return
            self._requests.get()


def _close(iterable: object) -> None:
    close = getattr(iterable, "close", None)
    if close is not None:
        close()
