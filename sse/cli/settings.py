"""Show the settings in effect, without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

import click

from ..protocol.target.entry import Upstream
from ..settings import PREFIX, Settings

#: Keys whose values hold secrets, and what is shown of them instead.
_WIDTH = 30


def show_settings(config: Mapping[str, Any], settings: Settings) -> None:
    """Write one line for each setting to standard output.

    :param config: of the app, for the values as they were given.
    :param settings: those that were made of it.
    """
    for known in fields(settings):
        key = PREFIX + known.name.upper()
        mark = "*" if key in config and getattr(settings, known.name) != _default(known) else " "
        click.echo(f"{mark} {key:<{_WIDTH}} {_shown(known.name, config.get(key), getattr(settings, known.name))}")


def _default(known: Field[Any]) -> Any:
    return known.default_factory() if callable(known.default_factory) else known.default


def _shown(name: str, given: Any, value: Any) -> str:
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
