"""The npm package: packed as it would be published, and used with what people build their sites with."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sse

from .support.program import program
from .support.service import ROOT, Service

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: The most that the client may have, minified and gzipped: bytes.
LARGEST = 3000

#: Seconds that a bundler may take on a busy machine.
PATIENCE = 120

#: Reads the demonstration's answer to its end.
USE = """
import { fetchSSE } from "flask-sse-relay";
const body = JSON.stringify({ model: "demo", stream: true, messages: [{ role: "user", content: "Hello" }] });
const init = { method: "POST", headers: { "Content-Type": "application/json" }, body };
fetchSSE("URL/upstream/demo/v1/chat/completions", init, {
  onEvent: ({ data }) => console.log(data),
  onDone: () => console.log("done"),
});
"""


@pytest.fixture(scope="module")
def packed(js_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the packed package is installed, beside what bundles it."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "npm", source / "npm")
    shutil.copytree(ROOT / "sse/static", source / "sse/static")
    shutil.copy(ROOT / "LICENSE", source)
    project = tmp_path_factory.mktemp("project")
    run(program("npm", "npm"), "pack", "--pack-destination", str(project), cwd=source / "npm")
    (archive,) = project.glob("*.tgz")
    with tarfile.open(archive) as file:
        file.extractall(project / "packed", filter="data")
    modules = project / "node_modules"
    modules.mkdir()
    for module in js_modules.iterdir():
        (modules / module.name).symlink_to(module)
    (project / "packed/package").rename(modules / "flask-sse-relay")
    (project / "package.json").write_text('{"type": "module"}')
    return project


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def minified(project: Path) -> bytes:
    """Return the client as a bundler would ship it."""
    run("node_modules/.bin/esbuild", "node_modules/flask-sse-relay/sse.js", "--minify", "--outfile=min.js", cwd=project)
    return (project / "min.js").read_bytes()


def kilobytes(count: int) -> str:
    return f"{count / 1000:.1f} kB"


def test_it_holds_the_client_and_nothing_else(packed: Path) -> None:
    package = packed / "node_modules/flask-sse-relay"
    client = {"sse.js", "sse.d.ts", "shared.js"}
    assert {path.name for path in package.iterdir()} == {"package.json", "README.md", "LICENSE", *client}
    for name in client:
        assert (package / name).read_bytes() == (ROOT / "sse/static" / name).read_bytes()
    assert json.loads((package / "package.json").read_text())["version"] == sse.__version__


def test_its_size_is_as_stated_and_small(packed: Path) -> None:
    raw = len((ROOT / "sse/static/sse.js").read_bytes())
    small = minified(packed)
    zipped = len(gzip.compress(small, mtime=0))
    assert zipped <= LARGEST
    stated = f"{kilobytes(raw)}, minified {kilobytes(len(small))}, gzipped {kilobytes(zipped)}"
    assert stated in re.sub(r"\s+", " ", (ROOT / "npm/README.md").read_text())


def works(project: Path, script: str, service: Service) -> None:
    output = run(program("node", "nodejs"), script, cwd=project)
    assert "你好" in output and output.endswith("[DONE]\ndone\n")


def write_use(project: Path, service: Service) -> None:
    (project / "use.js").write_text(USE.replace("URL", service.url))


def test_node_runs_it(packed: Path, shared_service: Service) -> None:
    write_use(packed, shared_service)
    works(packed, "use.js", shared_service)


def test_esbuild_bundles_it(packed: Path, shared_service: Service) -> None:
    write_use(packed, shared_service)
    run("node_modules/.bin/esbuild", "use.js", "--bundle", "--format=esm", "--outfile=esbuild.js", cwd=packed)
    works(packed, "esbuild.js", shared_service)


def test_vite_bundles_it(packed: Path, shared_service: Service) -> None:
    write_use(packed, shared_service)
    library = {"entry": "use.js", "formats": ["es"], "fileName": "vite"}
    config = f"export default {{ build: {{ lib: {json.dumps(library)}, outDir: 'vite' }} }};"
    (packed / "vite.config.js").write_text(config)
    run("node_modules/.bin/vite", "build", cwd=packed)
    works(packed, "vite/vite.js", shared_service)


def test_webpack_bundles_it(packed: Path, shared_service: Service) -> None:
    write_use(packed, shared_service)
    options = ["--mode", "production", "--entry", "./use.js", "--output-path", "webpack", "--target", "web"]
    run("node_modules/.bin/webpack", *options, cwd=packed)
    works(packed, "webpack/main.js", shared_service)


def test_what_is_not_used_is_left_out(packed: Path) -> None:
    (packed / "parser.js").write_text('import { createParser } from "flask-sse-relay"; console.log(createParser);')
    run("node_modules/.bin/esbuild", "parser.js", "--bundle", "--format=esm", "--outfile=shaken.js", cwd=packed)
    shaken = (packed / "shaken.js").read_text()
    assert "createParser" in shaken and "EventSource" not in shaken and "Stream-TTL" not in shaken


@pytest.mark.parametrize("resolution", ["bundler", "nodenext"])
def test_typescript_checks_it_strictly(packed: Path, resolution: str) -> None:
    source = (ROOT / "tests/js/types.ts").read_text().replace("../../sse/static/sse.js", "flask-sse-relay")
    (packed / "types.mts").write_text(source)
    module = "nodenext" if resolution == "nodenext" else "es2022"
    options = ["--noEmit", "--strict", "--target", "es2022", "--lib", "es2022,dom", "--module", module]
    run("node_modules/.bin/tsc", *options, "--moduleResolution", resolution, "types.mts", cwd=packed)


def recipe(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```js\n(.*?)```", (ROOT / "npm/README.md").read_text(), re.DOTALL)
    assert found, name
    return found[1]


#: Shows in the page's body what each framework makes of the state that its recipe returns.
SHOW = {
    "react": """
import { createElement, StrictMode } from "react";
import { createRoot } from "react-dom/client";
const View = () => JSON.stringify(useStream(url, init));
createRoot(document.body).render(createElement(StrictMode, null, createElement(View)));
""",
    "vue": """
import { createApp, h } from "vue";
const setup = () => {
    const state = useStream(url, init);
    return () => h("p", JSON.stringify(state));
};
createApp({ setup }).mount(document.body);
""",
    "svelte": """
useStream(url, init).subscribe((state) => (document.body.textContent = JSON.stringify(state)));
""",
}


@pytest.mark.parametrize("name", list(SHOW))
def test_recipes_work(page: Page, packed: Path, shared_service: Service, name: str) -> None:
    assert recipe(name).count("\n") <= 18
    init = USE[USE.index("const body") : USE.index("fetchSSE(")]
    url = f'const url = "{shared_service.url}/upstream/demo/v1/chat/completions";'
    (packed / f"{name}.js").write_text(recipe(name) + init + url + SHOW[name])
    options = ["--bundle", "--format=esm", "--define:process.env.NODE_ENV='development'", f"--outfile={name}.min.js"]
    run("node_modules/.bin/esbuild", f"{name}.js", *options, cwd=packed)
    page.goto(f"{shared_service.url}/healthz")
    page.add_script_tag(content=(packed / f"{name}.min.js").read_text(), type="module")
    page.wait_for_function('() => document.body.textContent.includes(\'"end":"done"\')', timeout=20_000)
    shown = json.loads(page.inner_text("body"))
    assert shown["events"][-1]["data"] == "[DONE]"
    # In React's strict mode every effect runs twice: the first stream is aborted, and adds nothing.
    assert sum("你好" in event["data"] for event in shown["events"]) == 1


def test_the_markdown_parser_is_as_npm_has_it(js_modules: Path) -> None:
    """It is kept in the repository so that the page needs no build; it must not be changed by hand."""
    assert (ROOT / "sse/static/marked.js").read_bytes() == (js_modules / "marked/lib/marked.esm.js").read_bytes()
    assert (ROOT / "sse/static/marked.LICENSE").read_bytes() == (js_modules / "marked/LICENSE").read_bytes()
