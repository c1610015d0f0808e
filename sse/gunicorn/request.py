"""What gunicorn does with a request's body: one that is refused is not read, one that is malformed is a 400."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from werkzeug.exceptions import BadRequest

from ..compat.gunicorn import BODY_ERRORS, replace_body

#: Bytes of an unread body that are read so that the connection can be used again; beyond, it is closed.
MAX_UNREAD = 64 * 1024


class RequestBody:
    """The body of a request, which counts what has not been read; both the app and gunicorn read from it.

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

        The name is gunicorn's, which otherwise reads what is left of a body, whatever its length, in one go.
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
        try:
            data = read(size)
        except BODY_ERRORS as error:
            self._is_malformed = True
            raise BadRequest(f"The request body is malformed: {error}") from error
        if self._left:
            self._left -= len(data)
        return data


def track_body(req: Any) -> RequestBody | None:
    """Replace the body of a request of gunicorn's by one that is tracked; return it, None if there is no body."""
    for name, value in req.headers:
        if name == "CONTENT-LENGTH":
            body = RequestBody(req.body, int(value))
            break
        if name == "TRANSFER-ENCODING":
            body = RequestBody(req.body, None)
            break
    else:
        return None
    replace_body(req, body)
    return body
