"""What is sent to an upstream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import requests

from ...protocol.http1.head import encode_request_head
from ...protocol.target.parse import Target
from ..exchange import Side

#: Names the gateway where the client names no product. RFC 9110, section 10.1.5.
USER_AGENT = "flask-sse-relay"


@dataclass(kw_only=True, slots=True)
class UpstreamRequest:
    """What is sent to an upstream; all of it is checked and final.

    :param client: the client's name; look-ups for one client do not delay those for another.
    """

    method: str
    target: Target
    fields: Sequence[tuple[str, str]] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    client: str = ""


class PreparedUpstreamRequest(requests.PreparedRequest):
    """What the client of upstreams sends; requests' own preparation would parse and encode the URL again.

    :param side: the upstream side of the exchange.
    :param fields: all but those that this adds: Host, User-Agent, Content-Length.
    """

    def __init__(self, request: UpstreamRequest, side: Side, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.target = request.target
        self.side = side
        self.client = request.client
        self.method = request.method
        #: Whether a kept connection may be used.
        self.may_reuse = True
        named = {name.lower(): value for name, value in fields}
        #: Whether the connection may carry another exchange. RFC 4559, section 6: Negotiate, like NTLM, "assumes that
        #: the TCP connection is authenticated"; another client's request on it would be logged in.
        self.may_keep = named.get("authorization", "").partition(" ")[0].lower() not in ("negotiate", "ntlm")
        #: Whether a part of the request was sent.
        self.was_sent = False
        # RFC 9110, section 7.2: "A user agent that sends Host SHOULD send it as the first field in the header section".
        lines = [("Host", request.target.authority), *fields]
        if "user-agent" not in named:
            lines.append(("User-Agent", USER_AGENT))
        if request.body is not None:
            lines.append(("Content-Length", str(len(request.body))))
        #: The whole request as it is sent.
        self.data = encode_request_head(request.method, request.target.request_target, lines) + (request.body or b"")
