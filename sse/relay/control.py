"""List and end the exchanges of this process, for commands that reach it by a Unix socket.

Each process listens at a socket of its own, in a directory that its user alone may enter: that is all of the access
check. A process that was killed leaves its socket behind, which the next command removes.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

from .exchange import Exchange, Report
from .monitor import Monitor
from .stream.end import EndReason

#: Seconds that either side waits for the other.
TIMEOUT = 5.0
#: Seconds until the next attempt to accept, where no file descriptor is left.
RETRY_INTERVAL = 1.0
#: Exchanges that are listed before others get their turn: well below a millisecond.
BATCH = 64
#: Characters of the longest command.
MAX_COMMAND = 64
#: Bytes of the longest path of a directory. unix(7): a socket's path has at most 107, of which 13 are the file's name.
MAX_PATH = 94

_NAME = re.compile(r"([1-9][0-9]*)\.sock")


def check_directory(path: Path) -> None:
    """Check that no user but one may enter a directory, if it is there.

    :raises ValueError: if others may, or it is none.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be used: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077:
        raise ValueError(f"{str(path)!r} must be a directory that other users cannot enter (mode 0700)")


class Control:
    """The socket of this process.

    :param monitor: has the exchanges.
    :param directory: where the sockets are; it is made if its parent is there.
    """

    def __init__(self, monitor: Monitor, directory: Path) -> None:
        self._monitor = monitor
        self._directory = directory
        self._path = directory / f"{os.getpid()}.sock"
        self._listener: socket.socket | None = None
        self._is_closed = False

    def open(self) -> None:
        """Begin to listen.

        :raises ValueError: if the directory cannot be used, or is another user's.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            check_directory(self._directory)
            if self._directory.stat().st_uid != os.geteuid():
                raise ValueError(f"{str(self._directory)!r} is another user's directory")
            listener = self._listener = self._listen()
        except OSError as error:
            raise ValueError(f"{str(self._directory)!r} cannot be used: {error.strerror or error}") from error
        threading.Thread(target=self._serve, args=(listener,), name="sse-control", daemon=True).start()

    def _listen(self) -> socket.socket:
        # Under its name only when it listens, because a socket that does not is taken for a killed process's.
        new = self._path.with_suffix(".new")
        new.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(new))
            listener.listen()
            new.rename(self._path)
        except OSError:
            listener.close()
            raise
        return listener

    def close(self) -> None:
        """Listen no more."""
        self._is_closed = True
        if self._listener is not None:
            self._path.unlink(missing_ok=True)
            self._listener.close()

    def _serve(self, listener: socket.socket) -> None:
        while not self._is_closed:
            try:
                connection, _ = listener.accept()
            except OSError:
                if not self._is_closed:
                    time.sleep(RETRY_INTERVAL)
                continue
            # A command that is ended early needs no response.
            with connection, contextlib.suppress(OSError, UnicodeDecodeError):
                self._respond(connection)

    def _respond(self, connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT)
        with connection.makefile("rw", encoding="utf-8") as file:
            command = file.readline(MAX_COMMAND).removesuffix("\n")
            for at, exchange in enumerate(self._monitor.exchanges(), start=1):
                is_ended = command == f"end {exchange.number}"
                if exchange.report is None or not (is_ended or command == "list"):
                    continue
                if is_ended:
                    exchange.end(EndReason.ENDED_BY_OPERATOR)
                file.write(json.dumps(_describe(exchange, exchange.report)) + "\n")
                if at % BATCH == 0:
                    time.sleep(0)


def _describe(exchange: Exchange, report: Report) -> dict[str, Any]:
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=time.monotonic() - exchange.started)
    return {
        "id": f"{os.getpid()}-{exchange.number}",
        **report.describe(),
        "since": since.isoformat(timespec="milliseconds"),
        "bytes": exchange.bytes,
        "events": exchange.events,
        "state": exchange.state,
    }


def sockets(directory: Path) -> dict[int, Path]:
    """Return the sockets in a directory, by the id of their process.

    :raises OSError: if it cannot be read.
    """
    found = {path: _NAME.fullmatch(path.name) for path in sorted(directory.iterdir())}
    return {int(match[1]): path for path, match in found.items() if match}


def send(path: Path, command: str) -> list[dict[str, Any]] | None:
    """Send a command to a process and return its response; None if the process has gone, whose socket is removed.

    :param command: "list", or "end" and the number of an exchange.
    :raises OSError: if there is no response in time.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return None
        with connection.makefile("rw", encoding="utf-8") as file:
            file.write(f"{command}\n")
            file.flush()
            return [json.loads(line) for line in file]
