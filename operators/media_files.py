"""Files that items name, read through fsspec: a directory, `s3://`, `https://`, ...

Reads   URLs of items.
Emits   each file's bytes, None where it was not read.
Owns    which URLs are read at all, and how much of them.

Items come from other teams, and what they name is read with our rights and from inside our
network. So a URL is read only if it begins with one of the roots that the settings allow.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import fsspec

from operators import metrics

log = logging.getLogger("pushflow")

_THREADS: Final = 8  # reading waits, it does not compute


class MediaFiles:
    """Reads what lies under some roots.

    Parameters
    ----------
    roots
        URLs of directories, "/srv/media" or "s3://shop/images"; nothing else is read. What a
        file system needs to log in it takes from its own environment.
    max_bytes
        A longer file counts as failed.

    Notes
    -----
    At most 8 x `max_bytes` in flight beside the batch's own files.

    Examples
    --------
    >>> files = MediaFiles(["memory://media"], max_bytes=4)
    >>> with fsspec.open("memory://media/a.png", "wb") as file:
    ...     _ = file.write(b"1234")
    >>> files.read(["memory://media/a.png", "", "memory://media/none.png", "/etc/hosts"])
    [b'1234', None, None, None]
    >>> files.n_failed, files.n_refused
    (1, 1)
    """

    def __init__(self, roots: Sequence[str], *, max_bytes: int) -> None:
        self._roots = tuple(root.rstrip("/") + "/" for root in roots)
        self._max_bytes = max_bytes
        self.n_failed = 0  # absent, unreachable or too long
        self.n_refused = 0  # not under a root
        self._failed = metrics.ITEM_MEDIA.labels("failed")
        self._refused = metrics.ITEM_MEDIA.labels("refused")

    def read(self, urls: Sequence[str]) -> list[bytes | None]:
        """Return the content of each file, None where the URL is empty, refused or failed."""
        allowed = [url if url and self._is_allowed(url) else "" for url in urls]
        if not any(allowed):
            return [None] * len(urls)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(self._read, allowed))
        n_failed = sum(bool(url) and data is None for url, data in zip(allowed, found, strict=True))
        self.n_failed += n_failed
        self._failed.inc(n_failed)
        return found

    def _is_allowed(self, url: str) -> bool:
        # "::" chains file systems, and ".." leaves the root.
        is_plain = "::" not in url and ".." not in url.split("/")
        if is_plain and url.startswith(self._roots):
            return True
        self.n_refused += 1
        self._refused.inc()
        return False

    def _read(self, url: str) -> bytes | None:
        if not url:
            return None
        try:
            with fsspec.open(url, "rb") as file:
                data: bytes = file.read(self._max_bytes + 1)
            if len(data) > self._max_bytes:
                raise ValueError(f"longer than {self._max_bytes} bytes")
        except Exception as error:  # whatever a file system raises: each has its own
            log.debug("cannot read %s: %s", url, error)
            return None
        return data
