"""Connects to upstreams: looks the name up, judges every address, connects to one that was judged, checks the peer.

The check and the connection are one, so a name that changes its addresses between the two (DNS rebinding) gains
nothing. What there is to install was tried and falls short: requests-hardened judges only the first address and still
connects to several ranges that lead inside, advocate does not work with urllib3 2.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable

from ...errors import AtCapacity, SSEError, TargetNotAllowed, UpstreamTimeout, UpstreamUnreachable
from ...protocol.target.address import is_literal, parse_literal
from ..exchange import Side
from .lookup import Addresses, LookUpTimeout, Resolver
from .transport import Transport, connect, enable_keep_alive, new_socket

#: Seconds after which a socket may have been closed.
RETRY_AFTER = 1


class Dialer:
    """Opens connections to hosts, each to an address that was judged.

    :param allows: may a connection for this host go to this address?
    :param lists: did the operator name this host?
    :param timeout: seconds for look-up and connection together.
    """

    def __init__(self, *, allows: Callable[[str, str], bool], lists: Callable[[str], bool], timeout: float) -> None:
        self._allows = allows
        self._lists = lists
        self._timeout = timeout
        self._resolver = Resolver()

    def dial(self, host: str, port: int, side: Side, *, client: str = "") -> Transport:
        """Return a connection to the host; the caller closes it.

        :param side: what cancels it.
        :param client: who waits for it; a client can use up only its own share of look-ups.
        :raises AtCapacity: if this process, or the system, may open no more sockets.
        :raises TargetNotAllowed: if any of its addresses is refused, or it has none and no operator named it.
        :raises UpstreamTimeout: if the time ran out.
        :raises UpstreamUnreachable: if no connection to its addresses succeeds.
        :raises ConnectionAbortedError: if the side was cancelled before.
        """
        deadline = time.monotonic() + self._timeout
        addresses = self._find_addresses(host, port, deadline, side, client)
        # One bad address condemns all: a name that has a public and a private address is an attack or a mistake.
        if not all(self._allows(host, address) for _, address in addresses):
            raise TargetNotAllowed(cause=f"{host} has an address that is refused")
        failure: OSError | None = None
        for left, (family, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
            # An equal share of the time for each that is left, so that a silent one does not hide the others.
            share = max(deadline - time.monotonic(), 0.001) / left
            try:
                return _connect(family, address, port, share, side)
            except OSError as error:
                failure = error
        if isinstance(failure, TimeoutError):
            raise UpstreamTimeout("no connection in time") from failure
        raise UpstreamUnreachable(f"no connection: {describe_os_error(failure)}") from failure

    def _find_addresses(self, host: str, port: int, deadline: float, side: Side, client: str) -> Addresses:
        if is_literal(host):
            return [(socket.AF_INET6 if ":" in host else socket.AF_INET, host)]
        payer = None if self._lists(host) else client
        try:
            addresses = self._resolver.look_up(host, port, deadline=deadline, side=side, client=payer)
        except LookUpTimeout as error:
            raise self._unresolved(host, UpstreamTimeout("no connection in time: the name look-up is slow")) from error
        except ConnectionAbortedError:
            raise
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            # A resolver that gets no socket reports that there is no such name.
            _open_socket(socket.AF_INET).close()
            raise self._unresolved(host, UpstreamUnreachable("no connection: its name does not resolve"))
        return addresses

    def _unresolved(self, host: str, error: SSEError) -> SSEError:
        # No client learns whether a name exists, unless the operator named it.
        return error if self._lists(host) else TargetNotAllowed(cause=f"{host}: {error.detail}")


def _connect(family: int, address: str, port: int, timeout: float, side: Side) -> Transport:
    connection = Transport(_open_socket(family))
    try:
        side.attach(connection)
        connect(connection, (address, port), timeout)
        if parse_literal(connection.socket.getpeername()[0]) != parse_literal(address):
            raise TargetNotAllowed(cause="the connection went to another address")
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        enable_keep_alive(connection.socket)
    except BaseException:
        side.detach()
        connection.close()
        raise
    return connection


def _open_socket(family: int) -> socket.socket:
    try:
        return new_socket(family)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise AtCapacity("the gateway has no socket left", retry_after=RETRY_AFTER) from error
        raise


def describe_os_error(error: OSError | None) -> str:
    """Return why a connection failed, in the system's words, which hold no address."""
    text = os.strerror(error.errno) if error is not None and error.errno else "unknown error"
    return text[0].lower() + text[1:]
