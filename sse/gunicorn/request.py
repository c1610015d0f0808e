"""A request's body as the app gets it: one that is refused is not read, one that is malformed is a 400."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from werkzeug.exceptions import BadRequest

#: Bytes of an unread body that are read so that the connection can be used again; beyond, it is closed.
MAX_UNREAD = 64 * 1024


class RequestBody:
    """The body of a request, which counts what has not been read.

    :param body: gunicorn's.
    :param length: its bytes; None if it is chunked.
    """

    __slots__ = ("_body", "_is_malformed", "_left")

    def __init__(self, body: Any, length: int | None) -> None:
        self._body = body
        self._left = length
        self._is_malformed = False

    @property
    def is_whole(self) -> bool:
        """Whether the body has been read to its end."""
        return self._left == 0

    @property
    def failed(self) -> bool:
        """Whether the connection ends here: where the next request starts is unknown, or too far away.

        gunicorn would read what is left of a body, whatever its length, in one go.
        """
        return self._is_malformed or self._left is None or self._left > MAX_UNREAD

    def read(self, size: int | None = None) -> bytes:
        """Return so many bytes, fewer only at the end; None or -1: all.

        :raises BadRequest: if the body is malformed or ends early, so that Flask responds with 400.
        """
        data = self._take(self._body.read, size)
        if self._left is None and (size is None or size < 0 or len(data) < size):
            self._left = 0
        return data

    def readline(self, size: int | None = None) -> bytes:
        """Return the next line, b"" at the end.

        :raises BadRequest: as `read`.
        """
        data = self._take(self._body.readline, size)
        if self._left is None and not data and size != 0:
            self._left = 0
        return data

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Return all lines."""
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _take(self, read: Callable[[int | None], bytes], size: int | None) -> bytes:
        if self._is_malformed:
            # Read again, it would seem to be at its end.
            raise BadRequest("The request body is malformed")
        try:
            data = read(size)
        except Exception as error:
            # What the parser raises has no base of its own; an error of the connection has a number, or is a time-out.
            if isinstance(error, OSError) and (error.errno is not None or isinstance(error, TimeoutError)):
                raise
            self._is_malformed = True
            raise BadRequest(f"The request body is malformed: {error}") from error
        if self._left:
            self._left -= len(data)
        return data


def track_body(environ: dict[str, Any]) -> RequestBody | None:
    """Replace the body of a request by one that is tracked; return it, None if there is no body."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        body = RequestBody(environ["wsgi.input"], None)
    elif length := environ.get("CONTENT_LENGTH"):
        body = RequestBody(environ["wsgi.input"], int(length))
    else:
        return None
    environ["wsgi.input"] = body
    return body
