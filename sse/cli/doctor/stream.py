"""Checks an event stream as it arrives: unchanged, and each event when it was sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import requests
from urllib3.exceptions import HTTPError

from .finding import Finding, Level, fail, ok, warn

#: Events looked at, which the demonstration sends 0.2 s apart.
EVENTS = 6
#: Bursts they must come in at least. Six within two were held back for a second, and no machine is that slow.
BURSTS = 3
#: Seconds without an event between two bursts, and between the head and the first event.
GAP = 0.05
#: Seconds that the events may take altogether.
PATIENCE = 5.0
#: Heads looked at before one counts as late: a busy machine may see head and event at once.
HEADS = 3

READ_SIZE = 64 * 1024

_BUFFERING = (
    "nginx: proxy_buffering off, and no proxy_ignore_headers X-Accel-Buffering; "
    "Apache: ProxyPass ... flushpackets=on; or the files of deploy/"
)


class Stream:
    """An event stream that can be requested again.

    :param request: returns a new response, unread, for an `Accept-Encoding`.
    :param is_own: whether it is one of the operator's, whose events are unknown.
    """

    def __init__(self, request: Callable[[str], requests.Response], *, is_own: bool, shown: str) -> None:
        self.request = request
        self.is_own = is_own
        self.shown = shown
        self.response = request("gzip, br")
        self.begun = time.monotonic()


def check_stream(stream: Stream) -> Iterator[Finding]:
    """Yield how the stream arrives; then close its responses."""
    with stream.response as response:
        if (wrong := _unusable(stream)) is not None:
            yield wrong
            return
        yield from _fields(response)
        coding = response.headers.get("Content-Encoding", "identity")
        times = _arrivals(response, EVENTS) if coding == "identity" else []
        begun = stream.begun
    if coding != "identity":
        yield fail(
            "compression",
            f"a proxy on the way compresses it ({coding}), and waits for more before it sends",
            "nginx: gzip off; Caddy: no encode; Apache: SetEnv no-gzip 1; leave text/event-stream out elsewhere",
        )
        with stream.request("identity") as response:
            begun = time.monotonic()
            times = _arrivals(response, EVENTS)
    yield _judge(stream, times)
    if times and not stream.is_own and not _has_early_head(stream, times[0] - begun):
        yield warn("head", "it waits for the first event, and the client with it", _BUFFERING)


def _unusable(stream: Stream) -> Finding | None:
    response, shown = stream.response, stream.shown
    if stream.is_own and response.status_code == 404:
        remedy = "give the URL of the service, or that of one of its event streams"
        return fail("stream", f"neither {shown}/sse nor {shown} is there", remedy)
    if 300 <= response.status_code < 400:
        return fail("stream", f"{shown} redirects", "give the URL where it leads, and let clients call that")
    if response.status_code != 200:
        return fail(
            "stream", f"{shown} is {response.status_code}", "the logs of the proxy and the service have the reason"
        )
    content_type = response.headers.get("Content-Type", "")
    if content_type.partition(";")[0].strip().lower() != "text/event-stream":
        if stream.is_own:
            return fail(
                "stream", f"{shown} is not an event stream", "give the URL of one of the service's event streams"
            )
        return fail("stream", f"{shown} does not come as text/event-stream", "let the proxy leave Content-Type alone")
    return None


def _fields(response: requests.Response) -> Iterator[Finding]:
    if "no-transform" not in response.headers.get("Cache-Control", ""):
        yield warn(
            "Cache-Control",
            "no-transform is missing, so proxies may compress or cache it",
            "nginx: no proxy_hide_header, add_header or expires for Cache-Control",
        )
    if response.raw.version < 11:
        yield warn(
            "HTTP version", "1.0, in which a broken stream looks complete", "make the proxy use HTTP/1.1 or HTTP/2"
        )


def _arrivals(response: requests.Response, count: int) -> list[float]:
    """Return when each of the first events was there; fewer if they do not come."""
    times: list[float] = []
    rest, deadline = b"", time.monotonic() + PATIENCE
    try:
        while len(times) < count and time.monotonic() < deadline:
            piece = response.raw.read1(READ_SIZE, decode_content=False)
            if not piece:
                break
            *ended, rest = (rest + piece).split(b"\n\n")
            times += [time.monotonic()] * len(ended)
    except (HTTPError, OSError):
        # Silence, or a stream that broke: what has come is what can be judged.
        return times
    return times


def _judge(stream: Stream, times: list[float]) -> Finding:
    bursts = 1 + sum(later - earlier > GAP for earlier, later in pairwise(times))
    if len(times) >= EVENTS and bursts >= BURSTS:
        return ok("stream", f"{stream.shown}: its events come one by one")
    if len(times) >= EVENTS:
        text = f"{len(times)} events came in {bursts} burst{'' if bursts == 1 else 's'}"
    else:
        text = f"{len(times)} events came within {PATIENCE:g} s"
    # What such a stream should have sent by now is unknown here.
    return held_back(stream.shown, text, level=Level.WARN if stream.is_own else Level.FAIL)


def held_back(shown: str, text: str, *, level: Level = Level.FAIL) -> Finding:
    """Return the finding that something buffers.

    :param text: by what it is seen.
    """
    text = f"{shown}: {text}: a proxy on the way buffers it"
    return Finding(level=level, what="stream", text=text, remedy=_BUFFERING)


def _has_early_head(stream: Stream, first: float) -> bool:
    for _ in range(HEADS - 1):
        if first > GAP:
            return True
        with stream.request("identity") as response:
            begun = time.monotonic()
            times = _arrivals(response, 1)
            first = times[0] - begun if times else 0
    return first > GAP
