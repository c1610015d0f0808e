"""What was found: well, to look at, or broken; and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import click

#: Columns of the level, and of what was looked at.
LEVEL_WIDTH, WHAT_WIDTH = 6, 20


class Level(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    :param what: what was looked at.
    :param text: how it is; never with a secret in it.
    :param remedy: what to do about it; empty where all is well.
    """

    level: Level
    what: str
    text: str
    remedy: str = ""


def ok(what: str, text: str) -> Finding:
    return Finding(level=Level.OK, what=what, text=text)


def warn(what: str, text: str, remedy: str) -> Finding:
    return Finding(level=Level.WARN, what=what, text=text, remedy=remedy)


def fail(what: str, text: str, remedy: str) -> Finding:
    return Finding(level=Level.FAIL, what=what, text=text, remedy=remedy)


def show(finding: Finding) -> None:
    """Write a finding to standard output, in colour if that is a terminal."""
    level = click.style(f"{finding.level:<{LEVEL_WIDTH}}", fg=_COLOURS[finding.level])
    click.echo(f"{level}{finding.what:<{WHAT_WIDTH - 1}} {finding.text}")
    if finding.remedy:
        click.echo(f"{'':<{LEVEL_WIDTH + WHAT_WIDTH}}{finding.remedy}")
