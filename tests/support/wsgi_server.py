"""Other people's WSGI servers, each serving an app of the tests on a port of its own choice."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

from .program import missing, program
from .proxy import listen
from .service import ROOT, Process

LISTENING = (
    r"(?:Listening at|Running on|Serving on|uvicorn running on|bound to TCP address):? (?:http://)?127\.0\.0\.1:(\d+)"
)

#: For servers that have no command of their own.
EMBEDDED = "tests.support.embedded_server"


def gunicorn(app: str, directory: Path, *args: str) -> list[str]:
    # Without a file of its own gunicorn takes the project's, which patches for gevent.
    (directory / "plain.conf.py").write_text("control_socket_disable = True\n")
    return ["-m", "gunicorn", app, "-b", "127.0.0.1:0", "-c", str(directory / "plain.conf.py"), *args]


def uwsgi(app: str, *args: str) -> list[str]:
    return ["--http-socket", "127.0.0.1:0", "--module", app, "--venv", sys.prefix, "--die-on-term", *args]


#: By name: what follows Python's own path in the command.
COMMANDS: dict[str, Callable[[str, Path], list[str]]] = {
    "gunicorn": lambda app, directory: ["-m", "gunicorn", app, "-b", "127.0.0.1:0"],
    "gunicorn-gevent": lambda app, directory: gunicorn(app, directory, "-k", "gevent"),
    "gunicorn-gevent_pywsgi": lambda app, directory: gunicorn(app, directory, "-k", "gevent_pywsgi"),
    "gunicorn-preload": lambda app, directory: gunicorn(app, directory, "-k", "gevent", "--preload"),
    "gunicorn-gthread": lambda app, directory: gunicorn(app, directory, "-k", "gthread", "--threads", "9"),
    "gunicorn-sync": lambda app, directory: gunicorn(app, directory, "-k", "sync", "-w", "3"),
    "flask": lambda app, directory: ["-m", "flask", "--app", app, "run", "--port", "0"],
    "flask-debug": lambda app, directory: ["-m", "flask", "--app", app, "--debug", "run", "--port", "0", "--no-reload"],
    "waitress": lambda app, directory: ["-m", "waitress", "--listen", "127.0.0.1:0", "--threads", "9", app],
    "gevent.pywsgi": lambda app, directory: ["-m", EMBEDDED, "pywsgi", app],
    "cheroot": lambda app, directory: ["-m", EMBEDDED, "cheroot", app],
    "a2wsgi": lambda app, directory: ["-m", EMBEDDED, "a2wsgi", app],
    "hypercorn": lambda app, directory: ["-m", "hypercorn", "--bind", "127.0.0.1:0", app],
}
UWSGI: dict[str, Callable[[str], list[str]]] = {
    "uwsgi": lambda app: uwsgi(app, "--enable-threads", "--threads", "9"),
    "uwsgi-gevent": lambda app: uwsgi(app, "--gevent", "20", "--gevent-monkey-patch"),
}
NAMES = [*COMMANDS, *UWSGI, "mod_wsgi"]


def start_server(name: str, app: str, directory: Path, env: Mapping[str, str]) -> tuple[Process, int]:
    """Start a server with an app, `module:name`, and return it and its port; the caller stops it.

    :param directory: an empty one, where it may write.
    :param env: added to the environment, which is freed of Flask's settings.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLASK_", "SSE_"))}
    environment = {**inherited, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **env}
    if name == "mod_wsgi":
        return start_apache(app, directory, environment)
    if name in UWSGI:
        command = [program(str(Path(sys.executable).parent / "uwsgi"), "uwsgi"), *UWSGI[name](app)]
    else:
        command = [sys.executable, *COMMANDS[name](app, directory)]
    process = Process(command, env=environment, cwd=ROOT)
    try:
        return process, int(process.wait_log(LISTENING)[1])
    except BaseException:
        process.stop(1)
        raise


APACHE = """
ServerRoot {directory}
ServerName site
PidFile {directory}/pid
Listen 127.0.0.1:{port}
ErrorLog /proc/self/fd/2
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {modules}/mod_wsgi.so
{user}
WSGIDaemonProcess site threads=9 python-path={root}:{packages}
WSGISocketPrefix {directory}/wsgi
WSGIScriptAlias / {directory}/site.wsgi process-group=site application-group=%{{GLOBAL}}
<Directory {directory}>
Require all granted
</Directory>
"""


def start_apache(app: str, directory: Path, environment: Mapping[str, str]) -> tuple[Process, int]:
    """Start Apache with mod_wsgi in daemon mode."""
    path = program("apache2", "apache2-bin libapache2-mod-wsgi-py3")
    modules = Path("/usr/lib/apache2/modules")
    if not (modules / f"mod_wsgi.so-{sys.version_info[0]}.{sys.version_info[1]}").exists():
        missing(f"mod_wsgi for this Python, {sys.version_info[0]}.{sys.version_info[1]}", "libapache2-mod-wsgi-py3")
    if os.getuid() == 0:
        os.chmod(directory, 0o755)
    module, _, name = app.partition(":")
    settings = "".join(f"os.environ[{key!r}] = {value!r}\n" for key, value in environment.items() if "FLASK_" in key)
    (directory / "site.wsgi").write_text(f"import os\n{settings}from {module} import {name} as application\n")

    def start(port: int) -> tuple[Process, str]:
        text = APACHE.format(
            directory=directory,
            port=port,
            modules=modules,
            root=ROOT,
            packages=sysconfig.get_path("purelib"),
            # It does not serve as root.
            user="User www-data\nGroup www-data" if os.getuid() == 0 else "",
        )
        (directory / "apache.conf").write_text(text)
        return Process([path, "-f", str(directory / "apache.conf"), "-DFOREGROUND"], env=environment), "resuming normal"

    proxy = listen(start)
    return proxy.process, proxy.port
