"""One zip of arrays and what they mean: the layout that all files of weights share.

Owns    how such a file is written, read, versioned and checked.

A file is written whole or not at all, and the same content gives the same bytes: no clock, no
host name. Its version is a hash of the content, so two names for one content cannot arise.
"""

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_META: Final = "meta.json"
# What zipfile, json and numpy raise on bytes that are not what they should be.
DAMAGE: Final = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


class Archive(NamedTuple):
    """What a file holds: `meta` is plain JSON, `members` are bytes by name."""

    version: str  # 16 hex digits
    meta: dict[str, Any]
    members: dict[str, bytes]


def write_archive(path: Path, members: dict[str, bytes], meta: dict[str, Any]) -> str:
    """Write the file in one step (rename); return its version, 16 hex digits."""
    version = content_version(members, meta)
    described = {_META: json.dumps({"version": version, **meta}, sort_keys=True).encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted((members | described).items()):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return version


def read_archive(path: Path) -> Archive:
    """Return what a file holds.

    Raises
    ------
    DAMAGE
        One of these, if the file is absent, is no such file, or differs from its version.
    """
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(members.pop(_META))
    version = str(meta.pop("version"))
    if version != content_version(members, meta):
        raise ValueError("content does not match its version")
    return Archive(version, meta, members)


def content_version(members: dict[str, bytes], meta: dict[str, Any]) -> str:
    """Return the hash of a content, 16 hex digits.

    >>> content_version({"a": b"1"}, {}) == content_version({"a": b"2"}, {})
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (json.dumps(meta, sort_keys=True).encode(), *(members[n] for n in sorted(members))):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def to_npy(array: NDArray[np.float32]) -> bytes:
    """Return an array in NumPy's own format."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    return buffer.getvalue()


def from_npy(data: bytes) -> NDArray[np.float32]:
    """Return an array of two dimensions; a ValueError says that it is none."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype != np.float32 or array.ndim != 2:
        raise ValueError(f"float32 of two dimensions expected, got {array.dtype} {array.shape}")
    loaded: NDArray[np.float32] = array
    return loaded
