"""Reads a source to its end, as a driver does."""

from __future__ import annotations

from collections.abc import Iterator

from sse.relay.stream.source import Source


def pieces(source: Source) -> Iterator[bytes]:
    """Yield what a source gives until it ends, and wait where it has nothing."""
    while (piece := source.read()) != b"":
        if piece is None:
            source.wait(None)
        else:
            yield piece
