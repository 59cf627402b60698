"""Weights on disk: what Ullage writes, and every form in which users bring weights.

Ullage writes ``.pt`` files of plain tensors and JSON-able data, which ``torch.load(weights_only=True)`` reads too:

    {"schema": 1, "kind": "ullage.checkpoint", "model": {"name": "yolo11n", "num_classes": 3}, "names": ["car", …],
     "weights": {key: tensor}, "ema": {key: tensor} or None, "meta": {…}, "train": {what a resume needs}}

and ``.safetensors`` files of weights alone, whose string metadata hold the same header, each entry as JSON. It reads
these, bare state dicts, and official checkpoints (a pickled module), all through `torch_file`: nothing pickled runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeVar, cast

import safetensors
import safetensors.torch
import torch

from ullage.errors import StorageError, WeightsError
from ullage.zoo.atomic_file import replacing
from ullage.zoo.pickled_module import attributes, is_module, module_tensors, to_plain
from ullage.zoo.restricted_pickle import TensorRef
from ullage.zoo.torch_file import TorchFile
from ullage.zoo.weights import infer_model_name, infer_num_classes, is_official

SCHEMA = 1
CHECKPOINT_KIND = "ullage.checkpoint"
WEIGHTS_KIND = "ullage.weights"
_STATE_KEYS = ("ema", "model", "state_dict", "model_state_dict")  # where others keep weights, the best ones first
_WRAPPERS = ("module.", "_orig_mod.")  # added by parallel and compiled modules
_LARGE_KEYS = ("weights", "ema", "train")


@dataclass(frozen=True)
class WeightsFile:
    """Weights as read from a file.

    Attributes:
        state_dict: Key to CPU tensor; floating point as float32.
        names: Class names in the order of the head's outputs, when the file has them.
        model_name: Which model they are of (``"yolo11n"``), when the file says so or the shapes show it.
        num_classes: Number of classes, likewise.
        layout: ``"official"``: keys ``model.0.conv.weight`` (see `ullage.zoo.weights.official_to_ours`); else ours.
        metadata: What else the file says that is plain data.
    """

    state_dict: dict[str, torch.Tensor]
    names: tuple[str, ...] | None
    model_name: str | None
    num_classes: int | None
    layout: Literal["ullage", "official"]
    metadata: dict[str, Any]


def read_weights(path: str | Path) -> WeightsFile:
    """Read weights of any supported form; the averaged ones (EMA) where a file has both.

    Args:
        path: A ``.pt`` of Ullage, an official ``.pt``, a bare state dict in a ``.pt``, or a ``.safetensors``.

    Returns:
        The weights and what the file says about them.

    Raises:
        WeightsError: The file is missing, damaged, hostile, of an unknown form, or written by a newer Ullage.
    """
    path = Path(path)
    return _reading(path, _read_safetensors if path.suffix.lower() == ".safetensors" else _read_torch)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a whole checkpoint of Ullage, as it was given to `write_checkpoint`; tensors on the CPU, dtypes unchanged.

    Raises:
        WeightsError: The file is missing, damaged, no checkpoint of Ullage, or written by a newer Ullage.
    """
    return _reading(Path(path), _read_own)


def write_checkpoint(path: str | Path, payload: Mapping[str, Any]) -> None:
    """Write a checkpoint of Ullage; a kill or a full disk at any instant leaves the old file or the new one, whole.

    Args:
        path: The ``.pt`` file; its folder must exist.
        payload: As in the file's docstring. Tensors (moved to the CPU) and plain data only.

    Raises:
        WeightsError: The payload holds something else, or its header is not one that `read_weights` takes.
        StorageError: The folder is missing or read-only, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    plain = _to_saved(payload, "payload")
    try:
        _check_header(plain, CHECKPOINT_KIND)
        if not _is_state(plain.get("weights"), torch.Tensor):
            raise WeightsError("its 'weights' are not a state dict of tensors")
    except WeightsError as error:
        raise WeightsError(f"cannot write {path}: {error}") from None
    with replacing(path) as temporary, temporary.open("wb") as file:
        sink = _Sink(file.write)
        torch.save(plain, cast("IO[bytes]", sink))
        if sink.error is not None:
            raise sink.error


def write_safetensors(path: str | Path, state_dict: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write weights alone, to share; atomic as `write_checkpoint`.

    Args:
        path: The ``.safetensors`` file; its folder must exist.
        state_dict: Key to tensor.
        metadata: The header: ``{"model": {"name", "num_classes"}, "names": […], "meta": {…}}``.

    Raises:
        WeightsError: The header is not complete, or not JSON-able.
        StorageError: The folder is missing or read-only, or the disk is full; the old file is untouched.
    """
    path = Path(path)
    header = {**metadata, "schema": SCHEMA, "kind": WEIGHTS_KIND}
    try:
        _check_header(header, WEIGHTS_KIND)
        texts = {key: json.dumps(value) for key, value in header.items()}
    except (WeightsError, TypeError, ValueError) as error:
        raise WeightsError(f"cannot write {path}: {error}") from None
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()
    }
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt", **texts})
        except safetensors.SafetensorError as error:
            raise StorageError(f"cannot write {path}: {error}; the old file, if any, is whole") from error


class _Sink:
    """What torch.save writes to: remembers the first failed write instead of raising it.

    torch.save calls it from C++ and goes on to close its archive after a failure; the first reason is the true one.
    """

    def __init__(self, write: Callable[[Any], int]) -> None:
        self._write = write
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing to do: the file is flushed when it is closed."""


_Result = TypeVar("_Result")


def _reading(path: Path, read: Callable[[Path], _Result]) -> _Result:
    """Run a reader, with the path in front of every complaint."""
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; name a file of weights, for example {path / 'weights' / 'best.pt'}")
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path} is not a regular file")
    try:
        return read(path)
    except FileNotFoundError:
        raise WeightsError(f"{path} does not exist (looked in {path.absolute().parent})") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from None
    except WeightsError as error:
        raise WeightsError(f"{path} cannot be used as weights: {error}") from None


def _read_torch(path: Path) -> WeightsFile:
    with TorchFile(path) as file:
        root = file.root
        if isinstance(root, dict) and isinstance(root.get("kind"), str) and root["kind"].startswith("ullage."):
            return _own_weights(file, root)
        references, module, rest = _find_state(root)
        state = {key: _as_float32(file.tensor(reference)) for key, reference in _unwrapped(references).items()}
    module_facts = {key: value for key, value in attributes(module).items() if key in ("yaml", "nc", "args", "task")}
    metadata = {**_metadata(rest), **_metadata(module_facts)}
    return _foreign(state, _names_of(attributes(module).get("names")), metadata)


def _own_weights(file: TorchFile, root: dict[Any, Any]) -> WeightsFile:
    header = to_plain({key: value for key, value in root.items() if key not in _LARGE_KEYS})
    _check_header(header, CHECKPOINT_KIND)
    references = root.get("weights") if root.get("ema") is None else root["ema"]
    if not isinstance(references, dict) or not _is_state(references, TensorRef):
        raise WeightsError("its weights are not a state dict of tensors; the file is damaged")
    state = {key: _as_float32(file.tensor(reference)) for key, reference in references.items()}
    return _own_file(state, header)


def _own_file(state: dict[str, torch.Tensor], header: dict[str, Any]) -> WeightsFile:
    return WeightsFile(
        state_dict=state,
        names=tuple(header["names"]),
        model_name=header["model"]["name"],
        num_classes=header["model"]["num_classes"],
        layout="official" if is_official(state) else "ullage",
        metadata={key: value for key, value in header.items() if key != "names"},
    )


def _foreign(state: dict[str, torch.Tensor], names: tuple[str, ...] | None, metadata: dict[str, Any]) -> WeightsFile:
    num_classes = infer_num_classes(state)
    if names is not None and num_classes is not None and len(names) != num_classes:
        raise WeightsError(f"it names {len(names)} classes, but its head has {num_classes}")
    return WeightsFile(
        state_dict=state,
        names=names,
        model_name=infer_model_name(state),
        num_classes=num_classes,
        layout="official" if is_official(state) else "ullage",
        metadata=metadata,
    )


def _read_own(path: Path) -> dict[str, Any]:
    with TorchFile(path) as file:
        if not isinstance(file.root, dict) or file.root.get("kind") != CHECKPOINT_KIND:
            raise WeightsError("it is no checkpoint of Ullage; only those hold what a resume needs")
        payload = to_plain(file.root, read=file.tensor)
    _check_header(payload, CHECKPOINT_KIND)
    return payload


def _read_safetensors(path: Path) -> WeightsFile:
    if path.stat().st_size == 0:
        raise WeightsError("the file is empty; download or save it again")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            texts: dict[str, str] = file.metadata() or {}
            state = {key: _as_float32(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"it is no safetensors file, or damaged ({str(error)[:200]!a})") from None
    if texts.get("kind") != json.dumps(WEIGHTS_KIND):
        return _foreign(_unwrapped(state), None, dict(texts))
    try:
        header = {key: json.loads(text) for key, text in texts.items() if key != "format"}
    except (json.JSONDecodeError, RecursionError):
        raise WeightsError("its metadata are not JSON; the file is damaged") from None
    _check_header(header, WEIGHTS_KIND)
    return _own_file(state, header)


def _check_header(header: Any, kind: str) -> None:
    """Check what every file of ours says about itself, at writing and at reading."""
    if header.get("kind") != kind:
        raise WeightsError(f"its kind is {_shown(header.get('kind'))}; expected {kind!r}")
    if header.get("schema") != SCHEMA:
        raise WeightsError(f"it has schema {_shown(header.get('schema'))}, this version reads {SCHEMA}; update Ullage")
    model, names = header.get("model"), header.get("names")
    if not isinstance(model, dict) or not isinstance(model.get("name"), str):
        raise WeightsError("its header lacks model = {name, num_classes}")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise WeightsError("its header lacks names, a list of class names")
    if model.get("num_classes") != len(names):
        raise WeightsError(f"its header says {_shown(model.get('num_classes'))} classes and names {len(names)}")


def _find_state(root: Any) -> tuple[dict[str, TensorRef], object, dict[Any, Any]]:
    """Find the weights in what others pickled: a module, or a dict that holds one, or a state dict.

    Returns:
        The tensors by key, the module's record (None for a state dict), and the dict around them.
    """
    if is_module(root):
        return module_tensors(root), root, {}
    if isinstance(root, dict):
        for key in _STATE_KEYS:
            if is_module(root.get(key)):
                return module_tensors(root[key]), root[key], root
            if _is_state(root.get(key), TensorRef):
                return root[key], None, root
        if _is_state(root, TensorRef):
            return root, None, {}
        shown = ", ".join(_shown(key) for key in list(root)[:6])
        raise WeightsError(f"it holds neither a network nor a state dict; its top level has {shown or 'nothing'}")
    raise WeightsError(f"it holds neither a network nor a state dict, but a {type(root).__name__}")


def _shown(value: object) -> str:
    """A value out of a file, short and safe to print."""
    plain = value is None or isinstance(value, str | int | float)
    return ascii(value[:60] if isinstance(value, str) else value) if plain else f"a {type(value).__name__}"


def _is_state(value: object, kind: type) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())
    )


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Drop the prefixes that wrappers put before every key."""
    for prefix in _WRAPPERS * 2:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _names_of(names: Any) -> tuple[str, ...] | None:
    """Class names as others keep them: a list, or a dict from 0, 1, 2, … to the name."""
    if isinstance(names, dict):
        if not all(type(index) is int for index in names) or sorted(names) != list(range(len(names))):
            raise WeightsError("its class names are not numbered 0, 1, 2, …")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list | tuple) or not names:
        return None
    if not all(isinstance(name, str) for name in names):
        raise WeightsError("its class names are not all texts")
    return tuple(names)


def _metadata(values: dict[Any, Any]) -> dict[str, Any]:
    """The plain data of a pickled dict, without weights; objects that only carry settings become dicts."""
    opened = {
        key: attributes(value) or value
        for key, value in values.items()
        if isinstance(key, str) and key not in (*_STATE_KEYS, "optimizer", "updates")
    }
    return to_plain(opened)


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _to_saved(value: Any, place: str) -> Any:
    """Copy a payload as exact plain types; subclasses (NumPy floats, enums) would be pickled as classes."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole and type(tensor) is torch.Tensor else torch.empty_like(tensor).copy_(tensor)
    if value is None:
        return None
    for kind in (bool, int, float, str, bytes):
        if isinstance(value, kind):
            return kind(value)  # pyright: ignore[reportArgumentType] (of this very kind)
    if isinstance(value, Mapping):
        return {_saved_key(key, place): _to_saved(part, f"{place}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_to_saved(part, f"{place}[{index}]") for index, part in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts
    raise WeightsError(
        "a checkpoint holds tensors and plain data only, "
        f"but {place} is a {type(value).__module__}.{type(value).__qualname__}"
    )


def _saved_key(key: Any, place: str) -> str | int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise WeightsError(f"a checkpoint's keys are texts or integers, but {place} has the key {key!r}")
    return str(key) if isinstance(key, str) else int(key)
