"""The commands that an app gets: `flask sse doctor`. What they do is imported when they are called."""

from __future__ import annotations

import sys

import click
from flask import Flask, current_app
from flask.cli import AppGroup


def register_commands(app: Flask) -> None:
    """Give an app the command group `sse`, unless it has one of that name."""
    if "sse" in app.cli.commands:
        return
    group = AppGroup("sse", help="Event streams and their relay.")
    group.command("doctor")(doctor)
    group.command("publish")(publish)
    group.command("settings")(settings)
    group.command("passcode")(passcode)
    group.command("streams")(streams)
    group.command("end")(end)
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
    from ..errors import SSEError
    from ..web.channel import publish as publish_event

    if current_app.extensions["sse"].settings.storage_uri == "memory://":
        raise click.ClickException(
            "SSE_STORAGE_URI is memory://, so no other process would get the event; set it to redis://..."
        )
    text = sys.stdin.read().removesuffix("\n") if data == "-" else data
    try:
        click.echo(publish_event(channel, text, event=event))
    except (SSEError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def settings() -> None:
    """Show the settings in effect, without secrets; `*` marks those that differ from the default."""
    from .settings import show_settings

    show_settings(current_app.config, current_app.extensions["sse"].settings)


@click.option("--json", "as_json", is_flag=True, help="Write a JSON array.")
def streams(as_json: bool) -> None:
    """List the streams that are open in all workers of this host.

    It reads the sockets in SSE_CONTROL_DIR. The exit status is 1 if a worker did not respond, or none is running.
    """
    from .streams import list_streams

    list_streams(current_app.extensions["sse"].settings.control_dir, as_json=as_json)


@click.argument("id")
def end(id: str) -> None:
    """End the stream ID, as soon as an event has ended; called again, wherever it is.

    The exit status is 1 if no stream of that id is open.
    """
    from .streams import end_stream

    end_stream(current_app.extensions["sse"].settings.control_dir, id)


@click.argument("name")
def passcode(name: str) -> None:
    """Make a passcode for the client NAME, and show it with its entry for SSE_CLIENTS_FILE.

    The passcode is shown once; the file holds its digest.
    """
    import secrets

    from ..web.access.clients import CLIENT_NAME, digest, encode

    if not CLIENT_NAME.fullmatch(name):
        raise click.BadParameter("a client name is 1 to 64 of A-Z a-z 0-9 . _ -", param_hint="NAME")
    made = secrets.token_urlsafe(32)
    click.echo(f'# passcode: {made}\n["{name}"]\nsha256 = "{digest(encode(made)).hex()}"')
