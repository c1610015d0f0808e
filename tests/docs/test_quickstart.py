"""docs/quickstart.md, walked through in an empty folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from ..support.dialect import speak
from ..support.document import HERE, PATIENCE, block, clean_environment, playground, run, started
from ..support.program import RedisServer, free_port
from ..support.proxy import LISTEN, start_nginx
from ..support.service import ROOT, Process
from ..support.upstream import Upstream

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder with the page's two files, and nothing else."""
    (tmp_path / "app.py").write_text(block("quickstart_app"))
    (tmp_path / "gunicorn.conf.py").write_text(block("quickstart_gunicorn"))
    return tmp_path


@contextmanager
def gateway(folder: Path, name: str, upstream: Upstream | None = None, **extra: str) -> Iterator[str]:
    """Start the gateway with the settings of step 2 and those of a block, and return its URL.

    :param upstream: what stands in for the vendor.
    """
    settings = block("quickstart_key").removesuffix("gunicorn app:app\n") if name != "quickstart_run" else ""
    text = settings + (block(name) if name != "quickstart_key" else "gunicorn app:app\n")
    if upstream:
        text = text.replace("https://api.deepseek.com", upstream.url)
    with started(text, cwd=folder, **extra) as url:
        yield url


def test_quickstart_install() -> None:
    """What is installed is this project; test_packaging installs it."""
    assert "pip install flask-sse-relay\n" in block("quickstart_install")
    assert 'name = "flask-sse-relay"' in (ROOT / "pyproject.toml").read_text()


def test_quickstart_app(folder: Path) -> None:
    with gateway(folder, "quickstart_run") as url:
        assert (
            httpx.get(url, timeout=PATIENCE).status_code
            == httpx.get(f"{url}/docs", timeout=PATIENCE).status_code
            == 200
        )


def test_quickstart_gunicorn(folder: Path) -> None:
    """The settings are ours: one line of the log says which worker serves."""
    env = clean_environment(PORT="0", PYTHONPATH=str(ROOT))
    with Process([sys.executable, "-m", "gunicorn", "app:app"], cwd=folder, env=env) as process:
        process.wait_log(r"Using worker: .*Worker")
        process.wait_log("Listening at")


def test_quickstart_run(folder: Path) -> None:
    with gateway(folder, "quickstart_run") as url:
        assert playground(url)["upstreams"] == ["demo"]


def test_quickstart_key(folder: Path) -> None:
    """With the key alone it says what is missing, in the last line, and no traceback."""
    with gateway(folder, "quickstart_key") as url:
        assert (playground(url)["upstreams"], playground(url)["open"]) == (["deepseek"], False)


def test_quickstart_call(folder: Path, upstream: Callable[..., Upstream]) -> None:
    deepseek = upstream(speak("Hello", ", ", "world"))
    with gateway(folder, "quickstart_key", deepseek) as url:
        assert "world" in run(block("quickstart_call").replace(HERE, url))
    assert deepseek.wait_request().field("Authorization") == "Bearer sk-..."


@contextmanager
def served_page(folder: Path, url: str) -> Iterator[str]:
    """Serve the page as its block says, on a free port, with the gateway's address in it; return the page's origin."""
    site = folder / "site"
    site.mkdir()
    (site / "index.html").write_text(block("quickstart_page").replace(HERE, url))
    port = free_port()
    command = block("quickstart_serve_page").replace("8080", str(port)).replace("python3", f"exec {sys.executable} -u")
    with Process(["bash", "-c", f"{command.strip()} --bind 127.0.0.1"], cwd=site) as process:
        process.wait_log("Serving HTTP")
        yield f"http://127.0.0.1:{port}"


def test_quickstart_page(folder: Path, chromium: Browser, upstream: Callable[..., Upstream]) -> None:
    deepseek = upstream(speak("Hello", ", ", "world"))
    with gateway(folder, "quickstart_key", deepseek) as url, served_page(folder, url) as origin:
        page = chromium.new_page()
        page.goto(origin)
        page.fill("#passcode", "wrong")
        page.click("button")
        page.wait_for_function("document.getElementById('answer').textContent === ' (unauthenticated)'")
        page.fill("#passcode", "a long random text")
        page.click("button")
        page.wait_for_function("document.getElementById('answer').textContent === 'Hello, world'")
        page.close()


def test_quickstart_serve_page(folder: Path) -> None:
    with served_page(folder, HERE) as origin:
        assert "<form>" in httpx.get(origin, timeout=PATIENCE).text


def test_quickstart_origin(folder: Path) -> None:
    with gateway(folder, "quickstart_origin") as url:
        allowed = [
            httpx.get(f"{url}/upstream/deepseek/", headers={"Origin": origin}, timeout=PATIENCE).headers.get(
                "Access-Control-Allow-Origin"
            )
            for origin in ("http://127.0.0.1:8080", "http://localhost:8080", "https://elsewhere.example")
        ]
    assert allowed == ["http://127.0.0.1:8080", None, None]


def test_quickstart_redis(folder: Path, redis_server: RedisServer) -> None:
    text = block("quickstart_redis")
    install, _, rest = text.partition("\n")
    assert install == "pip install 'flask-sse-relay[redis]'"
    settings = block("quickstart_key").removesuffix("gunicorn app:app\n")
    with started(settings + rest.replace("127.0.0.1:6379", f"127.0.0.1:{redis_server.port}"), cwd=folder) as url:
        assert httpx.get(f"{url}/upstream/deepseek/", timeout=PATIENCE).status_code == 401


def test_quickstart_nginx(folder: Path, upstream: Callable[..., Upstream], tmp_path: Path) -> None:
    """The block is all that nginx has of the gateway: events pass one by one, and a cut stays visible."""
    deepseek = upstream(speak("Hello"))
    with gateway(folder, "quickstart_key", deepseek) as url:
        location = block("quickstart_nginx").replace(HERE.removeprefix("http://"), urlsplit(url).netloc)
        site = ("(?s)^    upstream relay .*^}$", f"server {{ listen {LISTEN}; {location} }}\n}}")
        nginx = start_nginx([urlsplit(url).netloc], tmp_path, [site])
        try:
            with nginx.call(
                "POST",
                "/upstream/deepseek/chat/completions",
                {"Authorization": "Bearer a long random text", "Content-Type": "application/json"},
                json.dumps({"stream": True}).encode(),
            ) as client:
                client.read_body()
                assert client.is_complete and client.body.endswith(b"data: [DONE]\n\n")
        finally:
            nginx.stop()


def test_quickstart_proxy(folder: Path) -> None:
    with gateway(folder, "quickstart_proxy") as url:
        assert httpx.get(f"{url}/upstream/deepseek/", timeout=PATIENCE).status_code == 401


def test_quickstart_doctor(folder: Path) -> None:
    """It finds the app by itself, and speaks of each part."""
    with gateway(folder, "quickstart_run") as url:
        text = block("quickstart_doctor").replace("https://relay.example.com", url)
        found = run(text, cwd=folder, PYTHONPATH=str(ROOT), FLASK_SSE_MAX_STREAMS="100")
    assert "its events come one by one" in found
