"""What ``ullage --help`` prints."""

from __future__ import annotations

from ullage._version import __version__
from ullage.apps.cli.arguments import VERBS


def overview() -> str:
    """Return the help of ``ullage`` itself."""
    lines = [
        f"ullage {__version__}: real-time object detectors, trained and run in the memory that people have",
        "",
        "  ullage VERB key=value ...      also: --key value, --key=value; a bare key means True; cfg=FILE reads a YAML",
        "  ullage VERB --help             lists every key",
        "",
        *(f"  {verb:<9}{meaning}" for verb, meaning in VERBS.items()),
        "",
        "  Exit status: 0 done, 1 the work failed, 2 the call was wrong, 130 interrupted.",
        "  ULLAGE_DEBUG=1 in the environment shows tracebacks.",
    ]
    return "\n".join(lines)
