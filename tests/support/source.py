"""Reads sources as a pump does that may block."""

from __future__ import annotations

from collections.abc import Iterator

from sse.relay.stream.source import Source


def pieces_of(source: Source, *, silence: float | None = None) -> Iterator[bytes]:
    """Yield what a source gives until its end.

    :param silence: seconds after which b"" is yielded where nothing has come; None: never.
    """
    while (piece := source.read()) != b"":
        if piece is not None:
            yield piece
            continue
        source.wait(silence)
        if silence is not None:
            piece = source.read()
            if piece == b"":
                return
            yield piece or b""
