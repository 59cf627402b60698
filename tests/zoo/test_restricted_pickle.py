"""Hostile and damaged checkpoints end in WeightsError or in tensors: nothing runs, nothing else is raised."""

from __future__ import annotations

import builtins
import functools
import importlib
import operator
import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import hostile
import pytest
import torch

from ullage.errors import WeightsError
from ullage.zoo.checkpoint_file import read_weights
from ullage.zoo.restricted_pickle import MAX_OPCODES, GlobalName, Inert, read_pickle


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once anything pickled has run, or a module named in a pickle has been imported."""
    path = tmp_path / "canary"
    (tmp_path / "canary_module.py").write_text(f"open({str(path)!r}, 'w').close()\nhook = print\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "canary_module", raising=False)
    return path


def bombs(path: Path) -> dict[str, object]:
    """Objects whose unpickling touches the canary, or would change the process."""
    touch = f"open({str(path)!r}, 'w').close()"
    call = hostile.Call
    return {
        "os.system": call(os.system, f"touch {path}"),
        "subprocess": call(subprocess.check_call, ["touch", str(path)]),
        "eval": call(eval, touch),
        "exec": call(exec, touch),
        "compile": call(exec, call(compile, touch, "x", "exec")),
        "open": call(open, str(path), "w"),
        "getattr chain": call(call(getattr, call(importlib.import_module, "os"), "system"), f"touch {path}"),
        "import": call(importlib.import_module, "canary_module"),
        "__import__": call(builtins.__import__, "canary_module"),
        "partial": call(functools.partial(os.system, f"touch {path}")),
        "map": call(list, call(map, os.system, [f"touch {path}"])),
        "attrgetter": call(operator.attrgetter("system"), call(importlib.import_module, "os")),
        "torch.load": call(torch.load, str(path.with_name("inner.pt"))),
        "torch.hub": call(torch.hub.load_state_dict_from_url, "http://127.0.0.1:9/x"),
        "pickle.loads": call(pickle.loads, pickle.dumps(call(os.system, f"touch {path}"))),
        "nested": {"model": {"a": [(1, {"b": call(os.system, f"touch {path}")})]}},
        "inside a state": hostile.Named(model=hostile.Named(_modules={"0": call(eval, touch)})),
    }


def refuse_or_tensors(path: Path) -> str:
    """Read a file as the program does; everything but tensors or WeightsError fails the test."""
    try:
        weights = read_weights(path)
    except WeightsError as error:
        complaint = str(error)
    else:
        assert all(isinstance(value, torch.Tensor) for value in weights.state_dict.values())
        return "tensors"
    assert complaint.isprintable(), "one line for people"
    return "refused"


def test_the_canary_works(canary: Path) -> None:
    """Python's own unpickler runs the same bytes: the tests below would notice."""
    pickle.loads(hostile.python_pickle(hostile.Call(os.system, f"touch {canary}")))
    assert canary.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", list(bombs(Path("x"))))
@pytest.mark.parametrize("form", ["zip", "legacy", "beside weights"])
def test_nothing_pickled_runs(canary: Path, tmp_path: Path, name: str, protocol: int, form: str) -> None:
    bomb = bombs(canary)[name]
    value = {"state_dict": {"a": torch.ones(2)}, "extra": bomb} if form == "beside weights" else bomb
    path = hostile.write(tmp_path / "x.pt", hostile.saved(value, legacy=form == "legacy", protocol=protocol))
    outcome = refuse_or_tensors(path)
    assert outcome == ("tensors" if form == "beside weights" else "refused")
    assert not canary.exists()
    assert "canary_module" not in sys.modules


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n" + hostile.text("touch CANARY") + b"\x85R.",
        b"\x80\x04" + hostile.text("os") + hostile.text("system") + b"\x93" + hostile.text("touch CANARY") + b"\x85R.",
        b"\x80\x04" + hostile.text("canary_module") + hostile.text("hook") + b"\x93)R.",
        b"\x80\x02ccanary_module\nhook\n)\x81}" + hostile.text("a") + b"Nsb.",
        b"(S'touch CANARY'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\n" + hostile.text("touch CANARY") + b"o.",  # OBJ
        b"\x80\x02\x82\x01.",  # EXT1: a name registered in the reading process
        b"\x80\x02ccopyreg\nadd_extension\n" + hostile.text("os") + hostile.text("system") + b"K\x01\x87R\x82\x01.",
        b"\x80\x02ccopyreg\n_reconstructor\ncos\nsystem\nc__builtin__\nobject\nN\x87R.",
        b"\x80\x04"
        + hostile.text("builtins")
        + hostile.text("eval.__call__")
        + b"\x93"
        + hostile.text("1")
        + b"\x85R.",
        b"\x80\x04" + hostile.text("torch._utils") + hostile.text("_rebuild_tensor_v2.__globals__") + b"\x93)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}" + hostile.text("__globals__") + b"Nsb.",  # BUILD on a name
        b"\x80\x02]}" + hostile.text("__class__") + b"Nsb.",  # BUILD on a real list
        b"\x80\x02" + hostile.text("pid") + b"Q.",
        b"Pcanary\n.",
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\x80\x04\x8c\x00\x8c\x00\x93)R.",  # empty names
        b"\x80\x04K\x01K\x02\x93.",  # names that are numbers
        b"\x80\x04" + hostile.text("a" * 600) + hostile.text("b") + b"\x93.",
        b"\x80\x02c" + b"a" * 600 + b"\nb\n.",
        b"\x80\x02c\xff\xfe\nb\n.",
    ],
)
def test_raw_opcodes(canary: Path, tmp_path: Path, opcodes: bytes) -> None:
    opcodes = opcodes.replace(b"CANARY", str(canary).encode())
    assert refuse_or_tensors(hostile.write(tmp_path / "x.pt", hostile.zip_of(opcodes))) == "refused"
    assert not canary.exists()
    assert "canary_module" not in sys.modules


def test_calls_become_records() -> None:
    value = read_pickle(
        hostile.python_pickle({"a": hostile.Call(os.system, "ls"), "b": hostile.Named(c=[1, 2.5, b"x"])})
    )
    call, named = value.value["a"], value.value["b"]
    assert isinstance(call, Inert)
    assert call.made_by == GlobalName(os.system.__module__, "system")
    assert call.args == ("ls",)
    assert named.state == {"c": [1, 2.5, b"x"]}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_survive(protocol: int) -> None:
    shared = ["x"]
    value = {
        "numbers": [0, 255, 65535, -1, 2**31, -(2**70), 1.5, float("inf")],
        "texts": ("", "äöü 🙂", "a" * 300),
        "bytes": [b"", bytes(range(256)), b"x" * 300],
        "nested": {1: {2: (None, True, False)}, "empty": [[], (), {}]},
        "shared": [shared, shared],
    }
    read = read_pickle(hostile.python_pickle(value, protocol)).value
    assert read == value
    assert read["shared"][0] is read["shared"][1]


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (hostile.tensor(size=(5,)), "its storage"),
        (hostile.tensor(offset=1), "its storage"),
        (hostile.tensor(size=(2,), stride=(4,)), "its storage"),
        (hostile.tensor(offset=2**62), "its storage"),
        (hostile.tensor(offset=-1), "proper storage, offset"),
        (hostile.tensor(stride=(-1,)), "proper storage, offset"),
        (hostile.tensor(size=(-4,)), "proper storage, offset"),
        (hostile.tensor(size=(2, 2)), "proper storage, offset"),
        (hostile.tensor(size=(2**40,), stride=(0,)), "too long sides"),
        (hostile.tensor(size=(1000,), stride=(0,)), "its storage"),
        (hostile.tensor(size=(2,) * 40, stride=(0,) * 40), "too many"),
        (hostile.tensor(size=(0, 2**62), stride=(1, 1)), "too long sides"),
        (hostile.tensor(numel=2**60, size=(2**30,)), "unfold"),
        (hostile.tensor(numel=2**60, size=(4,)), "unfold"),
        (hostile.tensor(numel=5, size=(4,)), "has 16 bytes"),
        (hostile.tensor(numel=3, size=(3,)), "has 16 bytes"),
        (hostile.tensor(key="7"), "is missing"),
        (hostile.tensor(key="../data.pkl"), "is missing"),
        (hostile.tensor(kind="ComplexFloatStorage"), "readable are"),
        (hostile.tensor(kind="load"), "readable are"),
    ],
)
def test_views_stay_inside_their_storage(tmp_path: Path, tensor: bytes, complaint: str) -> None:
    path = hostile.write(tmp_path / "x.pt", hostile.zip_of(hostile.state_of(tensor), {"0": bytes(16)}))
    with pytest.raises(WeightsError, match=complaint):
        read_weights(path)


def test_the_same_maker_gives_good_tensors(tmp_path: Path) -> None:
    data = struct.pack("<4f", 1, 2, 3, 4)
    good = hostile.state_of(hostile.tensor(), hostile.tensor(size=(2, 2), stride=(1, 2)), hostile.tensor(size=(0,)))
    state = read_weights(hostile.write(tmp_path / "x.pt", hostile.zip_of(good, {"0": data}))).state_dict
    assert state["a"].tolist() == [1, 2, 3, 4]
    assert state["b"].tolist() == [[1, 3], [2, 4]]
    assert state["c"].shape == (0,)


def test_zip_bombs_are_refused_before_unpacking(tmp_path: Path) -> None:
    bomb = hostile.zip_of(hostile.state_of(hostile.tensor(numel=10**7, size=(10**7,))), {"0": bytes(4 * 10**7)},
                          compression=zipfile.ZIP_DEFLATED)  # fmt: skip
    assert len(bomb) < 10**5
    with pytest.raises(WeightsError, match="compressed"):
        read_weights(hostile.write(tmp_path / "x.pt", bomb))


def test_shared_storages_cannot_fill_the_memory(tmp_path: Path) -> None:
    state = b"\x80\x02}(" + b"".join(
        hostile.text(f"k{i}") + hostile.tensor(numel=10**5, size=(10**5,)) for i in range(40)
    )
    path = hostile.write(tmp_path / "x.pt", hostile.zip_of(state + b"u.", {"0": bytes(4 * 10**5)}))
    with pytest.raises(WeightsError, match="unfold"):
        read_weights(path)


def test_entries_that_claim_more_than_the_file(tmp_path: Path) -> None:
    data = bytearray(hostile.saved({"a": torch.ones(4)}))
    entry = data.index(b"PK\x01\x02")
    for field in (20, 24):  # compressed and real size in the directory
        data[entry + field : entry + field + 4] = struct.pack("<I", 2**31)
    with pytest.raises(WeightsError, match="claim"):
        read_weights(hostile.write(tmp_path / "x.pt", bytes(data)))


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    path = hostile.write(tmp_path / "x.pt", hostile.zip_of(hostile.state_of(hostile.tensor()), {"0": bytes(16)}))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02N.")
    with pytest.raises(WeightsError, match="two entries"):
        read_weights(path)


MANY = 200_000
LONG = hostile.text("x" * 100_000) + b"q\x000"


def doubling(levels: int) -> bytes:
    """Opcodes of lists of ten references each to the list before: 10^levels values in a few hundred opcodes."""
    opcodes = b"]q\x00"
    for level in range(1, levels):
        opcodes += b"0]q" + bytes([level]) + b"(" + (b"h" + bytes([level - 1])) * 10 + b"e"
    return opcodes


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        (b"]" * MANY + b"a" * (MANY - 1), "nested too deeply"),
        (b"N" + b"\x85" * MANY, "nested too deeply"),
        (b"]q\x00h\x00a", "refers to itself"),
        (b"}q\x00" + hostile.text("x") + b"h\x00s", "refers to itself"),
        (doubling(10), "too large"),
        (b"}N" + b"\x85" * MANY + b"Ns", "as a dictionary key"),  # its hash would recurse in C
        (b"ccollections\nOrderedDict\n]]N" + b"\x85" * MANY + b"aNaa\x85R", "as a dictionary key"),
        (b"}]Ns", "as a dictionary key"),
        (b"}(" + b"".join(hostile.integer(i * (2**61 - 1)) + b"N" for i in range(2, 99)) + b"u", "as a dictionary key"),
        (b"}(" + b"N" * 17 + b"tNs", "as a dictionary key"),
        (LONG + b"(" + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 50 + b"t", "over and over"),
        (b"]q\x00(" + b"K\x01" * 99_999 + b"e(" + b"ctorch\nSize\nh\x00\x85R" * 2 + b"t", "row of counts"),
        (b"(" * MANY, "empty stack"),
    ],
)
def test_deep_and_cyclic_structures(tmp_path: Path, extra: bytes, complaint: str) -> None:
    with pytest.raises(WeightsError, match=complaint):
        read_weights(with_metadata(tmp_path, extra))


def with_metadata(folder: Path, extra: bytes) -> Path:
    """A good checkpoint with one more entry."""
    pickled = b"\x80\x02}(" + hostile.text("state_dict") + b"}" + hostile.text("a") + hostile.tensor() + b"s"
    pickled += hostile.text("extra") + extra + b"u."
    return hostile.write(folder / "x.pt", hostile.zip_of(pickled, {"0": bytes(16)}))


@pytest.mark.parametrize("extra", [doubling(3), b"cx\ny\n)R" + b")R" * MANY, b"cx\ny\n)\x81"])
def test_harmless_metadata_pass(tmp_path: Path, extra: bytes) -> None:
    """The control of the test above: records of any length are dropped, small data are kept."""
    weights = read_weights(with_metadata(tmp_path, extra))
    assert weights.state_dict["a"].tolist() == [0, 0, 0, 0]
    assert weights.metadata.get("extra", "dropped") in ("dropped", [[[]] * 10] * 10)


def module(*, parameters: bytes = b"}", modules: bytes = b"}") -> bytes:
    """Opcodes of a pickled module."""
    state = b"}(" + hostile.text("_parameters") + parameters + hostile.text("_buffers") + b"}"
    return b"cx\nModule\n)\x81" + state + hostile.text("_modules") + modules + b"ub"


def test_modules_nested_without_end(tmp_path: Path) -> None:
    tree = module()
    for _ in range(100):
        tree = module(modules=b"}" + hostile.text("m") + tree + b"s")
    with pytest.raises(WeightsError, match="nested too deeply"):
        read_weights(hostile.write(tmp_path / "x.pt", hostile.zip_of(b"\x80\x02" + tree + b".")))


def test_modules_that_multiply_through_the_memo(tmp_path: Path) -> None:
    tree = module() + b"q\x00"
    for level in range(1, 30):
        children = b"}(" + b"".join(hostile.text(str(i)) + b"h" + bytes([level - 1]) for i in range(9)) + b"u"
        tree += b"0" + module(modules=children) + b"q" + bytes([level])
    with pytest.raises(WeightsError, match="too large"):
        read_weights(hostile.write(tmp_path / "x.pt", hostile.zip_of(b"\x80\x02" + tree + b".")))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02X\xff\xff\xff\x7f.",  # a text of 2 GB
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\x02\x8b\xff\xff\xff\xff.",  # an integer of 4 GB
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02j\xff\xff\xff\xff.",
        b"\x80\x02" + b"N0" * (MAX_OPCODES // 2 + 1) + b".",
        b"\x80\x02}(N.u",
        b"\x80\x02}(Nu.",
        b"\x80\x02.",
        b"\x80\x02",
        b"",
        b"\x80\x01.",
        b"\x80\xff.",
        b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
    ],
)
def test_wrong_lengths_and_empty_stacks(tmp_path: Path, opcodes: bytes) -> None:
    assert refuse_or_tensors(hostile.write(tmp_path / "x.pt", hostile.zip_of(opcodes))) == "refused"


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files(tmp_path: Path, legacy: bool) -> None:
    whole = hostile.saved({"model": hostile.Network().half()}, legacy=legacy)
    path = tmp_path / "x.pt"
    cuts = sorted({*range(0, len(whole), len(whole) // 60), *range(40), *range(len(whole) - 40, len(whole))})
    outcomes = {cut: refuse_or_tensors(hostile.write(path, whole[:cut])) for cut in cuts}
    assert set(outcomes.values()) == {"refused"}


@pytest.mark.parametrize("form", ["zip", "legacy", "state"])
def test_flipped_bits(canary: Path, tmp_path: Path, form: str) -> None:
    rng = random.Random(form)
    network = hostile.Network().half()
    value = (
        network.state_dict() if form == "state" else {"model": network, "x": hostile.Call(os.system, f"touch {canary}")}
    )
    whole = hostile.saved(value, legacy=form == "legacy")
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        refuse_or_tensors(hostile.write(tmp_path / "x.pt", bytes(data)))
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_mutated_pickles_with_a_valid_checksum(canary: Path, tmp_path: Path, protocol: int) -> None:
    """The zip's CRC cannot help here: bytes are changed, dropped, doubled and swapped inside the pickle itself."""
    rng = random.Random(protocol)
    value = {"model": hostile.Network(), "x": hostile.Call(os.system, f"touch {canary}"), "meta": {"a": [1, (2, "b")]}}
    pickled, storages = hostile.pickled_part(hostile.saved(value, protocol=protocol))
    outcomes = set()
    for _ in range(250):
        data = bytearray(pickled)
        for _ in range(rng.choice([1, 2, 5])):
            at, length = rng.randrange(len(data)), rng.randrange(1, 12)
            piece = bytes(data[at : at + length])
            change = rng.randrange(4)
            replacement = (bytes([rng.randrange(256)]), b"", piece * 2, piece[::-1])[change]
            data[at : at + (1 if change == 0 else length)] = replacement
        outcomes.add(refuse_or_tensors(hostile.write(tmp_path / "x.pt", hostile.zip_of(bytes(data), storages))))
    assert outcomes == {"refused", "tensors"}, "both must occur, or the test shows nothing"
    assert not canary.exists()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "empty"),
        (b"hello, these are no weights\n", "starts with"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "starts with"),
        (b"<!DOCTYPE html><html></html>", "starts with"),
        (b"PK\x03\x04", "zip directory"),
        (b"PK\x05\x06" + bytes(18), "starts with"),
        (b"\x80", "ends too early"),
        (hostile.python_pickle({"a": 1}), "not a file of torch.save"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, data: bytes, complaint: str) -> None:
    with pytest.raises(WeightsError, match=complaint):
        read_weights(hostile.write(tmp_path / "x.pt", data))


def test_folder_missing_and_other_zips(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(WeightsError, match="does not exist"):
        read_weights(tmp_path / "no.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a/readme.txt", "x")
    with pytest.raises(WeightsError, match=r"no single data\.pkl"):
        read_weights(tmp_path / "other.pt")
    with zipfile.ZipFile(tmp_path / "program.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("program/constants.pkl", b"\x80\x02).")
        archive.writestr("program/data.pkl", b"\x80\x02).")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_weights(tmp_path / "program.pt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes in folders are a POSIX feature")
def test_what_cannot_be_opened_as_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(WeightsError, match="not a regular file"):
        read_weights(tmp_path / "pipe.pt")


def test_messages_stay_short_whatever_the_file_says(tmp_path: Path) -> None:
    """Records that hold themselves, long texts and line breaks must not get into a message as they are."""
    loop = b"cx\ny\n)\x81q\x00}" + hostile.text("me") + b"h\x00sb0"
    for value in (
        loop + b"}h\x00h\x00s",
        b"}" + hostile.text("kind") + hostile.text("ullage." + "x\n" * 10_000) + b"s",
        b"}(" + hostile.text("kind") + hostile.text("ullage.checkpoint") + hostile.text("schema") + b"]h" + b"\x00au",
        b"}" + hostile.text("a\nb" * 10_000) + b"Ns",
    ):
        path = hostile.write(tmp_path / "x.pt", hostile.zip_of(b"\x80\x02Nq\x000" + value + b"."))
        with pytest.raises(WeightsError) as caught:
            read_weights(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500
