"""Connect to the store that processes share, a Redis or a Valkey, so that no request fails while it is unavailable.

This is the one place where clients of the store are made: of a single server, of a Cluster, or of the primary that
Sentinels name.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .batch import Batches, Command
from .redis_error import REDIS_PACKAGE, Busy, describe, store_errors

log = logging.getLogger("sse")

#: Seconds to connect, and to wait for a reply.
TIMEOUT = 1.0
#: Seconds to wait for a free connection of a store that works: many clients may come at once.
QUEUE_TIMEOUT = 10.0
#: Seconds for which an unavailable store is not called.
RETRY_INTERVAL = 5.0
#: Connections of one process to one server: a command takes less than a millisecond, and more would only queue there.
CONNECTIONS = 32

_SCHEME = re.compile(r"(?:redis|valkey)(?P<tls>s)?(?:\+(?P<kind>cluster|sentinel|unix))?|(?P<socket>unix)")
_UNUSABLE = "is not a URL that can be used; a password in it must be percent-encoded"
_PORTS = {"cluster": 6379, "sentinel": 26379}


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class StoreAddress:
    """Where the store is, from `SSE_STORAGE_URI`.

    :param kind: `single`, `cluster` or `sentinel`.
    :param url: of a single server, in the form that redis-py reads.
    :param hosts: nodes of a Cluster, or Sentinels, with their ports.
    :param service: the name that Sentinels have for the primary.
    :param options: for every connection, such as `username` and `ssl_ca_certs`.
    """

    kind: str
    url: str = ""
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    options: dict[str, Any]


def parse_storage_uri(uri: str) -> StoreAddress:
    """Return where the store is.

    :raises ValueError: if the URI cannot be used; the message shows nothing of it, because it can hold a password.
    """
    parts = _split(uri)
    scheme = _SCHEME.fullmatch(parts.scheme)
    if scheme is None or not (parts.netloc or parts.path):
        raise ValueError(
            "must be memory:// or the address of a Redis or Valkey: redis://, rediss://, unix://, redis+cluster:// or "
            "redis+sentinel:// and where it is"
        )
    if scheme["kind"] in _PORTS:
        return _many(scheme["kind"], uri, is_tls=scheme["tls"] is not None)
    name = "unix" if scheme["socket"] or scheme["kind"] == "unix" else "rediss" if scheme["tls"] else "redis"
    return StoreAddress(kind="single", url=f"{name}{uri[len(parts.scheme) :]}", options={})


def _split(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
    except ValueError:
        # Its text, and those below, can hold the password.
        raise ValueError(_UNUSABLE) from None
    return parts


def _many(kind: str, uri: str, *, is_tls: bool) -> StoreAddress:
    parts = _split(uri)
    user, _, places = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    options: dict[str, Any] = {key: value for key, value in parse_qsl(parts.query) if key.startswith("ssl_")}
    options |= {"ssl": True} if is_tls else {}
    options |= {key: unquote(value) for key, value in (("username", name), ("password", password)) if value}
    path = parts.path.strip("/")
    if bool(path) != (kind == "sentinel"):
        raise ValueError(
            "must name the primary: redis+sentinel://host:26379,host:26379/NAME" if not path else "a Cluster has no /0"
        )
    hosts = tuple(_host(place, _PORTS[kind]) for place in places.split(","))
    return StoreAddress(kind=kind, hosts=hosts, service=path, options=options)


def _host(place: str, port: int) -> tuple[str, int]:
    parts = _split(f"//{place.strip()}")
    try:
        found = parts.hostname, parts.port or port
    except ValueError:
        raise ValueError(_UNUSABLE) from None
    if not found[0]:
        raise ValueError("has an empty host name")
    return found[0], found[1]


def check_storage_uri(uri: str) -> None:
    """Check that a client for the store can be made; nothing is connected.

    :raises ValueError: if not; the message shows nothing of the URI.
    """
    address = parse_storage_uri(uri)
    try:
        import redis
    except ImportError:
        raise ValueError(f"needs a package that is not installed: {REDIS_PACKAGE}") from None
    try:
        if address.kind == "single":
            pool = redis.Redis.from_url(address.url).connection_pool
            # An unknown option is an error only here.
            pool.connection_class(**pool.connection_kwargs)
        elif address.options:
            redis.Redis(**address.options).close()
    except (ValueError, TypeError, redis.RedisError):
        raise ValueError(_UNUSABLE) from None


def connect(uri: str, *, timeout: float = TIMEOUT, connections: int = CONNECTIONS) -> Any:
    """Return a client of the store; the caller closes it.

    A single server and the servers that Sentinels name are connected with the first command; a Cluster's nodes now.

    :param timeout: seconds to connect, and to wait for each reply.
    :param connections: the most connections to one server.
    :return: a `redis.Redis`, or a `redis.cluster.RedisCluster`.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    address = parse_storage_uri(uri)
    # A kept connection that the server has closed is replaced once. A time-out is not tried again: the command may have
    # been executed.
    retry = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
    options = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "socket_keepalive": True,
        "max_connections": connections,
        **address.options,
    }
    if address.kind == "cluster":
        from redis.cluster import ClusterNode, RedisCluster

        nodes: list[Any] = [ClusterNode(*host) for host in address.hosts]  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        return RedisCluster(startup_nodes=nodes, retry=retry, **options)
    if address.kind == "sentinel":
        from redis.sentinel import Sentinel

        # The Sentinels are called with the same credentials and the same TLS.
        make: Any = Sentinel
        return make(list(address.hosts), sentinel_kwargs=options, retry=retry, **options).master_for(address.service)
    if address.url.startswith("unix"):
        del options["socket_keepalive"]
    return redis.Redis.from_url(address.url, retry=retry, **options)


def execute(commands: Sequence[Command], client: Any) -> list[Any]:
    """Send commands in one round trip, and return the replies."""
    if len(commands) == 1:
        return [client.execute_command(*commands[0])]
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute()
    return replies


class SharedStore:
    """The shared store with a circuit breaker: while it is unavailable, callers do without it.

    It counts as unavailable as well if it refuses writes (full, read-only, loading).

    :param uri: the value of `SSE_STORAGE_URI`.
    :param connections: calls at the same time, to one server.
    :param retry_interval: seconds for which an unavailable store is not called; 0: each call is an attempt.
    :param without: what the log says about the time without it.
    :param again: what it says when the store has recovered.
    """

    def __init__(
        self,
        uri: str,
        *,
        connections: int = CONNECTIONS,
        retry_interval: float = RETRY_INTERVAL,
        without: str = "using per-process limits",
        again: str = "limits are shared again",
    ) -> None:
        self.uri = uri
        self.errors = store_errors()
        self.is_cluster = parse_storage_uri(uri).kind == "cluster"
        self._connections = connections
        self._retry_interval = retry_interval
        self._without, self._again = without, again
        self._retry_at = 0.0
        self._failures = 0
        self._client: Any = None
        #: Made when they are needed, because locks that are made before gevent patches block the event loop.
        self._locks: dict[str, Any] = {}

    @property
    def client(self) -> Any:
        """The client, made when it is needed first; a Cluster's may fail with one of `errors`."""
        if self._client is None:
            with self._locks.setdefault("connect", threading.Lock()):
                if self._client is None:
                    # One more, for what listens and so waits for no turn.
                    self._client = connect(self.uri, connections=self._connections + 1)
        return self._client

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def run(self, *commands: Command, on_unavailable: Callable[[], object] = nothing) -> list[Any] | None:
        """Return the replies to commands, None while the store is unavailable.

        They are sent together with those of other callers, so that many requests at once take few round trips. Not to a
        Cluster: for one node that hangs, redis-py sends each command of a batch once more by itself, one after another.

        :param on_unavailable: called if the commands were not possible.
        """
        replies = None
        if time.monotonic() >= self._retry_at:
            replies = self._send(commands) if self.is_cluster else self._batches.run(commands)
        if replies is None:
            on_unavailable()
        return replies

    @property
    def _batches(self) -> Batches:
        batches: Batches | None = self._locks.get("batches")
        return batches or self._locks.setdefault("batches", Batches(self._send))

    def _send(self, commands: Sequence[Command]) -> list[Any] | None:
        replies: list[Any] | None = self.call(partial(execute, commands))
        return replies

    def call(self, operation: Callable[[Any], Any], *, on_unavailable: Callable[[], object] = nothing) -> Any:
        """Return the result of an operation on the store, None while it is unavailable.

        :param operation: is given the client; its result, if it matters, is not None.
        :param on_unavailable: called if the operation was not possible.
        """
        now, was_unavailable = time.monotonic(), self._retry_at > 0
        if now < self._retry_at:
            on_unavailable()
            return None
        if was_unavailable:
            # The next attempt may have to wait for a time-out, so one caller makes it and the others do not wait.
            self._retry_at = now + self._retry_interval
        try:
            with self._connection_slot():
                result = operation(self.client)
        except self.errors as error:
            self._mark_unavailable(error)
            on_unavailable()
            return None
        if was_unavailable:
            self._mark_available()
        return result

    def is_available(self) -> bool:
        """Return whether the store takes writes; an unavailable one is not called each time."""
        return self.call(lambda client: client.set("sse-probe", 1, px=1000)) is not None

    @contextmanager
    def _connection_slot(self) -> Iterator[None]:
        """Wait until one more connection may be used.

        :raises Busy: if none becomes free in time, or another caller has found the store unavailable meanwhile.
        """
        slots = self._locks.setdefault("slots", threading.BoundedSemaphore(self._connections))
        failures = self._failures
        if not slots.acquire(timeout=QUEUE_TIMEOUT):
            raise Busy("no free connection")
        try:
            if failures != self._failures:
                raise Busy("unavailable")
            yield
        finally:
            slots.release()

    def _mark_unavailable(self, error: Exception) -> None:
        if isinstance(error, Busy):
            return
        self._failures += 1
        if not self._retry_at:
            log.warning("Redis unavailable (%s); %s", describe(error), self._without)
        self._retry_at = time.monotonic() + self._retry_interval

    def _mark_available(self) -> None:
        if self._retry_at:
            log.warning("Redis recovered; %s", self._again)
        self._retry_at = 0.0
