"""Recordings on the wire: a response that is recorded, and the views of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from .service import RawClient, Service, call
from .upstream import EVENT_STREAM, LAST_CHUNK, Connection, PeerClosed, chunk, head

#: With a byte order mark, all line ends, and letters of two to four bytes.
BODY = "\ufeffdata: ä\n\nid: 7\r\ndata: 流\r\n\r\ndata: \U0001f30a\n\n: end\n\n".encode()

TTL = {"Stream-TTL": "60"}


@dataclass
class Paced:
    """An upstream's script that sends what the test has it send, when it does."""

    fields: tuple[str, ...] = (EVENT_STREAM,)
    status: int = 200
    connection: Connection | None = None
    _ready: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, connection: Connection) -> None:
        connection.read_request()
        connection.send(head(self.status, *self.fields, "Transfer-Encoding: chunked", "Connection: close"))
        self.connection = connection
        self._ready.set()
        while not self._done.is_set():
            try:
                connection.wait_for(self._done, timeout=60)
            except PeerClosed:
                return

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        assert self._ready.wait(10), "the upstream was not called"
        assert self.connection is not None
        self.connection.send(chunk(data))

    def complete(self) -> None:
        """End the body as it should."""
        assert self.connection is not None
        self.connection.send(LAST_CHUNK)
        self._done.set()

    def truncate(self) -> None:
        """End the connection, and with it the body."""
        self._done.set()

    def wait_closed(self, timeout: float = 10) -> None:
        """Wait until the gateway has closed the connection."""
        assert self._ready.wait(10), "the upstream was not called"
        assert self.connection is not None
        self.connection.wait_closed(timeout)
        self._done.set()


@dataclass(frozen=True)
class Reply:
    """A response that was read to its end."""

    status: int
    fields: Mapping[str, str]
    body: bytes
    ending: str | None

    @property
    def is_complete(self) -> bool:
        return self.ending == "complete"

    @property
    def offset(self) -> int:
        return int(self.fields["stream-next-offset"])


def reply(client: RawClient) -> Reply:
    """Read a response to its end, and close the connection."""
    with closing(client):
        head = client.read_head()
        body = client.read_body()
    return Reply(head.status, {name.lower(): value for name, value in head.fields}, body, client.ending)


def post(service: Service, path: str = "/upstream/test/", **fields: str) -> RawClient:
    """Send a request whose response should be recorded; the caller closes."""
    sent = {**TTL, "Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in fields.items()}}
    return call(service, "POST", path, sent, b"{}")


def location(client: RawClient) -> str:
    """Read the head of a recorded response, and return where the recording is."""
    found = client.read_head().field("Location")
    assert found is not None, client.head
    return found


def read(service: Service, place: str, query: str = "", *, method: str = "GET", **fields: str) -> Reply:
    """Read a view of a recording to its end."""
    return reply(view(service, place, query, method=method, **fields))


def view(service: Service, place: str, query: str = "", *, method: str = "GET", **fields: Any) -> RawClient:
    """Ask for a view of a recording; the caller closes."""
    target = f"{place}?{query}" if query else place
    return call(service, method, target, {k.replace("_", "-"): v for k, v in fields.items()})
