"""The socket by which commands reach a process: who may use it, and what it leaves behind."""

from __future__ import annotations

import gc
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sse.relay.control import MAX_PATH, Control, send, sockets
from sse.relay.drain import Drain
from sse.relay.exchange import Exchange, Limits
from sse.relay.monitor import Monitor


class Named:
    """The report of a stream of no request."""

    def __init__(self, client: str) -> None:
        self.client = client

    def describe(self) -> dict[str, Any]:
        return {"client": self.client}


@contextmanager
def opened(directory: Path, *clients: str) -> Iterator[Path]:
    """Listen in a directory, with a stream of each client, and return the socket's path."""
    monitor = Monitor(Drain())
    for client in clients:
        exchange = Exchange(None, Limits())
        exchange.report = Named(client)
        monitor.add(exchange)
    # A request that is no stream.
    monitor.add(Exchange(None, Limits()))
    control = Control(monitor, directory)
    control.open()
    [path] = sockets(directory).values()
    yield path
    control.close()


def test_no_other_user_can_enter_the_directory(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path / "control"):
            assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("number", [1, 2])
def test_a_stream_is_found_by_its_number(tmp_path: Path, number: int) -> None:
    with opened(tmp_path, "a", "b") as path:
        listed = send(path, "list") or []
        assert [(entry["id"], entry["client"]) for entry in listed] == [
            (f"{os.getpid()}-1", "a"),
            (f"{os.getpid()}-2", "b"),
        ]
        ended = send(path, f"end {number}") or []
        assert [(entry["client"], entry["state"]) for entry in ended] == [("ab"[number - 1], "ending")]
        states = [entry["state"] for entry in send(path, "list") or []]
        assert states.count("ending") == 1 and states[number - 1] == "ending"


@pytest.mark.parametrize("command", ["end 3", "end", "end ", "end x", "end 01", "list me", "stop", "x" * 1000, ""])
def test_what_is_no_command_ends_nothing(tmp_path: Path, command: str) -> None:
    with opened(tmp_path, "a") as path:
        send(path, command)
        assert [entry["state"] for entry in send(path, "list") or []] == ["body"]


def test_a_command_that_leaves_holds_up_no_other(tmp_path: Path) -> None:
    with opened(tmp_path, *["a"] * 2000) as path:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"list\n")
            connection.recv(1)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"\xff\n")
        assert len(send(path, "list") or []) == 2000


def test_a_socket_without_its_process_is_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as path:
        stale = path.with_name("1.sock")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.bind(str(stale))
        (tmp_path / "other").write_text("")
        assert sockets(tmp_path) == {1: stale, os.getpid(): path}
        assert send(stale, "list") is None
        assert sockets(tmp_path) == {os.getpid(): path}
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


def test_a_socket_of_the_same_process_id_is_replaced(tmp_path: Path) -> None:
    """A process that was killed had the id before."""
    for suffix in ("sock", "new"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.bind(str(tmp_path / f"{os.getpid()}.{suffix}"))
    with opened(tmp_path, "a") as path:
        assert len(send(path, "list") or []) == 1


def test_another_users_directory_is_not_used(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make one")
    directory = tmp_path / "control"
    directory.mkdir(mode=0o700)
    os.chown(directory, 65534, 65534)
    with pytest.raises(ValueError, match="is another user's directory"):
        Control(Monitor(Drain()), directory).open()


def test_the_longest_directory_can_be_listened_in(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * (MAX_PATH - len(str(tmp_path)) - 1))
    assert len(str(directory)) == MAX_PATH
    with opened(directory) as path:
        # Linux: /proc/sys/kernel/pid_max is 4194304 at most.
        with socket.socket(socket.AF_UNIX) as connection:
            connection.bind(str(path.with_name("4194304.sock")))


def test_a_directory_that_is_too_long_leaves_no_socket(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be used: AF_UNIX path too long"):
        Control(Monitor(Drain()), tmp_path / ("d" * 120)).open()
    gc.collect()
