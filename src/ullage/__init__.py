"""Ullage: real-time object detectors, trained and run in the memory that people have.

Importing the package imports no torch and touches neither disk nor network; each public name loads on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ullage._version import __version__

if TYPE_CHECKING:
    from ullage import memory as memory
    from ullage.api.plan import estimate, plan
    from ullage.api.predict import predict
    from ullage.api.val import val
    from ullage.yolo import YOLO

_WHERE = {
    "YOLO": "ullage.yolo",
    "val": "ullage.api.val",
    "predict": "ullage.api.predict",
    "plan": "ullage.api.plan",
    "estimate": "ullage.api.plan",
    "memory": "ullage.memory",
}

__all__ = ["YOLO", "__version__", "estimate", "memory", "plan", "predict", "val"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ullage' has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    value = module if _WHERE[name] == f"ullage.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
