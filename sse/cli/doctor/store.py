"""Check the shared store: whether it takes writes, how long it takes, and whether it evicts counts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from ...relay.redis import connect
from ...relay.redis_error import explain, store_errors
from .finding import Finding, fail, ok, warn

#: Seconds that a round trip may take; a request waits for two of them before it is let in.
SLOW = 0.05
#: Seconds after which the key of this check is gone, if it is not deleted.
LIFETIME = 10


def check_store(uri: str) -> Iterator[Finding]:
    """Yield the state of the store.

    :param uri: the setting; its password is not shown.
    """
    if uri == "memory://":
        yield ok("store", "memory://, each process for itself")
        return
    try:
        with closing(connect(uri)) as client:
            _write(client)
            latency = min(_round_trip(client) for _ in range(3))
            policy = _policy(client)
    except store_errors() as error:
        meaning, remedy = explain(error)
        yield fail("store", f"{_shown(uri)}: {meaning}", remedy)
        return
    text = f"{_shown(uri)}: a round trip takes {latency * 1000:.1f} ms"
    yield warn("store", text, "each request waits for two: move it nearer") if latency > SLOW else ok("store", text)
    if policy.startswith("allkeys"):
        yield warn("eviction", f"{policy}: it may evict the counts of limits", "maxmemory-policy noeviction for it")


def _write(client: Any) -> None:
    """Do what throttle and leases do: write with an expiry, run a script, delete."""
    key = f"sse-doctor:{uuid.uuid4().hex}"
    client.set(key, "1", ex=LIFETIME)
    client.eval("return redis.call('TIME')", 1, key)
    client.delete(key)


def _round_trip(client: Any) -> float:
    begun = time.perf_counter()
    client.get("sse-doctor")
    return time.perf_counter() - begun


def _policy(client: Any) -> str:
    """Return how the server evicts keys, empty if that is not readable."""
    try:
        return str(client.config_get("maxmemory-policy").get("maxmemory-policy", ""))
    except store_errors():
        # Hosted ones refuse the command.
        return ""


def _shown(uri: str) -> str:
    """Return the part of a URI that holds no secret."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
