"""Checks the shared store: it answers, lets us in and write, soon enough, and forgets nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ...relay.redis import SharedStore
from .finding import Finding, fail, ok, warn

#: Seconds that a round trip may take; a call makes a few before it is let in.
SLOW = 0.05
#: Seconds after which our key is gone, should we not come to delete it.
LIFETIME = 10

#: By the client's class of error (redis and valkey name them alike): what it means, and what to do.
_MEANINGS = {
    "AuthenticationError": ("it does not know the password, or wants one", "redis://:PASSWORD@host in SSE_STORAGE_URI"),
    "NoPermissionError": ("the user may not do what is needed", "ACL SETUSER <user> ~LIMITS* ~sse* +@all"),
    "ReadOnlyError": ("it is a replica, which cannot be written", "name the primary in SSE_STORAGE_URI"),
    "OutOfMemoryError": ("it is full", "raise its maxmemory"),
    "TimeoutError": ("no answer in time", "see that it runs, and that no firewall is between"),
    "ConnectionError": ("nobody answers", "start it, or mend host and port in SSE_STORAGE_URI"),
}
_UNKNOWN = ("what answers is no Redis that can be used", "see what listens there, and its log")


def check_store(uri: str) -> Iterator[Finding]:
    """Yield how the store is.

    :param uri: the setting; its password is not shown.
    """
    if uri == "memory://":
        yield ok("store", "memory://, each process for itself")
        return
    store = SharedStore(uri)
    client, errors = store.client, store.storage.base_exceptions
    try:
        _write(client)
        latency = min(_ping(client) for _ in range(3))
    except errors as error:
        meaning, remedy = next(
            (_MEANINGS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _MEANINGS), _UNKNOWN
        )
        yield fail("store", f"{_shown(uri)}: {meaning}", remedy)
        return
    text = f"{_shown(uri)}: a round trip takes {latency * 1000:.1f} ms"
    yield warn("store", text, "every call waits for it: move it nearer") if latency > SLOW else ok("store", text)
    yield from _eviction(client, errors)


def _write(client: Any) -> None:
    """Do what throttle and leases do: write with an end, run a script, delete."""
    key = f"sse-doctor:{uuid.uuid4().hex}"
    client.set(key, "1", ex=LIFETIME)
    client.eval("return redis.call('TIME')", 1, key)
    client.delete(key)


def _ping(client: Any) -> float:
    begun = time.perf_counter()
    client.ping()
    return time.perf_counter() - begun


def _eviction(client: Any, errors: Any) -> Iterator[Finding]:
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "")
    except errors:
        # Rented ones do not tell.
        return
    if policy.startswith("allkeys"):
        yield warn(
            "eviction", f"{policy}: it may forget who has called how often", "maxmemory-policy noeviction for it"
        )


def _shown(uri: str) -> str:
    """Return the part of a URI that holds no secret."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
