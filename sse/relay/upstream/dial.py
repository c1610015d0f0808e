"""Connects to upstreams: look the name up, judge every answer, connect to one that was judged, look at the peer.

The check and the connection are one, so a name that changes its mind between the two (DNS rebinding) gains nothing.
What there is to install was tried and falls short: requests-hardened judges only the first answer and still dials
several ranges that lead inside, advocate does not work with urllib3 2.
"""

from __future__ import annotations

import errno
import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Callable

from ...errors import AtCapacity, SSEError, TargetNotAllowed, UpstreamTimeout, UpstreamUnreachable
from ..exchange import current

#: Seconds after which somebody may have closed one.
RETRY_AFTER = 1
#: Names looked up at a time. The resolver has 10 threads for all; two stay free for the rest of the process.
MAX_LOOKUPS = 8


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
        self._lookups = threading.BoundedSemaphore(MAX_LOOKUPS)

    def dial(self, host: str, port: int) -> socket.socket:
        """Return a connection to the host, without a time-out of its own; the caller closes it.

        :raises AtCapacity: if this process, or the system, may open no more sockets.
        :raises TargetNotAllowed: if any of its addresses is refused, or it has none and no operator named it.
        :raises UpstreamTimeout: if the time ran out.
        :raises UpstreamUnreachable: if nobody answers at its addresses.
        """
        deadline = time.monotonic() + self._timeout
        addresses = self._look_up(host, port, deadline)
        # One bad answer condemns all: a name that gives a public and a private address is up to something.
        if not all(self._allows(host, address) for _, address in addresses):
            raise TargetNotAllowed
        failure: OSError | None = None
        for left, (family, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
            # An equal share of the time for each that is left, so that a silent one does not hide the others.
            share = max(deadline - time.monotonic(), 0.001) / left
            try:
                return self._connect(family, address, port, share)
            except OSError as error:
                failure = error
        if isinstance(failure, TimeoutError):
            raise UpstreamTimeout("no connection in time") from failure
        raise UpstreamUnreachable("no connection") from failure

    def _connect(self, family: int, address: str, port: int, timeout: float) -> socket.socket:
        connection = _open_socket(family)
        try:
            connection.settimeout(timeout)
            watch = current.get()
            if watch is not None:
                watch.attach(connection)
            connection.connect((address, port))
            # From here on the watch keeps the time.
            connection.settimeout(None)
            if _canonical(connection.getpeername()[0]) != _canonical(address):
                raise TargetNotAllowed
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            connection.close()
            raise
        return connection

    def _look_up(self, host: str, port: int, deadline: float) -> list[tuple[int, str]]:
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            return self._ask(host, port, deadline)
        return [(socket.AF_INET if literal.version == 4 else socket.AF_INET6, host)]

    def _ask(self, host: str, port: int, deadline: float) -> list[tuple[int, str]]:
        """Ask the resolver in a thread of its own: getaddrinfo(3) knows no time-out."""
        if not self._lookups.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise self._unresolved(host, UpstreamTimeout("no connection in time"))
        answers: queue.Queue[list[tuple[int, str]] | OSError | UnicodeError] = queue.Queue(1)

        def ask() -> None:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                answers.put([(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in found])
            except (OSError, UnicodeError) as error:
                answers.put(error)
            finally:
                self._lookups.release()

        threading.Thread(target=ask, name="sse-look-up", daemon=True).start()
        try:
            answer = answers.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty as error:
            raise self._unresolved(host, UpstreamTimeout("no connection in time")) from error
        if isinstance(answer, Exception) or not answer:
            # A resolver that gets no socket says that there is no such name.
            _open_socket(socket.AF_INET).close()
            raise self._unresolved(host, UpstreamUnreachable("its name does not resolve"))
        return answer

    def _unresolved(self, host: str, error: SSEError) -> SSEError:
        # Whether a name exists is nobody's business, unless the operator wrote it down.
        return error if self._lists(host) else TargetNotAllowed()


def _open_socket(family: int) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise no_socket() from error
        raise


def no_socket() -> AtCapacity:
    """Return the refusal of what would take a socket that this process, or the system, may not open."""
    return AtCapacity("the gateway has no socket left", retry_after=RETRY_AFTER)


def _canonical(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(address)
