"""The command `flask sse settings`."""

from __future__ import annotations

import json
import re
from dataclasses import Field, fields
from typing import Any

import click
from flask import current_app

from ..protocol.target.entry import Upstream
from ..settings import PREFIX, Settings

#: Columns of a key.
_WIDTH = 30


def settings() -> None:
    """Show the settings in effect, without secrets; `*` marks those that differ from the default."""
    config, values = current_app.config, current_app.extensions["sse"].settings
    for known in fields(Settings):
        key, value = PREFIX + known.name.upper(), getattr(values, known.name)
        mark = "*" if key in config and value != _default(known) else " "
        click.echo(f"{mark} {key:<{_WIDTH}} {_shown(known.name, value)}")


def _default(known: Field[Any]) -> Any:
    return known.default_factory() if callable(known.default_factory) else known.default


def _shown(name: str, value: Any) -> str:
    """Return a value as it is written in the environment, with `***` in the place of secrets."""
    if name == "passcodes":
        return json.dumps(dict.fromkeys(value, "***"))
    if name == "upstreams":
        return "the demonstration" if value is None else json.dumps({entry.name: _urls(entry) for entry in value})
    if isinstance(value, str) and "://" in value:
        return json.dumps(_without_credentials(value))
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=lambda other: "***")


def _urls(entry: Upstream) -> str | dict[str, str]:
    """Return the URL of an upstream, or those of its targets."""
    return {target.id: target.base.url for target in entry.targets} or entry.base.url


def _without_credentials(uri: str) -> str:
    # Everything up to the last @ before the path; a query can hold a password too.
    return re.sub(r"://[^/]*@", "://***@", uri.partition("?")[0]) + ("?***" if "?" in uri else "")
