"""Loaders: the same batches whatever the workers and the cache, from any batch on; errors in one line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from painted_sets import make_set, write_set

import ullage.data.pool as pool_module
from ullage.config.augment import AugmentSettings
from ullage.data.augment import sample_recipe
from ullage.data.batch import Batch
from ullage.data.decode import read_image
from ullage.data.loader import EvalLoader, TrainLoader, default_workers
from ullage.data.order import partner_window, train_keys
from ullage.data.recent import RECENT_BYTES
from ullage.data.slots import BatchSlots
from ullage.data.spent import Spent
from ullage.errors import ConfigError, DataError

AUGMENT = AugmentSettings(mixup=0.3, copy_paste=0.5, close_mosaic=1)


@pytest.fixture(autouse=True)
def quiet_forks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This process .* is multi-threaded", category=DeprecationWarning)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("images"))


def train_loader(dataset, **changes) -> TrainLoader:
    options = {"batch": 4, "imgsz": 96, "augment": AUGMENT, "seed": 7, "workers": 0} | changes
    return TrainLoader(dataset, **options)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.indices == b.indices
        assert a.letterboxes == b.letterboxes
        assert torch.equal(a.images_BCHW, b.images_BCHW)
        assert torch.equal(a.targets.image_index_G, b.targets.image_index_G)
        assert torch.equal(a.targets.class_ids_G, b.targets.class_ids_G)
        assert torch.equal(a.targets.boxes_xyxy_px_G4, b.targets.boxes_xyxy_px_G4)


def test_batches_are_what_the_network_expects(dataset):
    loader = train_loader(dataset)
    batches = list(loader.epoch(0, epochs=3))
    assert len(loader) == len(batches) == 3
    assert [len(batch.indices) for batch in batches] == [4, 4, 3]
    assert sorted(i for batch in batches for i in batch.indices) == list(range(11))
    for batch in batches:
        count = len(batch.indices)
        assert batch.images_BCHW.dtype == torch.uint8
        assert batch.images_BCHW.shape == (count, 3, 96, 96)
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert batch.targets.batch_size == count
        assert batch.letterboxes == ()
        boxes = batch.targets.boxes_xyxy_px_G4
        assert boxes.dtype == torch.float32
        assert batch.targets.class_ids_G.dtype == batch.targets.image_index_G.dtype == torch.int64
        assert boxes.min() >= 0
        assert boxes.max() <= 96
        assert (boxes[:, 2:] - boxes[:, :2] > 2).all()
        assert (batch.targets.image_index_G.diff() >= 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cache": "ram"},
        {"cache": "disk"},
        {"rect": True, "augment": AugmentSettings(mosaic=0, copy_paste=0.3), "sizes": (64, 128)},
    ],
    ids=["plain", "ram", "disk", "rect-multiscale"],
)
def test_workers_and_cache_change_nothing(dataset, changes):
    plain = train_loader(dataset, **(changes | {"cache": False}))
    shared = train_loader(dataset, workers=2, **changes)
    try:
        for epoch in range(3):  # the last one without mosaic
            assert_same(list(plain.epoch(epoch, epochs=3)), list(shared.epoch(epoch, epochs=3)))
    finally:
        shared.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_taken_up_again_goes_on_as_it_would_have(dataset, workers):
    whole = list(train_loader(dataset).epoch(2, epochs=9))
    resumed = train_loader(dataset, workers=workers)
    try:
        for start in (0, 1, 2, 3):
            assert_same(whole[start:], list(resumed.epoch(2, epochs=9, start_batch=start)))
    finally:
        resumed.close()


def test_an_epoch_may_be_left_early(dataset):
    loader = train_loader(dataset, workers=2, batch=1)
    try:
        for batch in loader.epoch(0, epochs=9):
            assert len(batch.indices) == 1
            break
        assert_same(list(train_loader(dataset, batch=1).epoch(1, epochs=9)), list(loader.epoch(1, epochs=9)))
    finally:
        loader.close()


def test_epochs_and_seeds_differ(dataset):
    order = lambda **changes: [b.indices for b in train_loader(dataset, **changes).epoch(0, epochs=9)]  # noqa: E731
    other = [b.indices for b in train_loader(dataset).epoch(1, epochs=9)]
    assert order() == order()
    assert order() != order(seed=8)
    assert order() != other


def test_loading_leaves_global_random_state_alone(dataset):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for workers in (0, 1):
        loader = train_loader(dataset, workers=workers)
        list(loader.epoch(0, epochs=1))
        loader.close()
    assert torch.equal(before, torch.get_rng_state())


def test_multi_scale_draws_each_batch_its_size(dataset):
    loader = train_loader(dataset, batch=1, sizes=(64, 128))
    sizes = [tuple(b.images_BCHW.shape[2:]) for epoch in range(6) for b in loader.epoch(epoch, epochs=9)]
    assert {h for h, _ in sizes} == {64, 96, 128}
    assert all(h == w for h, w in sizes)
    again = [tuple(b.images_BCHW.shape[2:]) for b in loader.epoch(2, epochs=9, start_batch=4)]
    assert again == sizes[26:33]


def test_rect_pads_to_the_longest_side_only(dataset):
    loader = train_loader(dataset, rect=True, augment=AugmentSettings(mosaic=0), batch=2, imgsz=160)
    seen: list[int] = []
    for batch in loader.epoch(0, epochs=1):
        height, width = batch.images_BCHW.shape[2:]
        sizes = np.array([dataset.size_hw(i) for i in batch.indices])
        longest = (sizes * 160 / sizes.max(1, keepdims=True)).round().max(0)
        assert (height, width) == tuple(int(-(-side // 32) * 32) for side in longest)
        seen += batch.indices
    assert sorted(seen) == list(range(11))
    shapes = {tuple(b.images_BCHW.shape[2:]) for b in loader.epoch(0, epochs=1)}
    assert any(h < w for h, w in shapes)
    assert any(h > w for h, w in shapes)


def test_rect_and_mosaic_contradict_each_other(dataset):
    with pytest.raises(ConfigError, match=r"rect=True.*mosaic=1.*set mosaic=0"):
        train_loader(dataset, rect=True)


@pytest.mark.parametrize("changes", [{"imgsz": 100}, {"imgsz": 0}, {"sizes": (128, 64)}, {"batch": 0}])
def test_impossible_settings_are_refused(dataset, changes):
    with pytest.raises(ConfigError):
        train_loader(dataset, **changes)


def test_an_empty_set_is_refused():
    with pytest.raises(DataError, match="no image"):
        train_loader(make_set([], []))
    with pytest.raises(DataError, match="no image"):
        EvalLoader(make_set([], []), imgsz=64, batch=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_image_and_a_batch_larger_than_the_set(tmp_path, workers):
    dataset = write_set(tmp_path, count=1)
    loader = train_loader(dataset, batch=64, workers=workers)
    (batch,) = loader.epoch(0, epochs=3)
    assert batch.images_BCHW.shape == (1, 3, 96, 96)
    loader.close()
    (batch,) = EvalLoader(dataset, imgsz=64, batch=64, workers=workers)
    assert batch.indices == (0,)


def test_images_without_boxes(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        assert cv2.imwrite(str(path), np.zeros((50, 60, 3), np.uint8))
    dataset = make_set([(50, 60)] * 3, [[]] * 3, paths=paths)
    (batch,) = train_loader(dataset).epoch(0, epochs=9)
    assert len(batch.targets) == 0
    assert batch.targets.boxes_xyxy_px_G4.shape == (0, 4)
    (batch,) = EvalLoader(dataset, imgsz=64, batch=4, workers=0)
    assert batch.targets.batch_size == 3
    assert len(batch.targets) == 0


@pytest.mark.parametrize("cache", [False, "ram"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_named_in_one_line(tmp_path, workers, cache):
    dataset = write_set(tmp_path)
    Path(dataset.paths[5]).write_bytes(Path(dataset.paths[5]).read_bytes()[:700])
    loader = train_loader(dataset, workers=workers, cache=cache)
    try:
        with pytest.raises(DataError) as caught:
            list(loader.epoch(0, epochs=9))
        assert "005.jpg" in str(caught.value)
        assert "\n" not in str(caught.value)
        # The loader outlives it: the other images can still be had.
        if cache is False:
            good = write_set(tmp_path)
            assert_same(list(train_loader(good).epoch(1, epochs=9)), list(loader.epoch(1, epochs=9)))
    finally:
        loader.close()
    assert not multiprocessing.active_children()  # even while the error, with its traceback, is still held


def test_a_pass_that_was_overtaken_ends(dataset):
    loader = train_loader(dataset, workers=1, batch=1)
    first = loader.epoch(0, epochs=9)
    next(first)
    second = loader.epoch(1, epochs=9)
    next(second)
    with pytest.raises(RuntimeError, match="started anew"):
        next(first)
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(second)
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_reported(dataset):
    loader = train_loader(dataset, workers=1, batch=1)
    batches = loader.epoch(0, epochs=9)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a loader process died .*fewer workers"):
        list(batches)
    loader.close()


def _work_as_a_worker() -> None:
    pool_module._init_worker(0)
    cv2.cvtColor(np.zeros((3000, 3000, 3), np.uint8), cv2.COLOR_RGB2HSV)
    torch.from_numpy(np.zeros(3000, np.uint8)).float().sum()


@pytest.mark.skipif(pool_module.start_method() != "fork", reason="processes are not forked here")
def test_workers_start_after_threads_were_used():
    """Forked processes inherit no threads: the pools of OpenCV and torch must not be waited for."""
    cv2.cvtColor(np.zeros((3000, 3000, 3), np.uint8), cv2.COLOR_RGB2HSV)
    torch.nn.functional.conv2d(torch.zeros(4, 8, 64, 64), torch.zeros(8, 8, 3, 3)).sum()
    process = multiprocessing.get_context("fork").Process(target=_work_as_a_worker)
    process.start()
    process.join(timeout=120)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


SCRIPT = """
import sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
from painted_sets import write_set
from ullage.config.augment import AugmentSettings
from ullage.data.loader import TrainLoader
loader = TrainLoader(write_set(Path({images!r})), batch=2, imgsz=64, augment=AugmentSettings(), workers=2)
try:
    for epoch in range(10_000):
        for batch in loader.epoch(epoch, epochs=10_000):
            print("batch", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="consoles deliver Ctrl-C differently there")
def test_ctrl_c_ends_everything_quietly(tmp_path):
    code = SCRIPT.format(folder=str(Path(__file__).parent), images=str(tmp_path / "images"))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0
    assert output.endswith("stopped\n")
    assert errors == ""


@pytest.mark.parametrize("rect", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_eval_batches_are_letterboxed(dataset, rect, workers):
    loader = EvalLoader(dataset, imgsz=160, batch=2, rect=rect, workers=workers)
    seen: list[int] = []
    batches = list(loader)
    assert_same(batches, list(loader))
    loader.close()
    assert len(batches) == len(loader) == 6
    for batch in batches:
        size_hw = tuple(batch.images_BCHW.shape[2:])
        seen += batch.indices
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        for place, (index, letterbox) in enumerate(zip(batch.indices, batch.letterboxes, strict=True)):
            assert letterbox.size_hw == size_hw
            assert letterbox.source_hw == dataset.size_hw(index)
            assert max(letterbox.resized_hw) == 160
            expected = letterbox.apply(read_image(dataset.paths[index]))
            np.testing.assert_array_equal(batch.images_BCHW[place].permute(1, 2, 0).numpy(), expected)
            labels = dataset.labels(index)
            targets = batch.targets.images(place, place + 1)
            back = letterbox.backward(targets.boxes_xyxy_px_G4.numpy())
            np.testing.assert_allclose(back, labels.boxes_xyxy_px_G4[~labels.crowd_G], atol=1e-3)
            np.testing.assert_array_equal(targets.class_ids_G, labels.class_ids_G[~labels.crowd_G])
    assert sorted(seen) == list(range(11))
    if rect:
        sizes = [tuple(batch.images_BCHW.shape[2:]) for batch in batches]
        assert sizes[0] == (64, 160)
        assert sizes[-1][1] < 160
        assert all(side % 32 == 0 for size in sizes for side in size)
    else:
        assert seen == list(range(11))


def test_rect_order_depends_on_seed_and_epoch(dataset):
    def batches(seed: int, epoch: int) -> list[tuple[int, ...]]:
        keys = train_keys(
            dataset, batch=2, imgsz=96, sizes=None, rect=True, seed=seed, epoch=epoch, epochs=9
        )  # fmt: skip
        return [key.indices for key in keys]

    assert batches(0, 0) == batches(0, 0)
    assert len({tuple(batches(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_default_workers_follow_cores_and_device(monkeypatch):
    for cores, cpu, cuda in ((1, 0, 1), (2, 0, 1), (4, 1, 3), (16, 2, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        assert (default_workers("cpu"), default_workers("cuda")) == (cpu, cuda)


def test_tensors_are_pinned_only_for_cuda(dataset):
    (batch,) = train_loader(dataset, batch=11, device_type="cuda").epoch(0, epochs=1)
    assert batch.images_BCHW.is_pinned() == torch.cuda.is_available()


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_that_are_kept_are_not_overwritten(dataset, workers):
    """More batches are held than there are slots to travel in."""
    expected = [list(train_loader(dataset, batch=1).epoch(epoch, epochs=9)) for epoch in range(2)]
    loader = train_loader(dataset, batch=1, workers=workers)
    try:
        kept = [list(loader.epoch(epoch, epochs=9)) for epoch in range(2)]
    finally:
        loader.close()
    for ours, theirs in zip(kept, expected, strict=True):
        assert_same(ours, theirs)  # also after the processes have ended


def test_slots_are_used_again_and_are_free_when_nobody_looks():
    slots = BatchSlots(2, 12)
    first, second = slots.take((2, 2, 3)), slots.take((1, 3))
    assert {first, second} == {0, 1}
    assert first is not None
    assert slots.take((1,)) is None
    slots.view(first, (2, 2, 3))[...] = 5
    tensor = slots.hand_over(first, (2, 2, 3))
    part = tensor.permute(2, 0, 1)[1:]
    del tensor
    assert slots.take((1,)) is None  # a part of it is still held
    assert (part == 5).all()
    del part
    assert slots.take((2, 2, 3)) == first
    assert slots.take((1,)) is None
    slots.take_back()
    assert {slots.take((1,)), slots.take((1,))} == {0, 1}
    slots.take_back()
    assert slots.take((13,)) is None  # too large


def test_the_next_epoch_is_begun_while_the_loop_does_other_things(dataset):
    loader = train_loader(dataset, workers=1, batch=1)
    made = lambda epoch: list(loader.epoch(epoch, epochs=9))  # noqa: E731
    expected = [list(train_loader(dataset, batch=1).epoch(epoch, epochs=9)) for epoch in range(6)]
    try:
        assert_same(made(0), expected[0])
        processes = multiprocessing.active_children()
        ahead = loader._pool._plan._ahead
        assert ahead is not None
        assert ahead.name == (1, 9)
        began = loader._pool._batches
        assert_same(made(1), expected[1])
        assert loader._pool._plan._wanted is ahead  # it went on
        assert_same(made(4), expected[4])  # something else was wanted
        assert_same(made(5), expected[5])
        assert loader._pool._batches is began
        assert multiprocessing.active_children() == processes
    finally:
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_tells_where_the_time_went(dataset, workers):
    loader = train_loader(dataset, workers=workers)
    assert loader.spent() == Spent()
    try:
        list(loader.epoch(0, epochs=4))
        first = loader.spent()
        assert first.images == 11
        assert 1 <= first.decoded <= 22  # two processes may decode the same image, one of them for the next epoch
        assert min(first.decode_seconds, first.augment_seconds, first.collate_seconds, first.wait_seconds) > 0
        list(loader.epoch(1, epochs=4))
        before = loader.spent()
        assert 11 <= before.decoded <= 22
        list(loader.epoch(2, epochs=4))
        second = loader.spent() - before
        assert (second.images, second.decoded) == (11, 0)
        assert "0.00 decoded an image" in str(second)
        assert second.images == 11
    finally:
        loader.close()


def order_of(keys) -> list[int]:
    return [index for key in keys for index in key.indices]


@pytest.mark.parametrize("rect", [False, True])
def test_partners_come_from_the_window_of_the_epochs_order(dataset, rect):
    common = {"batch": 4, "imgsz": 96, "sizes": None, "rect": rect, "seed": 1, "epoch": 2, "epochs": 9}
    keys = train_keys(dataset, **common, window=5)
    order = order_of(keys)
    assert sorted(order) == list(range(11))
    position = 0
    for key in keys:
        for place, index in enumerate(key.indices):
            start = min(max(position - 4, 0), 6)
            assert list(key.partners(place) or ()) == order[start : start + 5]
            assert index in (key.partners(place) or ())
            position += 1
    everywhere = train_keys(dataset, **common)
    assert order_of(everywhere) == order
    assert everywhere[0].partners(0) is None
    assert order_of(keys.after(1)) == order_of(keys[1:]) == order[len(keys[0].indices) :]


def test_samples_do_not_depend_on_the_batch(dataset):
    """The image, not its place in a batch, decides; only the grouping changes."""
    single = list(train_loader(dataset, batch=1).epoch(0, epochs=9))
    pictures = {batch.indices[0]: batch.images_BCHW[0] for batch in single}
    for batch in train_loader(dataset, batch=4).epoch(0, epochs=9):
        for place, index in enumerate(batch.indices):
            assert torch.equal(batch.images_BCHW[place], pictures[index])


def test_partners_from_the_whole_set(dataset, monkeypatch):
    monkeypatch.setattr("ullage.data.loader.partner_window", lambda _: 2)
    used: dict[str, set[int]] = {}
    for partners in ("window", "all"):
        loader = train_loader(dataset, augment=AugmentSettings(partners=partners), batch=11)  # pyright: ignore
        key = loader._pass(0, 9).keys[0]
        near = key.partners(10)
        recipes = [
            sample_recipe(
                dataset, index=key.indices[10], size_hw=(96, 96), settings=AUGMENT, seed=seed, epoch=0, partners=near
            )
            for seed in range(60)
        ]
        used[partners] = {tile.index for each in recipes for layer in each.layers for tile in layer}
    assert len(used["window"]) == 2
    assert used["all"] == set(range(11))


@pytest.mark.parametrize(
    ("workers", "partners", "least", "most"), [(0, "window", 0.5, 1.0), (2, "window", 0.5, 1.3), (0, "all", 1.8, 4.0)]
)
def test_each_image_is_decoded_about_once_an_epoch(tmp_path, monkeypatch, workers, partners, least, most):
    """Though only a half of the set fits into memory; what is left of the last epoch may serve the next one."""
    dataset = write_set(tmp_path, count=120)
    monkeypatch.setattr("ullage.data.cache.RECENT_BYTES", 60 * 96 * 96 * 3)
    monkeypatch.setattr("ullage.data.loader.partner_window", lambda _: 30)
    loader = train_loader(dataset, augment=AugmentSettings(partners=partners), workers=workers, batch=8)
    try:
        list(loader.epoch(0, epochs=20))
        before = loader.spent()
        list(loader.epoch(1, epochs=20))
        assert least <= (loader.spent() - before).decoded / 120 <= most
    finally:
        loader.close()


def test_the_window_fits_into_the_memory_for_recent_images():
    for side in (64, 320, 640, 1280, 2560):
        assert 16 <= partner_window(side) <= 80
    assert partner_window(640) == 80
    assert partner_window(1280) * 1280 * 1280 * 3 <= RECENT_BYTES
