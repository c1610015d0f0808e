"""Runs an iterable as the source of a pump: silences are noticed, and it is let go when the stream is cut.

A generator cannot be closed while it runs, and nothing but a thread of its own lets others notice that it is silent.
In a greenlet, what it waits for is interrupted, so that it ends at once; a thread ends when what it waits for does.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import gevent


class StreamCut(gevent.GreenletExit):  # type: ignore[misc]  # gevent leaves its compiled parts untyped
    """Raised where an iterable waits, in a greenlet, when its stream has been cut; `finally` and `with` see it."""


class IterableFailed(Exception):
    """The iterable raised an OSError: as it is, servers would take it for the client's leaving and say nothing."""


class Producer:
    """The items of an iterable, encoded: iterate `iter_chunks()` once, then close; closing alone is fine too.

    :param items: taken only as fast as they are passed on; closed in the end, whatever that end is.
    :param encode: makes the bytes of an item; never none.
    :param on_start: called with this producer when the first item is asked for, to have it watched.
    """

    def __init__(
        self,
        items: Iterable[object],
        encode: Callable[[Any], bytes],
        *,
        status: int,
        on_start: Callable[[Producer], None],
    ) -> None:
        self.status = status
        self._items = items
        self._encode = encode
        self._on_start = on_start
        self._pieces: Generator[bytes, None, None] | None = None
        self._is_cut = False
        #: The greenlet that waits for the next item, to be interrupted.
        self._waiting: Any = None
        #: Wakes the thread to produce the next item: at most one is under way.
        self._wanted: SimpleQueue[None] = SimpleQueue()
        #: What the thread has produced: a piece, None at the end, or what was raised.
        self._ready: SimpleQueue[bytes | BaseException | None] = SimpleQueue()

    def iter_chunks(self, *, silence: float | None = None) -> Iterator[bytes]:
        """Yield a piece for each item.

        :param silence: seconds after which b"" is yielded when there was no item; None: never, and no thread is used.
        :raises IterableFailed: if the iterable raises an OSError; what else it raises is raised as it is.
        """
        self._on_start(self)
        self._pieces = self._produced(silence) if silence else self._encoded()
        return self._pieces

    def _encoded(self) -> Generator[bytes, None, None]:
        """Yield the pieces from whatever greenlet or thread asks for them, and close the iterable."""
        iterator = iter(self._items)
        try:
            while not self._is_cut:
                try:
                    self._waiting = gevent.getcurrent()
                    try:
                        item = next(iterator)
                    finally:
                        self._waiting = None
                except (StopIteration, StreamCut):
                    return
                except OSError as error:
                    raise IterableFailed(f"the iterable raised {type(error).__name__}") from error
                yield self._encode(item)
        finally:
            _close(iterator)
            if iterator is not self._items:
                _close(self._items)

    def _produced(self, silence: float) -> Generator[bytes, None, None]:
        """Yield the pieces as a thread produces them."""
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._produce,), name="sse-producer", daemon=True).start()
        while True:
            try:
                piece = self._ready.get(timeout=silence)
            except Empty:
                yield b""
                continue
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                return
            yield piece
            self._wanted.put(None)

    def _produce(self) -> None:
        try:
            for piece in self._encoded():
                self._ready.put(piece)
                self._wanted.get()
            self._ready.put(None)
        except BaseException as error:
            if self._is_cut:
                # Nobody asks any more, so it is said where threads say what went wrong in them.
                raise
            self._ready.put(error)

    def wait_outside(self) -> None:
        """Return None: an iterable waits where it likes."""

    def shutdown(self, how: int = 0, /) -> None:
        """End the stream: it is what a socket's `shutdown()` is to a relayed one, and never waits."""
        self._is_cut = True
        self._wanted.put(None)
        self._ready.put(None)
        waiting = self._waiting
        if isinstance(waiting, gevent.Greenlet):
            # Only the hub may throw into a greenlet, and it alone can be sure that the greenlet waits.
            waiting.parent.loop.run_callback_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        if self._waiting is not None:
            self._waiting.throw(StreamCut)

    def close(self) -> None:
        """End the stream and close the iterable, in its own thread if it has one; may be called again."""
        self.shutdown()
        if self._pieces is not None:
            self._pieces.close()
        else:
            _close(self._items)


def _close(iterable: object) -> None:
    close = getattr(iterable, "close", None)
    if close is not None:
        close()
