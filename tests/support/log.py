"""Both stores of recordings, behind what their tests need to know of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sse.relay.log.base import Header
from sse.relay.log.log import Log
from sse.relay.log.redis import RedisLog
from sse.relay.log.ring import Reader, Recording
from sse.relay.log.store import Timing

#: So short that no test waits long, with each a part of the next as in the service.
QUICK = Timing(
    linger=0.05, linger_read=0.005, tick=0.2, look=0.05, alive=1.0, silence=0.2, reader=2, retry=0.05, stop=0.3
)


@dataclass
class Clock:
    """Seconds that pass when the test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Store:
    """A store; `log()` is a process that uses it, `other()` another one (the same where only one can)."""

    log: Log
    other: Log
    #: Let so many seconds pass for what expires.
    expire: Callable[[str], None]
    #: What recorders were stopped for, by id.
    stops: dict[str, list[str]] = field(default_factory=dict)

    def create(self, **options: Any) -> Recording:
        """Begin a recording under a new id."""
        id_ = secrets.token_urlsafe(16)
        self.stops[id_] = []
        recording = self.log.create(id_, header(**options), self.stops[id_].append)
        assert recording is not None
        return recording

    def reader(self, id: str, offset: int = 0) -> Reader:
        """Return a reader in the other process."""
        return self.other.follow(id, self.other.look(id), offset)


def header(**options: Any) -> Header:
    fields = (("Content-Type", "text/event-stream"),)
    return Header(
        **{
            "owner": "name:ada",
            "upstream": "test",
            "status": 200,
            "fields": fields,
            "ttl": 60,
            "leave": 60.0,
            **options,
        }
    )


def read_all(reader: Reader) -> bytes:
    """Return what follows until the end of a complete recording."""
    body = b""
    while (piece := reader.read()) != b"":
        if piece is None:
            reader.wait(10)
        else:
            body += piece
    return body


#: What a test has opened.
opened_logs: list[RedisLog] = []


def redis_log(url: str, **options: Any) -> RedisLog:
    opened_logs.append(RedisLog(url, **{"max_bytes": 1 << 20, "memory": 1 << 26, "timing": QUICK, **options}))
    return opened_logs[-1]
