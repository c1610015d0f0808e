"""What is asked of a relay: loads, and the event streams that they consist of."""

from __future__ import annotations

import functools
from dataclasses import dataclass

TEXT = b"The quick brown fox jumps over the lazy dog. " * 4


@dataclass(frozen=True, kw_only=True)
class Load:
    """Streams of a kind.

    :param at_once: streams that are open at a time.
    :param rate: events per second of each stream; 0 sends them as fast as they are taken. With a rate, all streams
        are open and have got their first event before any gets its second.
    :param settle: seconds between the two, for what is measured while nothing happens.
    """

    streams: int
    at_once: int
    events: int
    rate: float = 0.0
    settle: float = 0.0

    def path(self, stream: int) -> str:
        """Return the path at which the upstream gives a stream."""
        return f"/{stream}/{self.events}/{self.rate}"

    def scaled(self, scale: float) -> Load:
        """Return the load with fewer streams, and fewer events where there are many."""
        streams = max(2, round(self.streams * scale))
        events = self.events if self.events < 10 else max(5, round(self.events * scale))
        return Load(
            streams=streams, at_once=min(self.at_once, streams), events=events, rate=self.rate, settle=self.settle
        )


#: Not measured: what is set up with the first requests is no cost of the others.
WARM_UP = Load(streams=100, at_once=20, events=20)
#: In this order, for what another load leaves allocated would hide the memory of open streams.
LOADS = {
    "idle": Load(streams=500, at_once=500, events=2, rate=1.0, settle=0.5),
    "llm": Load(streams=200, at_once=200, events=180, rate=30.0),
    "firehose": Load(streams=8, at_once=8, events=15_000),
    "short": Load(streams=2000, at_once=20, events=5),
    "one": Load(streams=200, at_once=1, events=5),
}


@functools.lru_cache(maxsize=5000)
def events_of(stream: int, count: int) -> tuple[bytes, ...]:
    """Return a stream's events: 80 to 200 bytes each, and no two of all streams alike."""
    return tuple(
        b'id: %d\ndata: {"stream": %d, "delta": "%b"}\n\n' % (n, stream, TEXT[: 40 + (37 * n + 11 * stream) % 121])
        for n in range(count)
    )
