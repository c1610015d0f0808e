"""Browsers as they are installed, without a driver: a page runs a script, and sends what it found to the test."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .program import missing, program

#: Seconds for a browser to start and to run its script; a first start takes some on a busy machine.
PATIENCE = 90.0

#: Where Debian's libwebkit2gtk-4.1-0 puts its small browser, whatever the machine's architecture.
MINI_BROWSERS = "/usr/lib", "*/webkit2gtk-4.1/MiniBrowser"

_PREFERENCES = """
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.aboutwelcome.enabled", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("app.update.enabled", false);
user_pref("app.normandy.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("browser.safebrowsing.update.enabled", false);
"""


def firefox(profile: Path) -> list[str]:
    """Return the command that starts Firefox without a window, or skip the test."""
    path = program("firefox-esr", "firefox-esr")
    (profile / "user.js").write_text(_PREFERENCES)
    return [path, "--headless", "--no-remote", "--profile", str(profile)]


def webkit(profile: Path) -> list[str]:
    """Return the command that starts WebKitGTK's MiniBrowser on a display of its own, or skip the test."""
    folder, pattern = MINI_BROWSERS
    found = list(Path(folder).glob(pattern))
    if not found:
        missing("WebKitGTK's MiniBrowser", "libwebkit2gtk-4.1-0")
    return [program("xvfb-run", "xvfb"), "-a", str(found[0]), "--private"]


COMMANDS = {"firefox": firefox, "webkit": webkit}

_PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script type="module">
const send = (found) => fetch("/found", { method: "POST", body: JSON.stringify(found) });
try { send({ value: await (await import("/script.js")).default() }); }
catch (error) { send({ error: `${error}\n${error.stack}` }); }
</script>"""


def run_in(name: str, profile: Path, script: str, files: Mapping[str, tuple[str, bytes]]) -> Any:
    """Return what the default export of a module resolves to in a browser.

    :param name: `firefox` or `webkit`.
    :param files: content type and body of what the script can load, by path.
    :raises AssertionError: if the script throws, or takes too long.
    """
    command = COMMANDS[name](profile)
    results: queue.Queue[dict[str, Any]] = queue.Queue()
    pages = {"/": ("text/html", _PAGE.encode()), "/script.js": ("text/javascript", script.encode()), **files}
    with _serving(pages, results) as url, _started([*command, url], profile):
        try:
            found = results.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"{name} found nothing within {PATIENCE} s") from None
    assert "error" not in found, found["error"]
    return found["value"]


@contextmanager
def _serving(pages: Mapping[str, tuple[str, bytes]], results: queue.Queue[dict[str, Any]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = pages.get(self.path, ("", b""))
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _started(command: list[str], home: Path) -> Iterator[None]:
    """Run a browser in a session of its own, of which nothing is left afterwards."""
    environment = {**os.environ, "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "MOZ_CRASHREPORTER_DISABLE": "1"}
    silent = subprocess.DEVNULL
    process = subprocess.Popen(
        command, env=environment, stdin=silent, stdout=silent, stderr=silent, start_new_session=True
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
