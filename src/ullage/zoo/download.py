"""Official weight files, downloaded when the user named one and it is not on disk; never otherwise.

The files are published on GitHub by their authors, under their own licence (AGPL-3.0). A file's SHA-256 is printed and
remembered in the user's cache folder at the first download (trust on first use); a later download that differs is
refused. What arrives is data: it is read by `ullage.zoo.checkpoint_file`, which runs nothing of it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ullage.errors import StorageError, WeightsError, nearest
from ullage.zoo.atomic_file import replacing

_ULTRALYTICS = "https://github.com/ultralytics/assets/releases/download/v8.3.0/"
_YOLOV12 = "https://github.com/sunsmarterjie/yolov12/releases/download/turbo/"

# name -> (URL, SHA-256 when it is known beforehand; None: trusted at the first download and remembered)
OFFICIAL_FILES: dict[str, tuple[str, str | None]] = {
    "yolo11n.pt": (_ULTRALYTICS + "yolo11n.pt", None),
    "yolo11s.pt": (_ULTRALYTICS + "yolo11s.pt", None),
    "yolo11m.pt": (_ULTRALYTICS + "yolo11m.pt", None),
    "yolo11l.pt": (_ULTRALYTICS + "yolo11l.pt", None),
    "yolo11x.pt": (_ULTRALYTICS + "yolo11x.pt", None),
    "yolo12n.pt": (_ULTRALYTICS + "yolo12n.pt", None),
    "yolo12s.pt": (_ULTRALYTICS + "yolo12s.pt", None),
    "yolo12m.pt": (_ULTRALYTICS + "yolo12m.pt", None),
    "yolo12l.pt": (_ULTRALYTICS + "yolo12l.pt", None),
    "yolo12x.pt": (_ULTRALYTICS + "yolo12x.pt", None),
    "yolov12n.pt": (_YOLOV12 + "yolov12n.pt", None),
    "yolov12s.pt": (_YOLOV12 + "yolov12s.pt", None),
    "yolov12m.pt": (_YOLOV12 + "yolov12m.pt", None),
    "yolov12l.pt": (_YOLOV12 + "yolov12l.pt", None),
    "yolov12x.pt": (_YOLOV12 + "yolov12x.pt", None),
}
MAX_BYTES = 2 * 1024**3
_ATTEMPTS = 3
_PAUSE_S = 0.5
_PIECE_BYTES = 1024 * 1024
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_STARTS = (b"PK\x03\x04", b"\x80\x02")  # the two forms of torch.save; a login page or an error page has another
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


@dataclass(frozen=True)
class _Wish:
    """One download: what, from where, and its limits."""

    name: str
    url: str
    timeout_s: float
    max_bytes: int
    progress: Callable[[int, int | None], None] | None


def is_official_name(name: str) -> bool:
    """Whether a bare file name is one that `fetch_official` knows."""
    return name in OFFICIAL_FILES


def fetch_official(
    name: str,
    folder: str | Path,
    *,
    base_url: str | None = None,
    cache_folder: str | Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    say: Callable[[str], None] = print,
    timeout_s: float = 30.0,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Return a known official weight file, downloaded when it is not in the folder yet.

    Args:
        name: ``"yolo11n.pt"``, ``"yolov12x.pt"``, ``"yolo12s.pt"``, …: see `OFFICIAL_FILES`.
        folder: Where it is looked for and put; must exist.
        base_url: A mirror: the folder that holds the files. https, or http on this machine.
        cache_folder: Where checksums are remembered; None: ``ullage`` in the user's cache folder.
        progress: Called with (bytes so far, bytes in total or None) as the file arrives.
        say: Gets one line with the address and one with the checksum.
        timeout_s: For connecting and for each wait for more.
        max_bytes: A larger file is refused.

    Returns:
        The path in the folder.

    Raises:
        WeightsError: The name is not known, the network is away, or what came is not the file that came before.
        StorageError: The folder cannot be written.
    """
    if name not in OFFICIAL_FILES:
        raise WeightsError(
            f"{name!r} is no known official weight file.{nearest(name, OFFICIAL_FILES)} "
            f"Known are {', '.join(OFFICIAL_FILES)}"
        )
    path = Path(folder) / name
    if path.exists():
        return path
    if not path.parent.is_dir():
        raise StorageError(f"cannot put {name} into {path.parent}: there is no such folder; make it first")
    published_url, published_sum = OFFICIAL_FILES[name]
    url = published_url if base_url is None else base_url.rstrip("/") + "/" + name
    _check_address(url)
    say(f"{name} is not in {path.parent.absolute()}; downloading {url}")
    pins = Path(cache_folder) if cache_folder is not None else user_cache_folder()
    with replacing(path) as temporary:
        checksum = _download(_Wish(name, url, timeout_s, max_bytes, progress), temporary)
        note = _compare(name, checksum, published_sum, pins / "checksums.json")
    say(f"{name}: SHA-256 {checksum} ({note})")
    return path


def user_cache_folder() -> Path:
    """Where this user's caches live: the platform's folder, ``ullage`` in it."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ullage"


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise WeightsError(f"{url} is not an https address; weights are downloaded over https only")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to safe addresses only; GitHub redirects to its file servers."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(url: str) -> urllib.request.OpenerDirector:
    is_local = urllib.parse.urlsplit(url).hostname in _LOOPBACK
    return urllib.request.build_opener(_SafeRedirects(), urllib.request.ProxyHandler({} if is_local else None))


def _download(wish: _Wish, target: Path) -> str:
    """Fill the target, going on where a broken connection stopped; return its SHA-256."""
    opener, version, reason = _opener(wish.url), None, ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_S * attempt)
        have = target.stat().st_size if version else 0  # without a version tag, start again
        headers = {"User-Agent": "ullage", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": version or ""}
        try:
            with opener.open(urllib.request.Request(wish.url, headers=headers), timeout=wish.timeout_s) as answer:
                version = answer.headers.get("ETag")
                reason = _receive(wish, answer, target, have if answer.status == 206 else 0)
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code < 500:
                break
        except _NETWORK_ERRORS as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        if not reason:
            return _checked_sum(wish, target)
    raise WeightsError(
        f"{wish.name} is not in {target.parent.absolute()}, and downloading {wish.url} failed: {reason}. "
        "Check the network, or download it elsewhere and put it into that folder"
    )


def _receive(wish: _Wish, answer: Any, target: Path, start: int) -> str:
    """Write one answer into the file from ``start`` on; return why it is not whole, or an empty text."""
    length = answer.headers.get("Content-Length")
    total = start + int(length) if length and length.isdecimal() else None
    got = start
    if (total or 0) > wish.max_bytes:
        raise WeightsError(f"{wish.url} has {total:,} bytes; at most {wish.max_bytes:,} are downloaded")
    with target.open("r+b") as file:
        file.truncate(start)
        file.seek(start)
        while piece := answer.read(_PIECE_BYTES):
            got += len(piece)
            if got > wish.max_bytes:
                raise WeightsError(f"{wish.url} has more than {wish.max_bytes:,} bytes; no more are downloaded")
            file.write(piece)
            if wish.progress:
                wish.progress(got, total)
    return "" if total in (None, got) else f"the connection broke after {got:,} of {total:,} bytes"


def _checked_sum(wish: _Wish, target: Path) -> str:
    with target.open("rb") as file:
        if not file.read(4).startswith(_STARTS):
            raise WeightsError(
                f"what {wish.url} sent is no weight file (a login or error page?); "
                f"download {wish.name} elsewhere and put it into {target.parent.absolute()}"
            )
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(name: str, checksum: str, published: str | None, pins_path: Path) -> str:
    """Compare with the published checksum, or with the one of the first download, which is remembered here."""
    if published is not None:
        if checksum != published:
            raise WeightsError(f"{name} has SHA-256 {checksum}, published is {published}; it was changed on the way")
        return "as published"
    try:
        pins = json.loads(pins_path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        pins = {}
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"the checksums in {pins_path} cannot be read ({error}); repair or remove the file"
        ) from None
    if not isinstance(pins, dict):
        raise WeightsError(f"the checksums in {pins_path} are not a JSON object; repair or remove the file")
    if name in pins:
        if checksum != pins[name]:
            raise WeightsError(
                f"{name} has SHA-256 {checksum}, at the first download it was {pins[name]} (kept in {pins_path}). "
                "If its authors published a new file, remove that entry; otherwise do not use it"
            )
        return "as at the first download"
    try:
        pins_path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(pins_path) as temporary:
            temporary.write_text(json.dumps({**pins, name: checksum}, indent=2) + "\n", encoding="utf-8")
    except (OSError, StorageError) as error:
        return f"first download; could not be remembered: {error}"
    return f"first download; remembered in {pins_path}"
