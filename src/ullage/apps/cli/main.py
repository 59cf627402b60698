"""``ullage VERB key=value ...``: parse, do, and turn every failure into one line and an exit status.

0 done · 1 the work failed · 2 the call was wrong · 130 interrupted
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from ullage._version import __version__
from ullage.apps.cli.arguments import Call, parse
from ullage.apps.cli.overview import overview
from ullage.apps.cli.watch import RunWatch
from ullage.errors import ConfigError, UllageError

FAILED, WRONG_CALL, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141
# What the operating system refuses for reasons that only the user can mend.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENOENT}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: What stands behind ``ullage``; None takes it from the process, and lets unexpected errors be reported.

    Returns:
        The exit status.
    """
    if words is None:
        sys.excepthook = report_unexpected
        warnings.showwarning = report_warning
        words = sys.argv[1:]
    watch = RunWatch()
    try:
        _run(words, watch)
        if sys.stdout is not None:  # started with its output closed
            sys.stdout.flush()  # a closed pipe shows here, not at the interpreter's end
    except ConfigError as error:
        return _fail(error, WRONG_CALL)
    except UllageError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        _say(f"interrupted{watch.advice()}")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader has gone (| head); keep the interpreter from flushing into the closed pipe once more
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        place = f"'{error.filename}'" if error.filename else "the output"
        return _fail(OSError(f"cannot read or write {place}: {error.strerror or error}"), FAILED)
    return 0


def _run(words: Sequence[str], watch: RunWatch) -> None:
    call = parse(words) if words else Call(wants="help")
    if call.wants == "version":
        print(f"ullage {__version__}")
    elif call.verb is None:
        print(overview())
    else:
        from ullage.apps.cli.verbs import run_verb  # brings in the settings

        run_verb(call, watch)


def report_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line about an error that nobody foresaw, and keep its traceback in a file."""
    text = "".join(traceback.format_exception(kind, error, trace))
    if _debugging():
        print(text, file=sys.stderr, end="")
    words = " ".join(str(error).split())
    what = f"{kind.__name__}: {words[:300]}" if words else kind.__name__
    try:
        with tempfile.NamedTemporaryFile("w", prefix="ullage-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"ullage {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n{text}")
        where = f"please report it with the traceback in {file.name}"
    except OSError:
        where = "please report it; ULLAGE_DEBUG=1 shows the traceback"
    _say(f"this should not happen: {what}; {where}")


def report_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without the source line that Python would quote."""
    _say(f"warning: {' '.join(str(message).split())}")


def _fail(error: Exception, status: int) -> int:
    if _debugging():
        traceback.print_exc()
    _say(" ".join(str(error).split()))
    return status


def _say(text: str) -> None:
    print(f"ullage: {text}", file=sys.stderr)


def _debugging() -> bool:
    return os.environ.get("ULLAGE_DEBUG", "") not in ("", "0")
