"""The commands `flask sse streams` and `flask sse end`: the open streams of all workers of this host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ..relay.control import send, sockets
from ..web.log import quote

COLUMNS = ("id", "client", "upstream", "target", "since", "bytes", "events", "state")

_ID = re.compile(r"([1-9][0-9]*)-([1-9][0-9]*)")


def list_streams(directory: str, *, as_json: bool) -> None:
    """Write the open streams to standard output.

    :raises click.ClickException: if not all workers responded.
    """
    silent: list[int] = []
    streams = list(_streams(_sockets(directory), silent))
    if as_json:
        click.echo(json.dumps(streams, indent=2))
    else:
        click.echo("\n".join(_table([COLUMNS, *(_row(stream) for stream in streams)])))
    if silent:
        raise click.ClickException(f"no response from the workers {', '.join(map(str, silent))}")


def end_stream(directory: str, id: str) -> None:
    """End a stream.

    :raises click.ClickException: if there is none of that id.
    """
    found = _ID.fullmatch(id)
    path = _sockets(directory).get(int(found[1])) if found is not None else None
    if found is None or path is None or not _send(path, f"end {found[2]}"):
        raise click.ClickException(f"no open stream has the id {id!r}; flask sse streams lists them")


def _sockets(directory: str) -> dict[int, Path]:
    """Return the workers' sockets, by the ids of the workers.

    :raises click.ClickException: if the setting is missing, or the directory cannot be read.
    """
    if not directory:
        raise click.ClickException("SSE_CONTROL_DIR is not set, so the workers cannot be reached")
    try:
        return sockets(Path(directory))
    except OSError as error:
        raise click.ClickException(f"SSE_CONTROL_DIR: {directory!r} cannot be read: {error.strerror}") from error


def _send(path: Path, command: str) -> list[dict[str, Any]] | None:
    try:
        return send(path, command)
    except OSError as error:
        raise click.ClickException(f"no response from the worker {path.stem}: {error.strerror or error}") from error


def _streams(workers: Mapping[int, Path], silent: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the streams of all workers that respond.

    :param silent: the ids of the others are added to it.
    :raises click.ClickException: if there is no worker.
    """
    has_worker = False
    for pid, path in workers.items():
        try:
            streams = send(path, "list")
        except OSError:
            silent.append(pid)
            continue
        has_worker = has_worker or streams is not None
        yield from streams or ()
    if not has_worker and not silent:
        raise click.ClickException("no worker is running")


def _row(stream: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(quote(stream[column]) for column in COLUMNS)


def _table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield lines whose columns stand below each other."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()
