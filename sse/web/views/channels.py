"""`GET /channels?channel=NAME`: channels for the readers that a site's rule lets in."""

from __future__ import annotations

from collections.abc import Callable

from flask import Request, Response, request

from ...errors import ChannelNotAllowed
from ..channel import subscribe
from .refusal import check_method

ALLOWED = ("GET", "HEAD", "OPTIONS")

#: A site's rule: whether a request may read a channel.
MayRead = Callable[[Request, str], bool]


def channels(may_read: MayRead) -> Response:
    """Stream the channels that the query names, if the rule allows each of them.

    :raises ChannelNotAllowed: if it does not, whether there is such a channel or not.
    """
    if (options := check_method(request.method, ALLOWED)) is not None:
        return options
    names = request.args.getlist("channel")
    if not all(may_read(request, name) is True for name in names):
        raise ChannelNotAllowed
    return subscribe(*names)
