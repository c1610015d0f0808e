"""The commands that an app gets: `flask sse doctor`, which is imported when it is called, and the others."""

from __future__ import annotations

import secrets
import sys

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from ..errors import SSEError
from ..settings import CLIENT_NAME
from ..web.access.clients import digest, encode
from ..web.channel import publish as publish_event
from .settings import settings
from .streams import end, streams


def register_commands(app: Flask) -> None:
    """Give an app the command group `sse`, unless it has one of that name."""
    if "sse" in app.cli.commands:
        return
    group = AppGroup("sse", help="Event streams and their relay.")
    for command in (doctor, publish, settings, passcode, streams, end):
        group.command(command.__name__)(command)
    app.cli.add_command(group)


@click.argument("url", required=False)
def doctor(url: str | None) -> None:
    """Check the settings, gunicorn's, the store, the upstreams, and the way to URL.

    URL is what clients call from outside: the address of the service, or that of one event stream. The exit status is 1
    if anything failed.
    """
    from .doctor import examine, split_url

    try:
        base = split_url(url) if url else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from error
    sys.exit(1 if examine(base) else 0)


@click.argument("channel")
@click.argument("data", default="-")
@click.option("--event", help="The event type.")
def publish(channel: str, data: str, event: str | None) -> None:
    """Publish DATA to CHANNEL, from standard input if it is "-" or missing, and print the event's id."""
    if current_app.extensions["sse"].settings.storage_uri == "memory://":
        raise click.ClickException(
            "SSE_STORAGE_URI is memory://, so no other process would get the event; set it to redis://..."
        )
    text = sys.stdin.read().removesuffix("\n") if data == "-" else data
    try:
        click.echo(publish_event(channel, text, event=event))
    except (SSEError, ValueError) as error:
        raise click.ClickException(str(error)) from error


@click.argument("name")
def passcode(name: str) -> None:
    """Make a passcode for the client NAME, and show it with its entry for SSE_CLIENTS_FILE.

    The passcode is shown once; the file holds its digest.
    """
    if not CLIENT_NAME.fullmatch(name):
        raise click.BadParameter("a client name is 1 to 64 of A-Z a-z 0-9 . _ -", param_hint="NAME")
    made = secrets.token_urlsafe(32)
    click.echo(f'# passcode: {made}\n["{name}"]\nsha256 = "{digest(encode(made)).hex()}"')
