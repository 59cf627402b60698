"""The rules of the house: size limits, imports, laziness, no surprises."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FILES = sorted(path for folder in ("src", "tests", "bench", "recipes") for path in (ROOT / folder).rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_CLASS, MAX_LOOP, MAX_STEP = 600, 80, 250, 250, 60
LAZY = ("torch", "torchvision", "numpy", "pydantic", "cv2", "PIL", "yaml", "rich", "matplotlib")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _nodes(kinds: tuple[type[ast.AST], ...]) -> Iterator[tuple[Path, ast.AST]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                yield path, node


def _lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


def _python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 50


def test_files_are_short() -> None:
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: count for name, count in lengths.items() if count > MAX_FILE} == {}


def test_functions_and_classes_are_short() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [f"{_name(p)}:{n.name} {_lines(n)}" for p, n in _nodes(functions) if _lines(n) > MAX_FUNCTION]  # type: ignore[attr-defined]
    long += [f"{_name(p)}:{n.name} {_lines(n)}" for p, n in _nodes((ast.ClassDef,)) if _lines(n) > MAX_CLASS]  # type: ignore[attr-defined]
    assert long == []


def test_the_loop_can_be_read_at_one_sitting() -> None:
    path = ROOT / "src/ullage/train/loop.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LOOP
    steps = [n for p, n in _nodes((ast.FunctionDef,)) if p == path and n.name == "step"]  # type: ignore[attr-defined]
    assert [_lines(node) < MAX_STEP for node in steps] == [True]


def test_imports_go_down_only() -> None:
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    assert tool, "import-linter is not installed: pip install -e .[test]"
    run = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_importing_the_package_loads_nothing_heavy_and_opens_no_socket() -> None:
    code = f"""
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError('import ullage opened a socket')
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import ullage
assert ullage.__version__
assert 'YOLO' in dir(ullage)
print([name for name in {LAZY!r} if name in sys.modules])
"""
    assert _python(code) == "[]"


def test_public_names_load_on_first_use() -> None:
    code = (
        "import ullage, sys; from ullage import YOLO, train, val, predict; print('torch' in sys.modules, YOLO.__name__)"
    )
    assert _python(code) == "True YOLO"


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import ullage

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ullage.no_such_name


def test_no_copied_or_borrowed_implementation_is_imported() -> None:
    found = []
    for path, node in _nodes((ast.Import, ast.ImportFrom)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        found += [
            f"{_name(path)}: {module}" for module in modules if module.split(".")[0] in ("ultralytics", "yolov12")
        ]
    # bench/peers holds programs that run in an environment of their own; they are started, never imported
    assert [entry for entry in found if not entry.startswith("bench/peers/")] == []


def test_nothing_is_evaluated_or_installed_behind_the_users_back() -> None:
    found = []
    for path, node in _nodes((ast.Call,)):
        called = node.func  # type: ignore[attr-defined]
        if (
            isinstance(called, ast.Name)
            and called.id in ("eval", "exec", "__import__")
            and _name(path).startswith("src/")
        ):
            found.append(f"{_name(path)}:{node.lineno} {called.id}")  # type: ignore[attr-defined]
    for path in SOURCES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"pip['\"]?,? ?['\"]install|shell=True", line):
                found.append(f"{_name(path)}:{number}")
    assert found == []


def _is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = [kind.id for kind in kinds if isinstance(kind, ast.Name)]
    passes_on = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return (None in kinds or "Exception" in names or "BaseException" in names) and not passes_on


def test_no_error_is_caught_that_was_not_expected() -> None:
    handlers = [(path, node) for path, node in _nodes((ast.ExceptHandler,)) if isinstance(node, ast.ExceptHandler)]
    assert [f"{_name(path)}:{node.lineno}" for path, node in handlers if _is_broad(node)] == []


def test_every_module_and_public_name_of_the_package_says_what_it_is() -> None:
    silent = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree):
            silent.append(_name(path))
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                silent.append(f"{_name(path)}:{node.name}")
    assert silent == []


def test_nothing_names_the_place_where_it_was_written() -> None:
    tracked = [
        path
        for path in ROOT.rglob("*")
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".yml", ".sh", "") and path.is_file()
    ]
    hidden = (
        ".git",
        ".venv",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
        ".import_linter_cache",
        "runs",
        "__pycache__",
    )
    found = []
    for path in tracked:
        if any(part.startswith(hidden) and part != ".gitignore" for part in path.relative_to(ROOT).parts):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [f"{_name(path)}: {mark}" for mark in ("/work" + "/", "T" + "ODO", "F" + "IXME") if mark in text]
    assert found == []
