"""Find settings under names that are not read: misspelt, without a prefix or with one too many, or below a table."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import click

PREFIX = "SSE_"
#: What Flask wants in front of a key in the environment.
ENVIRONMENT_PREFIX = "FLASK_"
#: Names the settings file; it stands in the environment alone, without Flask's prefix.
CONFIG_FILE = "SSE_CONFIG"

#: How alike two keys must be (difflib's ratio) for one to be a misspelling; Flask-SSE's SSE_REDIS_URL is less.
LIKENESS = 0.75


class SettingError(click.ClickException, ValueError):
    """A wrong setting; its text names the key. Flask's command line shows it as one line, without a traceback."""


def find_key(name: object, keys: Collection[str]) -> str | None:
    """Return the key that a name is or was meant to be; None if it is something else.

    :param keys: all there are.
    """
    key = name.upper().removeprefix(ENVIRONMENT_PREFIX) if isinstance(name, str) else ""
    if not key.startswith(PREFIX) or key in keys:
        return key if key in keys else None
    return next(iter(difflib.get_close_matches(key, keys, n=1, cutoff=LIKENESS)), None)


def check_below(table: str, value: object, keys: Collection[str]) -> None:
    """Check that no setting stands below a table, where it would be taken for one of the table's own names.

    :raises SettingError: if one does; the message shows no value.
    """
    for name in _iter_names(value):
        if find_key(name, keys) is not None:
            raise SettingError(f"{table}: {name} is not read below this table: move it above all tables")


def _iter_names(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield name
            yield from _iter_names(entry)


def load_file(file: BinaryIO, keys: Collection[str]) -> dict[str, Any]:
    """Return the settings of a TOML file.

    :raises SettingError: if it is not TOML, or has a setting under a name that is not read.
    """
    settings = tomllib.load(file)
    for name, value in settings.items():
        if isinstance(value, dict) and name.upper() == PREFIX.rstrip("_"):
            raise SettingError(f"the table {name} in the settings file is not read: write {PREFIX}... above all tables")
        bare = PREFIX + name.upper()
        key = bare if bare in keys else find_key(name, keys)
        if key not in (name, None):
            raise SettingError(f"{name} in the settings file is not read: did you mean {key}?")
        check_below(name, value, keys)
    return settings


def check_environment(names: Iterable[str], keys: Collection[str]) -> None:
    """Check the names of environment variables; `Settings` checks those that Flask reads.

    :raises SettingError: if one is a setting that is not read.
    """
    for name in names:
        if name == CONFIG_FILE:
            continue
        if name.upper().removeprefix(ENVIRONMENT_PREFIX) == CONFIG_FILE:
            raise SettingError(f"{name} in the environment is not read: did you mean {CONFIG_FILE}?")
        # Two underscores separate a key from a name within its object.
        key = find_key(name.partition("__")[0], keys)
        if key is not None and not name.startswith(ENVIRONMENT_PREFIX):
            raise SettingError(f"{name} in the environment is not read: did you mean {ENVIRONMENT_PREFIX}{key}?")
