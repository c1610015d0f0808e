"""Write log lines without ever waiting for who reads them.

A log usually goes to a pipe or a socket. If its reader stops, a plain write waits for ever, and with it the event loop,
every stream and gunicorn's master. This module imports nothing of the package, because gunicorn.conf.py loads it into
the master.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

from gevent.monkey import get_original

#: Bytes of lines that are kept while they cannot be written; further lines are lost.
LIMIT = 1 << 20
#: Seconds between two attempts to write what is kept, and that a process may take for it when it ends.
INTERVAL, FINISH_TIME = 0.05, 1.0
#: Bytes of a pipe that are left free, so that processes that write to it at once do not fill it.
PIPE_ROOM = 1 << 14


class BackgroundStream(io.TextIOBase):
    """A text stream for `logging.StreamHandler` whose `write` never waits.

    :param stream: where the lines go; its file descriptor is used.
    :param report: is called with the number of lost lines when lines can be written again.
    """

    def __init__(self, stream: TextIO, report: Callable[[int], object]) -> None:
        self._fd = stream.fileno()
        self._write_some = _writer(self._fd)
        self._report = report
        # The system's own: nothing waits while it is held, and gevent's takes eight calls.
        self._lock = get_original("_thread", "RLock")()
        self._pid = os.getpid()
        self._kept: deque[bytes] = deque()
        self._size = self._lost = 0
        self._is_draining = False
        atexit.register(self._finish)

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Write a line, or keep it until it can be written."""
        data = text.encode(errors="backslashreplace")
        with self._lock:
            if self._pid != os.getpid():
                self._forget_parent()
            if not self._kept:
                data = data[self._write_some(data) :]
            if data:
                self._keep(data)
        return len(text)

    def _forget_parent(self) -> None:
        """Leave the lines that were kept before a fork to the parent process."""
        self._pid, self._size, self._lost, self._is_draining = os.getpid(), 0, 0, False
        self._kept.clear()

    def _keep(self, data: bytes) -> None:
        if self._size + len(data) > LIMIT:
            self._lost += 1
            return
        self._size += len(data)
        self._kept.append(data)
        if not self._is_draining:
            self._is_draining = True
            # Under gevent a greenlet, elsewhere a thread.
            threading.Thread(target=self._drain, name="sse-log", daemon=True).start()

    def _drain(self) -> None:
        while not self._flush_kept():
            time.sleep(INTERVAL)

    def _flush_kept(self) -> bool:
        """Write what is kept as far as possible, and return whether nothing is left."""
        with self._lock:
            while self._kept:
                written = self._write_some(self._kept[0])
                self._size -= written
                if written < len(self._kept[0]):
                    self._kept[0] = self._kept[0][written:]
                    return False
                self._kept.popleft()
            self._is_draining = False
            lost, self._lost = self._lost, 0
        if lost:
            self._report(lost)
        return True

    def _finish(self) -> None:
        if self._pid != os.getpid():
            return
        deadline = time.monotonic() + FINISH_TIME
        while not self._flush_kept() and time.monotonic() < deadline:
            time.sleep(INTERVAL)


class LineHandler(logging.StreamHandler[BackgroundStream]):
    """A handler for such a stream, which has the lock that is needed."""

    def createLock(self) -> None:
        self.lock = None


def in_background(stream: TextIO, report: Callable[[int], object]) -> TextIO | BackgroundStream:
    """Return a stream whose `write` never waits; the stream itself if it has no file descriptor."""
    try:
        return BackgroundStream(stream, report)
    except (AttributeError, OSError):
        return stream


def _writer(fd: int) -> Callable[[bytes], int]:
    """Return what writes as many bytes as are possible at once, and returns their number."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _socket_writer(fd)
    has_room = _pipe_room(fd) if stat.S_ISFIFO(mode) and sys.platform == "linux" else _poll(fd)

    def write(data: bytes) -> int:
        try:
            return os.write(fd, data) if stat.S_ISREG(mode) or has_room(len(data)) else 0
        except BlockingIOError:
            return 0
        except OSError:
            # Its reader is gone, or a disk is full: there is no place to log it.
            return len(data)

    return write


def _socket_writer(fd: int) -> Callable[[bytes], int]:
    # The system's own: gevent's would wait.
    plain = get_original("socket", "socket")(fileno=os.dup(fd))

    def write(data: bytes) -> int:
        try:
            return int(plain.send(data, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    return write


def _pipe_room(fd: int) -> Callable[[int], bool]:
    import fcntl
    import termios

    size = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    has_page = _poll(fd)

    def has_room(length: int) -> bool:
        used = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
        return used == 0 or (used + length + PIPE_ROOM <= size and has_page(length))

    return has_room


def _poll(fd: int) -> Callable[[int], bool]:
    import select

    # gevent's poll would switch to another greenlet in the middle of a log call.
    poll: Any = get_original("select", "poll")()
    poll.register(fd, select.POLLOUT)
    return lambda length: bool(poll.poll(0))
