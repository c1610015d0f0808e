"""Refusals in the views of a site, which need not catch them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flask import Response, has_request_context
from werkzeug.exceptions import HTTPException

from ..errors import SSEError, StoreUnavailable
from .call import current_call
from .report import report_refusal
from .response import problem


class Refused(HTTPException):
    """A relay, a reader or an event that was refused, or an upstream or store that could not be reached.

    A view need not catch it: Flask responds with `response`, the same as the gateway's endpoints send, and a site's
    error handlers leave it alone.

    :param error: the reason; `error.code` is as documented, and `error.retry_after` the seconds to wait, if known.
    """

    # Without a status of its own: so Flask passes the response on as `abort(response)` does.
    code = None

    def __init__(self, error: SSEError, response: Response) -> None:
        super().__init__(str(error), response)
        self.error = error


class _StoreRefused(Refused, StoreUnavailable):  # type: ignore[misc]  # `code` is that of Refused
    """`StoreUnavailable` in a view: code that runs in a view and elsewhere catches the same exception."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turn an error of the block into a response, if there is a request.

    :raises Refused: in a request, for any `SSEError`, which elsewhere stays what it is.
    """
    try:
        yield
    except SSEError as error:
        if not has_request_context():
            raise
        report_refusal(error)
        kind = _StoreRefused if isinstance(error, StoreUnavailable) else Refused
        raise kind(error, problem(error, current_call())) from error
