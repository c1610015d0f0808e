"""Log lines for which nothing waits, to a pipe, a socket and a file."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import pytest

from sse.relay.output import LIMIT, BackgroundStream, in_background

from ..support.ending import eventually

LINE = "x" * 99 + "\n"


class Reader:
    """The reading end of where a log goes.

    :param read: returns what is there, and waits if that is nothing.
    """

    def __init__(self, stream: TextIO, read: Callable[[], bytes]) -> None:
        self.reports: list[int] = []
        self.stream = BackgroundStream(stream, self.reports.append)
        self._read = read
        self.data = b""

    def read_until(self, size: int) -> None:
        while len(self.data) < size:
            self.data += self._read()


@pytest.fixture(params=["pipe", "socket"])
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    with ExitStack() as stack:
        if request.param == "pipe":
            ours, theirs = os.pipe()
            stack.callback(os.close, ours)
            stream = stack.enter_context(open(theirs, "w"))
            yield Reader(stream, lambda: os.read(ours, 1 << 16))
        else:
            one, other = socket.socketpair()
            stack.enter_context(one)
            stack.enter_context(other)
            yield Reader(stack.enter_context(other.makefile("w")), lambda: one.recv(1 << 16))


def test_a_line_is_written_at_once(reader: Reader) -> None:
    reader.stream.write("Grüße\n")
    reader.read_until(8)
    assert reader.data.decode() == "Grüße\n"


def test_nothing_waits_for_a_reader_that_stops(reader: Reader) -> None:
    """A plain stream's write waits for ever, and with it the event loop."""
    count = 2 * LIMIT // len(LINE)
    began = time.monotonic()
    for _ in range(count):
        assert reader.stream.write(LINE) == len(LINE)
    assert time.monotonic() - began < 5
    reader.read_until(LIMIT)
    eventually(lambda: bool(reader.reports), "lost lines are not reported")
    [lost] = reader.reports
    assert 0 < lost < count
    # The rest is there in whole lines, and the lost ones are counted exactly.
    reader.read_until((count - lost) * len(LINE))
    assert reader.data == LINE.encode() * (count - lost)
    reader.stream.write("after\n")
    reader.read_until(len(reader.data) + 1)
    assert reader.data.endswith(b"after\n") and len(reader.reports) == 1


def test_a_process_that_ends_writes_what_it_has_kept(reader: Reader) -> None:
    size = 0
    while not reader.stream._kept:
        size += reader.stream.write(LINE)
    reader.read_until(1)
    reader.stream._finish()
    reader.read_until(size)
    assert reader.data == LINE.encode() * (size // len(LINE))


def test_a_child_process_leaves_the_lines_of_its_parent(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    while not reader.stream._kept:
        reader.stream.write(LINE)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    child = "child" * len(LINE)
    reader.stream.write(child)
    assert b"".join(reader.stream._kept) in child.encode()


def test_a_file_gets_every_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        log = logging.getLogger("sse-test")
        log.addHandler(handler := logging.StreamHandler(in_background(file, lambda count: None)))
        for number in range(1000):
            log.warning("%d", number)
        log.removeHandler(handler)
    assert path.read_text().splitlines() == [str(number) for number in range(1000)]
