"""From the words of a command line to one call. No other room is imported here: ``ullage --help`` stays quick."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ullage._version import __version__
from ullage.errors import ConfigError, nearest

VERBS = {
    "train": "train a detector, or go on with an interrupted run",
    "runs": "list runs; follow, stop or resume a detached one",
    "val": "judge a detector on a data set",
    "predict": "find objects in images, videos, and what cameras and streams show",
    "export": "write a detector for another runtime, and prove that it computes the same",
    "bench": "measure a detector in several runtimes on this machine",
    "plan": "predict what a training needs, and make it fit a budget",
    "data": "check a data set, look at it, or write it in another format",
    "demo": "train, judge and use a small detector on data that ships with the package",
}
ACTIONS = {
    "check": "count everything, decode every image, list every problem",
    "view": "write a sheet of images with their boxes",
    "convert": "write a data set in another format, cleaned",
}
RUN_ACTIONS = {
    "list": "show every run: state, epochs, best fitness, time, process (also without the word)",
    "follow": "show the log of a detached run as it grows, until the run ends",
    "stop": "ask a run to write its checkpoint and end, and wait for it",
    "resume": "go on with an interrupted run, detached, from its last checkpoint",
}
ACTIONS_OF = {"data": ACTIONS, "runs": RUN_ACTIONS}
_SWITCHES = ("force",)  # behind an action of runs, a bare word is a run's name, but for these
LATER = ("doctor", "studio")
TASKS = ("detect", "segment", "pose", "classify", "obb")
_PAIR = re.compile(r"-{0,2}([A-Za-z][\w-]*)=(.*)", re.DOTALL)
_OPTION = re.compile(r"--([A-Za-z][\w-]*)")
_NUMBER = re.compile(r"-[\d.]")


@dataclass
class Call:
    """One call as the user typed it.

    Attributes:
        verb: None when only help or the version is wanted.
        action: Second word of ``data`` and of ``runs``.
        texts: Settings with a value.
        bare: Settings without one; they mean True.
        cfg: File of settings that these override.
        wants: What to print instead of working.
    """

    verb: str | None = None
    action: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    bare: list[str] = field(default_factory=list)
    cfg: str | None = None
    wants: str | None = None

    def name(self) -> str:
        """Return the verb with its action."""
        return " ".join(part for part in (self.verb, self.action) if part)


def parse(words: Sequence[str]) -> Call:
    """Read the words behind ``ullage``.

    ``key=value``, ``--key=value`` and ``--key value`` mean the same; a bare key means True; ``task=detect mode=VERB``
    and ``detect VERB`` are understood.

    Raises:
        ConfigError: No verb, an unknown one, another task than detection, or a setting given twice.
    """
    call, rest = Call(), list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help", "-V", "--version"):
            call.wants = "version" if word in ("-V", "--version") else call.wants or "help"
        elif pair := _PAIR.fullmatch(word):
            _give(call, pair[1], pair[2])
        elif option := _OPTION.fullmatch(word):
            if rest and _is_value(rest[0]):
                _give(call, option[1], rest.pop(0))
            else:
                _give(call, option[1], None)
        elif word.startswith("-"):
            raise ConfigError(f"'{word}' is not understood; write key=value or --key value")
        else:
            _take_word(call, word)
    if call.verb is None and call.wants is None:
        raise ConfigError(f"what shall be done? ullage VERB key=value ..., VERB being one of {', '.join(VERBS)}")
    return call


def _is_value(word: str) -> bool:
    """Say whether the word behind ``--key`` is its value: not the next setting, and not an option."""
    return not _PAIR.fullmatch(word) and (not word.startswith("-") or _NUMBER.match(word) is not None)


def _take_word(call: Call, word: str) -> None:
    """Take a word without ``=``: a verb, an action, or a setting that means True."""
    if call.verb is None:
        if word in ("help", "version"):
            call.wants = word
        elif word in TASKS:
            _set_task(word)
        else:
            _set_verb(call, word)
    elif call.verb in ACTIONS_OF and call.action is None:
        known = [f"{call.verb} {action}" for action in ACTIONS_OF[call.verb]]
        if word not in ACTIONS_OF[call.verb]:
            raise ConfigError(
                f"'{call.verb} {word}' is unknown; there are {', '.join(known)}.{nearest(word, ACTIONS_OF[call.verb])}"
            )
        call.action = word
    elif call.verb == "runs" and call.action != "list" and "name" not in call.texts and word not in _SWITCHES:
        _give(call, "name", word)
    else:
        _give(call, word, None)


def _give(call: Call, key: str, value: str | None) -> None:
    key = key.replace("-", "_") if "." not in key and "/" not in key else key
    if key == "mode" and value is not None:
        _set_verb(call, value)
    elif key == "task" and value is not None:
        _set_task(value)
    elif key in call.texts or key in call.bare or (key == "cfg" and call.cfg is not None):
        raise ConfigError(f"'{key}' is given twice; leave one out")
    elif key == "cfg":
        if not value:
            raise ConfigError("cfg needs a file: cfg=FILE with 'key: value' lines")
        call.cfg = value
    elif value is None:
        call.bare.append(key)
    else:
        call.texts[key] = value


def _set_verb(call: Call, word: str) -> None:
    if call.verb is not None:
        raise ConfigError(f"one call does one thing; both '{call.verb}' and '{word}' are asked for")
    if word in LATER:
        raise ConfigError(f"'{word}' is not in this version ({__version__}); it has: {', '.join(VERBS)}")
    if word not in VERBS:
        raise ConfigError(
            f"'{word}' is not a verb of ullage; there are: {', '.join(VERBS)}.{nearest(word, (*VERBS, *LATER))}"
        )
    call.verb = word


def _set_task(word: str) -> None:
    if word != "detect":
        raise ConfigError(f"task={word} is not supported; Ullage detects boxes (task=detect)")
