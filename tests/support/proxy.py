"""nginx and Caddy in front of the service, with the files of deploy/: only addresses and paths are the test's own."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.program import program
from .service import PATIENCE, ROOT, Process, RawClient

DEPLOY = ROOT / "deploy"

#: One replacement in a file: a pattern that must match exactly once, and what comes in its place.
Edit = tuple[str, str]


def edit(text: str, *edits: Edit) -> str:
    """Return `text` with each pattern replaced.

    :raises AssertionError: if a pattern does not match exactly once.
    """
    for pattern, replacement in edits:
        text, count = re.subn(pattern, replacement.replace("\\", r"\\"), text, flags=re.MULTILINE)
        assert count == 1, f"{pattern!r} is there {count} times"
    return text


@dataclass(kw_only=True)
class Proxy:
    """A proxy that listens; it is called as a `Service` is.

    :param process: what runs.
    """

    process: Process
    port: int
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def call(
        self,
        method: str,
        target: str,
        fields: dict[str, str] | None = None,
        body: bytes | None = None,
        **options: Any,
    ) -> RawClient:
        """Send a request on a connection of its own, and return the client; the caller closes.

        :param options: of `RawClient`.
        """
        client = RawClient(self.host, self.port, **options)
        client.request(method, target, fields, body)
        return client

    def stop(self) -> None:
        self.process.stop(2)


def listen(start: Callable[[int], tuple[Process, str]]) -> Proxy:
    """Start a proxy on a free port: neither shows what port it got, so it is chosen here, and again if it was taken.

    :param start: returns what was started on a port, and what it writes when it listens.
    """
    for _ in range(5):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
        process, ready = start(port)
        if "already in use" not in process.wait_log(f"{ready}|[Aa]ddress already in use", PATIENCE)[0]:
            return Proxy(process=process, port=port)
        process.stop(1)
    raise AssertionError("no free port for a proxy")


#: Where `start_nginx` is to listen, in an edit of the caller's.
LISTEN = "LISTEN"


#: The edits for nginx as it is delivered: over HTTP.
PLAIN: tuple[Edit, ...] = ((r"^ *listen 80 ", f"listen {LISTEN} "), (r"^ *listen \[::\]:80 .*\n", ""))


def nginx_text(relays: Sequence[str], directory: Path, *edits: Edit) -> str:
    """Return deploy/nginx.conf for a directory of the test's own.

    :param relays: the addresses of the gunicorns.
    """
    first, *others = relays
    servers = "\n".join(f"server {relay};" for relay in others)
    temporary = "\n".join(f"{kind}_temp_path {directory}/{kind};" for kind in ("fastcgi", "uwsgi", "scgi", "proxy"))
    return edit(
        (DEPLOY / "nginx.conf").read_text(),
        (r"^user www-data;$", f"user {getpass.getuser()};"),
        (r"/run/nginx\.pid", f"{directory}/nginx.pid"),
        (r"/var/log/nginx/error\.log warn", "stderr notice"),
        (r"/var/log/nginx/access\.log", f"{directory}/access.log"),
        (r"^http \{$", f"http {{\n{temporary}\nclient_body_temp_path {directory}/body;"),
        (r"server 127\.0\.0\.1:8000;", f"server {first};"),
        (r"# server 192\.0\.2\.2:8000;", servers),
        *edits,
    )


def start_nginx(relays: Sequence[str], directory: Path, edits: Sequence[Edit] = PLAIN) -> Proxy:
    """Return nginx with deploy/nginx.conf; the caller stops it.

    :param relays: the addresses of the gunicorns.
    :param edits: more edits, with `LISTEN` where it is to listen.
    """
    path, file = program("nginx", "nginx"), directory / "nginx.conf"
    text = nginx_text(relays, directory, *edits)

    def start(port: int) -> tuple[Process, str]:
        file.write_text(text.replace(LISTEN, f"127.0.0.1:{port}"))
        return Process([path, "-c", str(file), "-g", "daemon off;"]), "start worker process [0-9]"

    return listen(start)


def start_caddy(relays: Sequence[str], directory: Path) -> Proxy:
    """Return Caddy with deploy/Caddyfile; the caller stops it.

    :param relays: the address of the gunicorn.
    """
    (relay,) = relays
    path, file = program("caddy", "caddy"), directory / "Caddyfile"
    # Its interface for administrators has one port for all of them.
    file.write_text("{\n\tadmin off\n}\n" + (DEPLOY / "Caddyfile").read_text())

    def start(port: int) -> tuple[Process, str]:
        site = {"SITE": f"http://127.0.0.1:{port}", "RELAY": relay}
        kept = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
        command = [path, "run", "--adapter", "caddyfile", "--config", str(file)]
        return Process(command, env={**os.environ, **site, **kept}), "serving initial configuration"

    return listen(start)


#: By the name of the program.
START: dict[str, Callable[[Sequence[str], Path], Proxy]] = {"nginx": start_nginx, "caddy": start_caddy}
