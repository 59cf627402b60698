"""An image from an address that the user named; nothing else is ever fetched."""

from __future__ import annotations

import http.client
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ullage._version import __version__
from ullage.data.decode import read_image
from ullage.errors import DataError
from ullage.units import format_bytes

MAX_BYTES = 64 * 1024**2
_CHUNK = 256 * 1024


def download_image(url: str, *, timeout_s: float = 20.0, max_bytes: int = MAX_BYTES) -> np.ndarray[Any, Any]:
    """Fetch and decode one image.

    Args:
        url: http(s) address.
        timeout_s: For the whole download.
        max_bytes: A longer answer is refused.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        DataError: The server does not answer in time or answers with an error, or what comes is too long or no image.
    """
    content = _fetch(url, timeout_s, max_bytes)
    suffix = PurePosixPath(urllib.parse.urlsplit(url).path).suffix[:8]
    with tempfile.TemporaryDirectory(prefix="ullage-") as folder:
        file = Path(folder) / f"download{suffix}"
        file.write_bytes(content)
        try:
            return read_image(file)
        except DataError:
            raise DataError(
                f"what came from '{url}' ({format_bytes(len(content))}) is no image that can be decoded; "
                "a video must be downloaded first and named as a file"
            ) from None


def _fetch(url: str, timeout_s: float, max_bytes: int) -> bytes:
    deadline = time.monotonic() + timeout_s
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"ullage/{__version__}"})
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            content = bytearray()
            while chunk := answer.read1(_CHUNK):
                content += chunk
                if len(content) > max_bytes:
                    raise DataError(f"'{url}' is longer than {format_bytes(max_bytes)}: download it and name the file")
                if time.monotonic() > deadline:
                    raise DataError(f"'{url}' did not arrive within {timeout_s:g} s")
            return bytes(content)
    except urllib.error.HTTPError as error:
        raise DataError(f"'{url}' cannot be fetched: the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and TimeoutError are OSErrors
        reason = getattr(error, "reason", None) or error
        raise DataError(f"'{url}' cannot be fetched: {reason}") from None
