"""Explain errors of the shared store: what went wrong, and what to do about it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

#: How to install what `redis://` and `valkey://` need; a Valkey is called with the same package.
REDIS_PACKAGE = "pip install 'flask-sse-relay[redis]'"

_URI = "SSE_STORAGE_URI"

#: By the name of an error of redis-py; the first that the error is an instance of counts.
_BY_CLASS = {
    "AuthenticationError": ("wrong or missing password", f"redis://:PASSWORD@host in {_URI}"),
    "AuthenticationWrongNumberOfArgsError": ("wrong or missing password", f"redis://:PASSWORD@host in {_URI}"),
    "NoPermissionError": ("the user lacks a permission", "ACL SETUSER <user> ~sse* +@all"),
    "ReadOnlyError": ("read-only replica", f"name the primary in {_URI}, or use redis+sentinel://"),
    "OutOfMemoryError": ("out of memory", "raise its maxmemory"),
    "BusyLoadingError": ("still loading its data", "wait until it has started"),
    "MasterNotFoundError": (
        "the Sentinels have no primary of that name, or none responds",
        f"check the hosts and the name at the end of {_URI}",
    ),
    "ClusterDownError": ("the Cluster does not serve all slots", "check its nodes with CLUSTER INFO"),
    "MovedError": ("it is a node of a Cluster", f"redis+cluster:// in {_URI}"),
    "InvalidResponse": ("not a Redis server", f"fix the port in {_URI}"),
    "TimeoutError": ("no reply in time", "check that it is running and that no firewall is between"),
}
#: By a part of the text of an error of redis-py.
_BY_TEXT = {
    "cluster support disabled": ("it is not a Cluster", f"redis:// in {_URI}"),
    "Connection closed by server": ("it closed the connection", f"rediss:// in {_URI} if its port expects TLS"),
    "handshake operation timed out": ("TLS handshake failed", f"redis:// in {_URI}, or the server's TLS port"),
    "unknown command 'SENTINEL'": ("it is not a Sentinel", f"fix the port in {_URI}"),
    "WRONGTYPE": ("a key of this service holds something else", "delete the keys sse-*"),
}
_START = f"start it, or fix the host and port in {_URI}"


class Busy(Exception):
    """The store was not called, because all connections are in use or it was found to be unavailable meanwhile."""


def store_errors() -> tuple[type[Exception], ...]:
    """Return what a call of the store can fail with.

    :raises ImportError: if the package is not installed.
    """
    from redis.exceptions import RedisClusterException, RedisError

    # A Cluster's client raises some errors that are no RedisError.
    return RedisError, RedisClusterException, Busy


def explain(error: BaseException) -> tuple[str, str]:
    """Return what went wrong, and what to do; never a text of the server, which can hold anything."""
    chain = list(_chain(error))
    for cause in chain:
        found = _by_cause(cause)
        if found is not None:
            return found
    text = " ".join(map(str, chain))
    for part, found in _BY_TEXT.items():
        if part in text:
            return found
    for cause in chain:
        for kind in type(cause).__mro__:
            if kind.__name__ in _BY_CLASS:
                return _BY_CLASS[kind.__name__]
    return "not usable as a store", "check what listens there, and its log"


def describe(error: Exception) -> str:
    """Return the class of an error and what went wrong, for a log line."""
    return f"{type(error).__name__}: {explain(error)[0]}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _by_cause(error: BaseException) -> tuple[str, str] | None:
    """Return the explanation of an error of the system or of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (10, 9):
            return "the certificate has expired or is not valid yet", "renew it, or set this machine's clock"
        if error.verify_code in (62, 64):
            return "the certificate is for other names", f"use a name of the certificate in {_URI}"
        return "untrusted certificate", f"add ?ssl_ca_certs=/path/of/its/authority.pem to {_URI}"
    if isinstance(error, ssl.SSLError):
        return _BY_TEXT["handshake operation timed out"]
    if isinstance(error, socket.gaierror):
        return "its host name cannot be resolved", f"fix the host in {_URI}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused", _START
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return _BY_TEXT["Connection closed by server"]
    if isinstance(error, FileNotFoundError | PermissionError):
        return "a file cannot be opened", f"fix the path of the socket or certificate in {_URI}, or its permissions"
    return None
