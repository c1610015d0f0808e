"""The wheel and the sdist: what is in them, and that the package works where it alone is installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from .support.document import PATIENCE, block, clean_environment
from .support.program import missing
from .support.service import ROOT, Process

#: Seconds that pip may take.
INSTALL_TIMEOUT = 240

#: Never loaded by `import sse`, and not by the public names either, before they are needed.
HEAVY = {"pydantic", "requests", "prometheus_client", "redis", "gunicorn", "opentelemetry"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist, made from what git would publish."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in names.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--outdir", str(built), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, its dependencies as the lock has them, and nothing else."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=True)
    (wheel,) = built.glob("*.whl")
    command = [str(directory / "bin/python"), "-m", "pip", "install", "-q", "-c", str(ROOT / "requirements.txt")]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
    if "No matching distribution" in done.stderr:
        missing("a package index", "ca-certificates")
    assert done.returncode == 0, done.stderr
    return directory / "bin"


def python(programs: Path, text: str) -> str:
    """Return what a text of Python prints in an environment."""
    command = [str(programs / "python"), "-W", "error", "-I", "-c", text]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_alone(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"sse", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    listed = subprocess.run(["git", "ls-files", "sse"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= names, "a file of the package is missing"


def test_the_sdist_holds_what_tests_and_documentation_need(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = {name for name in listed if not name.startswith((".github/", ".ci/", ".pre-commit", ".gitignore"))}
    assert wanted <= names, sorted(wanted - names)


def test_the_metadata_is_whole(installed: Path) -> None:
    text = python(
        installed,
        "import json; from importlib.metadata import metadata; import sse; "
        "print(json.dumps([metadata('flask-sse-relay').json, sse.__version__]))",
    )
    metadata, version = json.loads(text)
    assert metadata["version"] == version
    assert metadata["author"] and metadata["license_expression"] == "MIT"
    assert {url.partition(",")[0] for url in metadata["project_url"]} >= {"Source", "Documentation", "Changelog"}
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)} <= set(metadata["classifier"])
    assert {"redis", "metrics"} <= set(metadata["provides_extra"])


def test_public_names_work_where_the_package_alone_is_installed(installed: Path) -> None:
    python(installed, "import sse; assert all(getattr(sse, name) for name in sse.__all__)")
    python(installed, "from sse import SSE, EventSourceResponse, ServerSentEvent, end_with_worker, last_event_id")
    python(installed, "from sse import *; SSE")


def test_an_unknown_name_is_an_attribute_error(installed: Path) -> None:
    python(installed, "import sse; assert not hasattr(sse, 'nothing')")


@pytest.mark.parametrize("text", ["import sse", "import sse.gunicorn", "from sse import ServerSentEvent"])
def test_importing_loads_nothing_heavy(installed: Path, text: str) -> None:
    """gunicorn's master imports the package for its settings, and a site may need an event alone."""
    loaded = set(json.loads(python(installed, f"{text}; import json, sys; print(json.dumps(list(sys.modules)))")))
    assert "sse" in loaded
    assert not loaded & (HEAVY | {"flask", "gevent", "socket", "ssl"})


def test_embedding_does_not_load_what_is_not_served(installed: Path) -> None:
    """A site without the relay's documents, metrics and store pays for none of them."""
    text = "from flask import Flask; from sse import SSE; SSE(Flask('site'), relay=False)"
    loaded = set(json.loads(python(installed, f"{text}; import json, sys; print(json.dumps(list(sys.modules)))")))
    assert not loaded & {"prometheus_client", "redis"}


@contextmanager
def quickstart(programs: Path, folder: Path) -> Iterator[str]:
    """Serve the quickstart's two files by the environment's own gunicorn, and return the URL."""
    (folder / "app.py").write_text(block("quickstart_app"))
    (folder / "gunicorn.conf.py").write_text(block("quickstart_gunicorn"))
    env = clean_environment(PORT="0", PYTHONWARNINGS="error::ImportWarning")
    env["PATH"] = f"{programs}:{env['PATH']}"
    with Process([str(programs / "gunicorn"), "app:app"], cwd=folder, env=env) as process:
        yield process.wait_log(r"Listening at: (http://\S+)", PATIENCE)[1]
        process.terminate()
        assert process.wait_exit(PATIENCE) == 0
        assert "Traceback" not in process.log()


def test_the_service_runs_where_the_package_alone_is_installed(installed: Path, tmp_path: Path) -> None:
    """gunicorn's settings and worker, the page, the documents and the demonstration come with the wheel."""
    with quickstart(installed, tmp_path) as url:
        for path in ("/", "/docs", "/openapi.json", "/sse-static/sse.js"):
            assert httpx.get(url + path, timeout=PATIENCE).status_code == 200, path
        body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
        response = httpx.post(f"{url}/upstream/demo/v1/chat/completions", json=body, timeout=PATIENCE)
        assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("extra", "settings"),
    [
        ("redis", {"SSE_STORAGE_URI": "redis://127.0.0.1/0"}),
        ("metrics", {"SSE_METRICS": True}),
        ("jwt", {"SSE_JWT": {"keys": "https://i.example/keys", "issuer": "https://i.example", "audience": "relay"}}),
    ],
)
def test_a_missing_extra_is_named(installed: Path, extra: str, settings: dict[str, object]) -> None:
    """The environment has no extra."""
    text = (
        "from flask import Flask; from sse import SSE; app = Flask('site')\n"
        f"app.config.update({settings!r})\n"
        "try:\n    SSE(app)\nexcept ValueError as error:\n    print(error)"
    )
    message = python(installed, text)
    assert f"flask-sse-relay[{extra}]" in message and next(iter(settings)) in message
