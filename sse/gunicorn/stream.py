"""A stream on its way to a client: in a greenlet while it may have to wait for something else, parked otherwise."""

from __future__ import annotations

import errno
from collections.abc import Callable
from datetime import datetime
from typing import Any

import gevent

from ..compat import gunicorn as compat
from ..compat.gunicorn import Environ
from ..relay.stream.pump import WAIT, End, Pause, Pump, Step
from .socket import Client

#: RFC 9112, section 7.1: "last-chunk = 1*("0") [ chunk-ext ] CRLF", and an empty trailer section.
LAST_CHUNK = b"0\r\n\r\n"
#: Bytes that are gathered before they are sent; what is read at once is mostly less.
SEND_SIZE = 64 * 1024
#: The errors of a write to a client that has left.
DISCONNECT_ERRNOS = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class Stream:
    """A response whose body is a pump.

    :param client: the client's connection.
    :param pump: decides what is sent.
    :param close: closes the body, as WSGI has it.
    :param head: as it is sent.
    :param log: gunicorn's.
    :param logged: gunicorn's response and request, and the environ, if the access log is kept: a stream may be open for
        hours, and needs none of them.
    """

    __slots__ = (
        "_client",
        "_close",
        "_data",
        "_is_chunked",
        "_is_last",
        "_is_taken",
        "_log",
        "_logged",
        "_pump",
        "_sent",
        "_started",
        "_step",
        "_timer",
        "_unsubscribe",
    )

    def __init__(
        self,
        client: Client,
        pump: Pump,
        close: Callable[[], None],
        head: bytes,
        log: Any,
        logged: tuple[Any, Any, Environ] | None,
    ) -> None:
        self._client = client
        #: Whether the greenlet that has accepted the connection has lost it.
        self._is_taken = False
        self._pump = pump
        self._close = close
        # Bytes to send, and the step after them if that is known. The head goes out together with what came with
        # the upstream's.
        self._data = head
        self._step: Step | None = None
        self._is_chunked = b"\r\nTransfer-Encoding: chunked\r\n" in head
        self._is_last = b"\r\nConnection: close\r\n" in head
        self._sent = 0
        self._started = datetime.now()
        #: What ends the calls of the event loop, while the stream is parked.
        self._unsubscribe: Callable[[], None] | None = None
        self._timer: Any = None
        self._log = log
        self._logged = logged

    def serve(self) -> bool:
        """Send what there is, in a greenlet; return whether its connection is ready for another request.

        It is not if the stream has been parked.
        """
        self._client.setblocking(False)
        try:
            return self._run() and not self._is_last
        except OSError as error:
            if error.errno not in DISCONNECT_ERRNOS:
                self._log.exception("Socket error processing request.")
        except gevent.GreenletExit:
            pass
        except Exception:
            self._log.exception("Error handling request")
        finally:
            self._client.setblocking(self._unsubscribe is None)
        return False

    def _run(self) -> bool:
        """Go on until the stream has ended; return False if it has been parked before that."""
        try:
            end = self._advance()
        except OSError:
            self._end()
            raise
        except BaseException as error:
            end = self._pump.fail(error)
        if end is None:
            return False
        try:
            self._pump.finish(end)
        finally:
            self._end()
        if end.error is not None:
            raise end.error
        return True

    def _advance(self) -> End | None:
        """Send what there is, and wait; return how the stream ended, None if it has been parked."""
        while True:
            step = self._step or self._pass_on()
            self._step = None
            if self._data:
                self._send_rest()
            if isinstance(step, End):
                return step
            if isinstance(step, Pause):
                gevent.sleep(step.seconds)
            elif step is None:
                continue
            elif self._park():
                return None
            else:
                self._pump.source.wait(self._pump.patience())

    def _pass_on(self) -> Step | None:
        """Send what can be passed on now, and return the step after that; None if not all of it fits."""
        while True:
            step = self._pump.step()
            if isinstance(step, bytes):
                self._sent += len(step)
                self._data += b"%X\r\n%b\r\n" % (len(step), step) if self._is_chunked else step
                if len(self._data) < SEND_SIZE:
                    continue
            elif isinstance(step, End) and step.error is None and self._is_chunked:
                self._data += LAST_CHUNK
            if self._data:
                try:
                    self._data = self._data[self._client.send(self._data) :]
                except BlockingIOError:
                    pass
            if not isinstance(step, bytes):
                return step
            if self._data:
                return None

    def _send_rest(self) -> None:
        """Wait for a client that has not taken everything."""
        client, data, self._data = self._client, self._data, b""
        client.setblocking(True)
        with self._pump.writing():
            client.sendall(data)
        client.setblocking(False)

    def _end(self) -> None:
        if self._logged is not None:
            compat.log_access(self._log, *self._logged, self._sent, datetime.now() - self._started)
        self._close()

    def _park(self) -> bool:
        """Let the event loop go on when there is something to read; return False if the source has to be waited for."""
        self._unsubscribe = self._pump.source.subscribe(self._on_wake)
        if self._unsubscribe is None:
            return False
        if not self._is_taken:
            self._is_taken = True
            # The greenlet is left with a closed one, and so may end as it always does.
            self._client = Client(self._client, self._client.listener, self._client.address)
            self._pump.exchange.client.connection = self._client
        self._client.listener.pool.park(self)
        if self._pump.heartbeat:
            self._start_timer()
        return True

    def _start_timer(self) -> None:
        self._timer = gevent.get_hub().loop.timer(self._pump.patience())
        self._timer.start(self._on_timer)

    def _on_timer(self) -> None:
        """Look whether a heartbeat is due; called by the event loop."""
        self._timer.close()
        self._on_wake()
        if self._unsubscribe is not None:
            self._start_timer()

    def _on_wake(self) -> None:
        """Pass on what has come; called by the event loop, so nothing in here may wait."""
        if self._unsubscribe is None:
            return
        try:
            step = self._pass_on()
        except OSError:
            # The client has left; the same error comes again in a greenlet, where it ends the stream.
            step = None
        if self._data or step is not WAIT:
            self._step = step
            self.leave_loop()
            self._client.listener.pool.unpark(self, self._resume)

    def leave_loop(self) -> None:
        """Have the event loop call no more; it does so for parked streams alone."""
        assert self._unsubscribe is not None
        self._unsubscribe()
        self._unsubscribe = None
        if self._timer is not None:
            self._timer.close()

    def _resume(self) -> None:
        """Go on in a new greenlet, and then with the connection."""
        is_ready, client = self.serve(), self._client
        if is_ready:
            client.listener.handle(client, client.address)
        elif self._unsubscribe is None:
            client.close()

    def abort(self, error: BaseException) -> None:
        """End the stream where it is, in a greenlet, when it has left the loop: its pool is killed."""
        try:
            self._pump.finish(self._pump.fail(error))
        finally:
            self._end()
            self._client.close()
