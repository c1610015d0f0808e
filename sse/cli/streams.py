"""The commands `flask sse streams` and `flask sse end`: the open streams of all workers of this host."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from flask import current_app

from ..relay.control import send, sockets
from ..web.log import quote

COLUMNS = ("id", "client", "upstream", "target", "since", "bytes", "events", "state")

_ID = re.compile(r"([1-9][0-9]*)-([1-9][0-9]*)")


@click.option("--json", "as_json", is_flag=True, help="Write a JSON array.")
def streams(as_json: bool) -> None:
    """List the streams that are open in all workers of this host.

    It reads the sockets in SSE_CONTROL_DIR. The exit status is 1 if a worker did not respond, or none is running.
    """
    found, silent, has_worker = list[dict[str, Any]](), list[str](), False
    for pid, path in _sockets().items():
        try:
            streams = send(path, "list")
        except OSError:
            silent.append(str(pid))
            continue
        has_worker = has_worker or streams is not None
        found += streams or ()
    if not has_worker and not silent:
        raise click.ClickException("no worker is running")
    click.echo(json.dumps(found, indent=2) if as_json else _table(found))
    if silent:
        raise click.ClickException(f"no response from the workers {', '.join(silent)}")


@click.argument("id")
def end(id: str) -> None:
    """End the stream ID, as soon as an event has ended; called again, wherever it is.

    The exit status is 1 if no stream of that id is open.
    """
    found = _ID.fullmatch(id)
    path = _sockets().get(int(found[1])) if found is not None else None
    try:
        ended = send(path, f"end {found[2]}") if found is not None and path is not None else None
    except OSError as error:
        raise click.ClickException(
            f"no response from the worker {id.partition('-')[0]}: {error.strerror or error}"
        ) from error
    if not ended:
        raise click.ClickException(f"no open stream has the id {id!r}; flask sse streams lists them")


def _sockets() -> dict[int, Path]:
    """Return the workers' sockets, by the ids of the workers.

    :raises click.ClickException: if the setting is missing, or the directory cannot be read.
    """
    directory: str = current_app.extensions["sse"].settings.control_dir
    if not directory:
        raise click.ClickException("SSE_CONTROL_DIR is not set, so the workers cannot be reached")
    try:
        return sockets(Path(directory))
    except OSError as error:
        raise click.ClickException(f"SSE_CONTROL_DIR: {directory!r} cannot be read: {error.strerror}") from error


def _table(streams: Iterable[Mapping[str, Any]]) -> str:
    """Return lines whose columns stand below each other."""
    rows = [COLUMNS, *(tuple(quote(stream[column]) for column in COLUMNS) for stream in streams)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
