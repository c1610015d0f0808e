"""class StreamWorker: gunicorn's gevent worker, which gives streams their greenlets and takes them back."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import partial
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http.wsgi import Response
from gunicorn.workers.ggevent import GeventWorker

from ..relay.linger import linger
from ..relay.stream.pump import Pump
from .request import RequestBody, track_body
from .socket import Client, Listener
from .stream import Environ, Stream
from .tls import TLSListener

#: What a client that has left looks like to whoever writes.
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class Settled:
    """gunicorn's settings, each looked up once: for one request it asks more than thirty times, at two calls each."""

    def __init__(self, cfg: Config) -> None:
        self._cfg = cfg
        self.__dict__.update({name: getattr(cfg, name) for name in (*cfg.settings, "is_ssl")})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)


class StreamWorker(GeventWorker):  # type: ignore[misc]  # gunicorn leaves it untyped
    """gunicorn's gevent worker; `worker_class = "sse.gunicorn.StreamWorker"` in gunicorn.conf.py.

    The hook `post_request` is called when a stream has begun to wait, not when it has ended.
    """

    wsgi: Any
    cfg: Any

    def run(self) -> None:
        """Serve until the worker is to stop."""
        # Here, because until now they were the app itself and what may be changed, which hooks want to see.
        self.wsgi = partial(self._answer, self.wsgi)
        self.cfg = Settled(self.cfg)
        # Statsd's logger counts what others leave out.
        self.tells_of_requests = self.log.access_log_enabled or type(self.log).access is not Logger.access
        # What a connection begins with is looked for once more behind a stream, where a client may have written it.
        self._has_prologue = self.cfg.proxy_protocol != "off" or "h2" in self.cfg.http_protocols
        super().run()

    def server_class(self, listener: Any, *, spawn: Pool, **options: Any) -> StreamServer:
        """Return what accepts connections; gunicorn asks for it, and gives pywsgi's options besides."""
        handle = partial(self.handle, listener)
        if "ssl_context" in options:
            server = TLSListener(listener, handle, spawn, options["ssl_context"], self.log)
        else:
            server = Listener(listener, handle, spawn)
        if self.cfg.workers > 1:
            # The others get their share.
            server.max_accept = 1
        return server

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve a request; requests that came together on one connection give way to other connections."""
        sock.take_turn()
        body = track_body(req)
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            if body is not None and body.failed:
                linger(sock)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Respond to a request that cannot be served, such that the response arrives."""
        super().handle_error(req, client, addr, exc)
        if isinstance(exc, Exception):
            linger(client)

    def _answer(self, app: Any, environ: Environ, start_response: Any) -> Iterable[bytes] | Stream:
        """Be the app; where it answers with a pump that nobody needs to be blocked in, return a stream."""
        body: Iterable[bytes] = app(environ, start_response)
        client, response = environ.get("gunicorn.socket"), start_response.__self__
        unread = environ["wsgi.input"]
        if isinstance(unread, RequestBody) and not unread.is_whole:
            if unread.failed:
                response.force_close()
            return body
        if not (isinstance(body, Pump) and isinstance(client, Client) and type(response) is Response):
            return body
        # Where somebody has set a length, gunicorn keeps to it.
        if self._has_prologue or response.response_length is not None:
            return body
        # What has come of another request would be lost with the greenlet; of this one there is no more, for it has
        # been read whole before the upstream was asked.
        if early := response.req.unreader.take_buffered():
            response.req.unreader.unread(early)
            return body
        descriptor = body.wait_outside()
        return body if descriptor is None else Stream(self, client, body, descriptor, response, environ)

    def is_already_handled(self, respiter: Any) -> bool:
        """Send a stream; gunicorn sends what else there is.

        :raises StopIteration: if no other request is to be read in this greenlet; gunicorn then ends it.
        """
        if not isinstance(respiter, Stream):
            return bool(super().is_already_handled(respiter))
        if not respiter.run() or respiter.is_last:
            raise StopIteration
        return True

    def resume(self, stream: Stream) -> None:
        """Go on with a stream in a new greenlet, and then with its connection."""
        is_whole = False
        try:
            if not stream.run():
                return
            is_whole = True
        except OSError as error:
            if error.errno not in GONE:
                self.log.exception("Socket error processing request.")
        except gevent.GreenletExit:
            pass
        except Exception:
            self.log.exception("Error handling request")
        client = stream.client.renewed()
        if is_whole and not stream.is_last:
            client.server.serve(client, client.address)
        else:
            client.close()
