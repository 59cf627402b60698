"""The programs that the documentation shows find what ``predict`` finds, from the exported file alone."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from export_kit import write
from pages import ROOT, blocks
from PIL import Image

from ullage.api.models import LoadedModel
from ullage.runtime.predictor import TorchPredictor, predict
from ullage.runtime.results import Results

pytest.importorskip("onnxruntime")
Found = list[tuple[str, float, tuple[float, ...]]]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WEB_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def documented(kind: str, mark: str) -> str:
    (code,) = [b.code for b in blocks(ROOT / "docs" / "deploy.md") if b.kind == kind and mark in b.code]
    return code


def put_picture(source: str, target: Path, size_wh: tuple[int, int]) -> None:
    """As large as the input already: libraries differ in how they resample."""
    Image.open(source).convert("RGB").resize(size_wh).save(target)


def wanted_of(mini: LoadedModel, picture: Path) -> Results:
    (wanted,) = predict(TorchPredictor(mini.network, names=mini.names), source=picture, imgsz=(96, 96), conf=0.5)
    assert len(wanted.boxes) > 10
    return wanted


def assert_same(found: Found, wanted: Results) -> None:
    assert len(found) == len(wanted.boxes)
    assert [score for _, score, _ in found] == pytest.approx(wanted.boxes.conf.tolist(), abs=1e-3)
    assert sorted(name for name, _, _ in found) == sorted(wanted.names[int(c)] for c in wanted.boxes.cls)
    # predict clips boxes to the picture; a consumer may do so, too.
    height, width = wanted.orig_shape
    corners = np.array([corners for _, _, corners in found]).clip(0, [width, height] * 2)
    for one, other in zip(np.sort(corners, 0).T, np.sort(wanted.boxes.xyxy.numpy(), 0).T, strict=True):
        assert np.abs(one - other).max() < 0.1


@pytest.mark.parametrize("size_wh", [(96, 64), (64, 96), (96, 96)])
def test_the_python_consumer(
    mini: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[str], size_wh: tuple[int, int]
) -> None:
    code = documented("python", "onnxruntime.InferenceSession")
    assert "ullage" not in code
    write(mini, tmp_path, format="onnx", nms=True, conf=0.5).rename(tmp_path / "alone.onnx")
    put_picture(pictures[0], tmp_path / "bus.png", size_wh)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    before = set(sys.modules)
    exec(compile(code.replace("bus.jpg", "bus.png"), "deploy.md", "exec"), namespace)
    assert not {name for name in set(sys.modules) - before if name.startswith(("ullage", "torch"))}
    assert_same(namespace["found"], wanted_of(mini, tmp_path / "bus.png"))


@pytest.fixture
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium")
    return found


@pytest.fixture
def web_runtime() -> Path:
    """The files of onnxruntime-web, from ``ULLAGE_ORT_WEB`` (its ``dist``) or installed by npm in the checkout."""
    folder = Path(os.environ.get("ULLAGE_ORT_WEB") or ROOT / "node_modules" / "onnxruntime-web" / "dist")
    if not all((folder / name).is_file() for name in WEB_FILES):
        pytest.skip(f"needs onnxruntime-web: npm install onnxruntime-web, or ULLAGE_ORT_WEB (looked in '{folder}')")
    return folder


class Page(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and takes what the page posts."""

    answers: list[str]
    there: threading.Event

    def do_POST(self) -> None:
        self.answers.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.there.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


REPORT = """<script>
const send = (text) => fetch("/answer", { method: "POST", body: text });
addEventListener("error", (event) => send("error: " + event.message));
addEventListener("unhandledrejection", (event) => send("error: " + event.reason));
const timer = setInterval(() => {
  const text = document.querySelector("#found")?.textContent;
  if (text && text !== "...") { clearInterval(timer); send(text); }
}, 50);
</script>
"""


@pytest.mark.parametrize("size_wh", [(96, 64), (64, 96)])
def test_the_web_page_in_a_browser(
    mini: LoadedModel, tmp_path: Path, pictures: list[str], browser: str, web_runtime: Path, size_wh: tuple[int, int]
) -> None:
    write(mini, tmp_path, format="onnx", nms=True, conf=0.5).rename(tmp_path / "alone.onnx")
    put_picture(pictures[0], tmp_path / "bus.png", size_wh)
    for name in WEB_FILES:
        shutil.copy(web_runtime / name, tmp_path)
    page = documented("html", "ort.InferenceSession")
    (tmp_path / "index.html").write_text(REPORT + page.replace("bus.jpg", "bus.png"))
    handler = type("Served", (Page,), {"answers": [], "there": threading.Event()})
    handler.extensions_map = {**handler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}")
        place = f"http://127.0.0.1:{server.server_address[1]}/index.html"
        program = subprocess.Popen(
            [browser, *flags, "--remote-debugging-port=0", place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            assert handler.there.wait(90), "the page never said what it found"
        finally:
            program.kill()
            program.wait()
            server.shutdown()
            server.server_close()
    assert not handler.answers[0].startswith("error"), handler.answers
    found = [(name, score, tuple(corners)) for name, score, corners in json.loads(handler.answers[0])]
    assert_same(found, wanted_of(mini, tmp_path / "bus.png"))


def test_the_cpp_consumer(mini: LoadedModel, tmp_path: Path, pictures: list[str]) -> None:
    openvino = pytest.importorskip("openvino")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    root = Path(openvino.__file__).parent
    write(mini, tmp_path, format="openvino", nms=True, conf=0.5).rename(tmp_path / "alone_openvino_model")
    (inside,) = (tmp_path / "alone_openvino_model").glob("*.xml")
    for part in (inside, inside.with_suffix(".bin")):
        part.rename(part.with_stem("alone_openvino_model"))
    put_picture(pictures[0], tmp_path / "bus.ppm", (96, 64))
    (tmp_path / "consumer.cpp").write_text(documented("cpp", "int main"))
    library = next((root / "libs").glob("libopenvino.so*"))
    words = [compiler, "-std=c++17", "-O1", "consumer.cpp", f"-I{root / 'include'}", str(library)]
    subprocess.run([*words, f"-Wl,-rpath,{root / 'libs'}", "-o", "consumer"], cwd=tmp_path, check=True)
    out = subprocess.run(["./consumer"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t") for line in out.splitlines()]
    found = [(row[0], float(row[1]), tuple(map(float, row[2:]))) for row in rows]
    assert_same(found, wanted_of(mini, tmp_path / "bus.ppm"))
