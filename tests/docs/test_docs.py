"""The documentation is true: its snippets run, its links lead somewhere, its tables say what the code says."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pages import PAGES, ROOT, Block, anchors, blocks, links, page_id, prose, spans, table_after
from PIL import Image

import ullage.config as config
from ullage import api
from ullage.apps.cli.arguments import VERBS
from ullage.apps.cli.main import main
from ullage.config import ExportConfig, PredictConfig, TrainConfig, ValConfig, VerbConfig
from ullage.config.bench import BenchConfig
from ullage.config.runs import RunsFollowConfig, RunsListConfig, RunsResumeConfig, RunsStopConfig
from ullage.config.tools import DataCheckConfig, DataConvertConfig, DataViewConfig, PlanConfig
from ullage.data.index import ProblemKind
from ullage.data.yaml_file import KEYS as DATA_KEYS
from ullage.errors import ConfigError
from ullage.nn.flops import count_flops
from ullage.zoo.registry import MODELS, build

DOCS = ROOT / "docs"
RUNNABLE, SHOWN = ("python", "sh"), ("yaml", "text", "html", "cpp")  # the last two: tests/export/test_consumers.py
SKIPS_ALLOWED = 4
CONFIGS: dict[str, tuple[Path, type[VerbConfig]]] = {
    "train": (DOCS / "train.md", TrainConfig),
    "val": (DOCS / "train.md", ValConfig),
    "predict": (DOCS / "predict.md", PredictConfig),
    "export": (DOCS / "deploy.md", ExportConfig),
    "bench": (DOCS / "deploy.md", BenchConfig),
    "plan": (DOCS / "train.md", PlanConfig),
    "data check": (DOCS / "data.md", DataCheckConfig),
    "data view": (DOCS / "data.md", DataViewConfig),
    "data convert": (DOCS / "data.md", DataConvertConfig),
    "runs list": (DOCS / "detached_runs.md", RunsListConfig),
    "runs follow": (DOCS / "detached_runs.md", RunsFollowConfig),
    "runs stop": (DOCS / "detached_runs.md", RunsStopConfig),
    "runs resume": (DOCS / "detached_runs.md", RunsResumeConfig),
}
KNOWN_KEYS = {key for _, made in CONFIGS.values() for key in made.fields()}
# What stands before an equals sign and is no setting: words of the command line, arguments of other functions.
OTHER_KEYS = {"task", "mode", "cfg", "key", "weights_only", "ULLAGE_DEBUG", "callback", "listeners"}


@pytest.fixture
def user(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> Path:
    """A copy of the prepared folder, to work in."""
    shutil.copytree(template, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


def run_python(code: str, *, page: Path, line: int, namespace: dict[str, Any]) -> None:
    """Run a snippet; a traceback names the page and the line."""
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def run_shell(code: str, *, page: Path, line: int) -> None:
    for words in (shlex.split(text, comments=True) for text in code.replace("\\\n", " ").splitlines()):
        if words:
            assert words[0] == "ullage", (
                f"{page.name}:{line}: '{words[0]}' is not run here; mark the block with its reason"
            )
            assert main(words[1:]) == 0, f"{page.name}:{line}: {shlex.join(words)}"


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.kind in RUNNABLE for b in blocks(page))], ids=page_id)
def test_snippets_run(page: Path, user: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.skip is None and block.kind == "python":
            run_python(block.code, page=page, line=block.line, namespace=namespace)
        elif block.skip is None and block.kind == "sh":
            run_shell(block.code, page=page, line=block.line)


def test_the_calls_of_ultralytics_users_run(user: Path) -> None:
    page, namespace = DOCS / "from_ultralytics.md", {"__name__": "__main__"}
    run_python("from ullage import YOLO", page=page, line=1, namespace=namespace)
    for _, ours in table_after(page, "calls"):
        for call in spans(ours):
            if call.startswith("ullage "):
                run_shell(call, page=page, line=1)
            else:
                run_python(call, page=page, line=1, namespace=namespace)


def test_every_block_says_what_it_is_and_few_are_skipped() -> None:
    every = [(page, block) for page in PAGES for block in blocks(page)]
    assert {(page.name, block.kind) for page, block in every if block.kind not in RUNNABLE + SHOWN} == set()
    assert sum(block.kind in RUNNABLE for _, block in every) > 25
    skipped: list[Block] = [block for _, block in every if block.skip is not None]
    assert len(skipped) <= SKIPS_ALLOWED
    assert all(len(block.skip or "") > 10 for block in skipped)


def test_yaml_snippets_are_data_files_that_can_be_written_so() -> None:
    import yaml

    for block in blocks(DOCS / "data.md"):
        if block.kind == "yaml":
            assert set(yaml.safe_load(block.code)) <= set(DATA_KEYS)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to '{link}', which is not there"
        assert not anchor or anchor in anchors(target), f"{page.name} links to '{link}': no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    reached = {link.partition("#")[0] for link in links(DOCS / "index.md")}
    assert {page.name for page in PAGES if page.parent == DOCS} - reached == {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_settings_and_files_that_are_mentioned_exist(page: Path) -> None:
    text = re.sub(r"<!-- calls -->\n(\|.*\n)+", "", prose(page))  # these are run, and half of them is not ours
    for span in spans(text):
        for key in re.findall(r"(?:^|[ (,-])([A-Za-z_][A-Za-z0-9_]*)=(?!=)", span):
            assert key in KNOWN_KEYS | OTHER_KEYS, f"{page.name}: `{span}` names '{key}', which is no setting"
        if re.match(r"(scripts|docs|bench|recipes|tests|src)/[\w./]+$", span):
            assert (ROOT / span).exists(), f"{page.name} names {span}, which is not there"
        if span.startswith("scripts/test "):
            assert all((ROOT / word).exists() for word in span.split() if word.startswith("tests/")), span


def test_snippets_are_checked_as_written_before_they_are_made_small(small: None) -> None:
    for wrong in ({"epoch": 1}, {"epochs": 0}, {"imgsz": 100}):
        with pytest.raises(ConfigError):
            TrainConfig.load(wrong)
    made = TrainConfig.load({"epochs": 300, "imgsz": 640, "device": "0", "lr0": 0.005})
    assert (made.optim.epochs, made.data.imgsz, made.device.device, made.optim.lr0) == (1, 64, "cpu", 0.005)


@pytest.mark.parametrize("verb", CONFIGS)
def test_tables_list_every_setting_with_its_default(verb: str) -> None:
    page, made = CONFIGS[verb]
    written = {spans(key)[0]: spans(default)[0] for key, default, _ in table_after(page, f"settings: {verb}")}
    assert written == {row.key: row.default for row in made.help()}


def test_every_verb_has_a_line_in_the_index() -> None:
    verbs = re.findall(r"^\| `(\w+)` \|", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert verbs == list(VERBS)


def test_every_kind_of_problem_is_explained() -> None:
    explained = [row[0].replace(" ", "_") for row in table_after(DOCS / "data.md", "problems") if row[0]]
    assert sorted(explained) == sorted(get_args(ProblemKind))


def test_sizes_of_networks_are_what_the_table_of_networks_says() -> None:
    rows = {spans(row[0])[0]: row[1:5] for row in table_after(DOCS / "networks.md", "networks")}
    assert {name: (row[0], row[2]) for name, row in rows.items()} == {
        name: (f"{entry.parameters:,}", str(entry.gflops)) for name, entry in MODELS.items()
    }
    for name in ("yolo11n", "yolov12n", "yolo12n"):  # tests/zoo counts all fifteen
        with torch.device("meta"):
            flops = count_flops(build(name), size_hw=(640, 640))
        assert rows[name][1] == f"{flops.convolutions / 1e9:.2f}"
        assert rows[name][3] == f"{flops.attention / 1e9:.2f}"


def test_blocks_of_networks_are_what_the_networks_have() -> None:
    text = (DOCS / "networks.md").read_text(encoding="utf-8")
    for name in ("yolo11n", "yolov12n", "yolo12n"):
        with torch.device("meta"):
            names = build(name).block_names
        assert " · ".join(f"{number} {block}" for number, block in names.items()) in text


def test_a_run_leaves_the_files_that_are_listed(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"model": "yolo11n", "data": template / "my_data", "epochs": 1, "imgsz": 64, "workers": 0}
    result = api.train(config.TrainConfig.load({**settings, "device": "cpu", "verbose": False}))
    patterns = [spans(row[0])[0] for row in table_after(DOCS / "train.md", "files of a run")]
    left = [path.relative_to(result.run_dir).as_posix() for path in result.run_dir.rglob("*") if path.is_file()]
    assert [name for name in left if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in left)] == []


def test_the_picture_of_the_readme_is_made_from_a_run(template: Path, tmp_path: Path) -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "make_docs_images"))
    picture = made["make_demo_picture"](template / "runs/detect/train", tmp_path / "demo.jpg")
    with Image.open(picture) as fresh, Image.open(DOCS / "images" / "demo.jpg") as shown:
        assert fresh.size == shown.size


def test_settings_that_a_resumed_run_may_change_are_listed() -> None:
    from ullage.api.start import RESUMABLE_WITH

    text = " ".join((DOCS / "train.md").read_text(encoding="utf-8").split())
    names = [f"`{key}`" for key in sorted(RESUMABLE_WITH - {"model", "resume"})]
    assert f"only {', '.join(names[:-1])} and {names[-1]} may be changed" in text


def test_every_room_is_in_the_table_of_rooms() -> None:
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    rooms = [path for path in (ROOT / "src/ullage").iterdir() if (path / "__init__.py").is_file()]
    assert len(rooms) > 8
    assert [room.name for room in rooms if f"`{room.name}/`" not in text] == []


def test_measured_results_are_numbers_with_a_command() -> None:
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Measured results")
    rows = [line.strip("|").split("|") for line in rest.splitlines() if line.startswith("|")][2:]
    assert rows
    for what, result, command in rows:
        assert re.search(r"\d|exactly", result), what
        assert spans(command), what
        assert not re.search(r"tbd|to do|pending|placeholder|\?|xx", result, re.IGNORECASE), what
