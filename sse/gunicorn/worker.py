"""class StreamWorker: gunicorn's gevent worker, which parks streams that wait."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import Any

from ..compat import gunicorn as compat
from ..compat.gunicorn import App, Environ
from ..relay.linger import linger
from ..relay.stream.pump import HANDOVER
from ..relay.upstream.transport import enable_keep_alive
from .balance import Balance
from .head import FIELDS, replace_refusal, separate_fields
from .pool import ConnectionPool
from .request import track_body
from .socket import Client, Listener
from .stream import Stream
from .tls import TLSListener

#: Bytes of a response of gunicorn's own.
MAX_RESPONSE = 64 * 1024


class StreamWorker(compat.HookedWorker):
    """gunicorn's gevent worker; `worker_class = "sse.gunicorn.StreamWorker"` in gunicorn.conf.py.

    The hook `post_request` is called when a stream has been parked, not when it has ended.
    """

    #: Memory that all workers of a master share, made before they are forked, and this worker's place in it; see
    #: `Balance`.
    loads: Any = None
    slot = 0
    #: What the master does on signals, if it is this project's; see `master`.
    guard: Any = None
    is_serving = False
    _shares_refusals = False

    def run(self) -> None:
        """Serve until the worker is stopped."""
        if self.guard is not None:
            self.guard.serve(self.cfg.workers)
        self.is_serving = True
        if found := compat.unexpected():
            self.log.warning("Streams are served by gunicorn's own gevent worker: %s", "; ".join(found))
            super().run()
        else:
            #: Of all listeners, because a worker is as busy as all of them.
            self._pools: list[ConnectionPool] = []
            self._logs_access = compat.logs_access(self.cfg)
            # Here, because until now it was the app itself, which hooks want to see.
            state = getattr(self.wsgi, "extensions", {}).get("sse")
            self._shares_refusals = state is not None and bool(state.settings.cors_origins)
            # What a connection begins with is looked for once more behind a stream, where a client may have written it.
            self._has_prologue = self.cfg.proxy_protocol != "off" or "h2" in self.cfg.http_protocols
            self.run_hooked()

    def listen(self, listener: Any, *, spawn: Any, ssl_context: Any = None, **_: Any) -> Any:
        """Return what accepts connections."""
        enable_keep_alive(listener)
        pool = ConnectionPool(spawn.size)
        self._pools.append(pool)
        balance = None
        if self.cfg.workers > 1 and self.loads is not None:
            balance = Balance(self.loads, self.slot, lambda: sum(map(len, self._pools)))
        parts = (listener, self.handle, pool, balance, self.log)
        server = Listener(*parts) if ssl_context is None else TLSListener(ssl_context, *parts)
        if self.cfg.workers > 1 and balance is None:
            # The others get their share, which nothing else sees to.
            server.max_accept = 1
        return server

    def serve_request(self, client: Any, address: Any, request: Any, serve: Callable[[], None]) -> bool:
        """Serve a request, and return whether the connection ends with it; its response has arrived then.

        Requests that came together on one connection give way to other connections.
        """
        client.take_turn()
        client.request, client.body = request, None
        request.sse_fields = separate_fields(request, address, self.cfg)
        try:
            serve()
        finally:
            body, client.request, client.body = client.body, None, None
            if is_last := body is not None and body.failed:
                linger(client)
        return is_last

    def refuse(self, client: Any, error: BaseException, write: Callable[[Any], None]) -> None:
        """Respond to a request that cannot be served, such that the response arrives."""
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            # No file descriptor is left.
            write(client)
        else:
            with ours, theirs, contextlib.suppress(OSError):
                write(theirs)
                # It is written whole, for it is short, and sent in one piece.
                response = ours.recv(MAX_RESPONSE, socket.MSG_DONTWAIT)
                client.sendall(replace_refusal(response, is_shared=self._shares_refusals))
        if isinstance(error, Exception):
            linger(client)

    def respond(self, app: App, environ: Environ, start_response: Any) -> Iterable[bytes]:
        """Call the app; send what it responds, if that is a stream."""
        client = compat.client_of(environ)
        if client.request is None:
            # HTTP/2, of which gunicorn serves all.
            return app(environ, start_response)
        environ[FIELDS] = client.request.sse_fields
        unread = client.body = track_body(environ)
        body = app(environ, start_response)
        response = compat.response_of(start_response)
        if unread is not None and not unread.is_whole:
            if unread.failed:
                compat.close_behind(response)
            return body
        stream = self._stream(body, environ, client, response)
        if stream is None:
            return body
        if not stream.serve():
            raise compat.EndOfConnection
        handled: Iterable[bytes] = compat.ALREADY_HANDLED
        return handled

    def _stream(self, body: Any, environ: Environ, client: Any, response: Any) -> Stream | None:
        """Return the stream that a body is, None if gunicorn has to iterate it."""
        handover = environ.pop(HANDOVER, None)
        # Another body is what something between the app and this has made of it.
        if handover is None or handover.body is not body or not isinstance(client, Client):
            return None
        # What has been read of another request would be lost with the greenlet.
        if self._has_prologue or compat.has_read_ahead(client.request):
            return None
        head = compat.encode_head(response)
        if b"\r\ncontent-length:" in head.lower():
            # gunicorn sends no more than a length that the app has set.
            return None
        logged = (response, client.request, environ) if self._logs_access else None
        return Stream(client, handover.pump, handover.body.close, head, self.log, logged)
