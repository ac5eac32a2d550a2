"""The student's file: one zip that holds all serving needs, and says what it was made for.

Owns    the layout of the file, its version and its checksum.

    meta.json          spec, version, item ids, sizes, training metrics
    model.onnx         the network
    text_projection.npy    float32, shape (TEXT_DIM, M)
    id_vectors.npy         float32, shape (number of item ids, M)

A file is written whole or not at all, and the same model gives the same bytes: no clock, no
host name. `version` is a hash of the content, so two names for one model cannot arise.
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

from models.features import TEXT_DIM, spec_hash

_ONNX: Final = "model.onnx"
_META: Final = "meta.json"
_TEXT: Final = "text_projection.npy"
_IDS: Final = "id_vectors.npy"
_FORMAT: Final = 1
# What zipfile, json and numpy raise on bytes that are not what they should be.
_DAMAGE: Final = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


class ModelFileError(Exception):
    """The file is absent, damaged, or no student; the message says how to mend it."""


class ModelMismatchError(Exception):
    """The model was trained for another feature specification than this code has."""


class ModelFile(NamedTuple):
    """A student's parts. I known items, M columns of an item vector."""

    onnx: bytes
    item_ids: list[str]  # length I
    text_projection: NDArray[np.float32]  # shape (TEXT_DIM, M)
    id_vectors: NDArray[np.float32]  # shape (I, M)
    config: dict[str, Any]
    metrics: dict[str, float]


def write_model(path: Path, model: ModelFile, *, spec: str | None = None) -> str:
    """Write the file in one step (rename); return the model's version, 16 hex digits."""
    members = {
        _ONNX: model.onnx,
        _TEXT: _to_npy(model.text_projection),
        _IDS: _to_npy(model.id_vectors),
    }
    meta = {
        "format": _FORMAT,
        "feature_spec": spec or spec_hash(),
        "config": model.config,
        "metrics": model.metrics,
        "item_ids": model.item_ids,
    }
    version = _version(members, meta)
    members[_META] = json.dumps({"version": version, **meta}, sort_keys=True).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name), members[name], zipfile.ZIP_DEFLATED)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return version


def read_model(path: Path) -> tuple[str, ModelFile]:
    """Return (version, model) of a file that fits this code.

    Raises
    ------
    ModelMismatchError
        If its feature specification is not `models.features.spec_hash()`.
    ModelFileError
        If it is absent, damaged or of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read(_META))
            _check_spec(path, str(meta["feature_spec"]))
            members = {name: archive.read(name) for name in (_ONNX, _TEXT, _IDS)}
        text, ids = _from_npy(members[_TEXT]), _from_npy(members[_IDS])
        version = str(meta.pop("version"))
        if version != _version(members, meta):
            raise ValueError("content does not match its version")
        item_ids = [str(item_id) for item_id in meta["item_ids"]]
        if text.shape[0] != TEXT_DIM or ids.shape != (len(item_ids), text.shape[1]):
            raise ValueError(f"arrays of shapes {text.shape} and {ids.shape} do not fit")
        config, metrics = dict(meta["config"]), dict(meta["metrics"])
    except _DAMAGE as error:
        raise ModelFileError(
            f"cannot read the model file {path}: {error}. "
            "Copy it again, or make one with `pushflow train`."
        ) from error
    return version, ModelFile(members[_ONNX], item_ids, text, ids, config, metrics)


def checksum(path: Path) -> str:
    """Return the file's blake2b-128 as hex, as `push.models.v1` carries it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _check_spec(path: Path, spec: str) -> None:
    if spec != spec_hash():
        raise ModelMismatchError(
            f"the model file {path} was trained for feature specification {spec}, this version "
            f"of pushflow has {spec_hash()}. Train again with `pushflow train`."
        )


def _version(members: dict[str, bytes], meta: dict[str, Any]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in (json.dumps(meta, sort_keys=True).encode(), *(members[n] for n in sorted(members))):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _to_npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    return buffer.getvalue()


def _from_npy(data: bytes) -> NDArray[np.float32]:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype != np.float32 or array.ndim != 2:
        raise ValueError(f"float32 of two dimensions expected, got {array.dtype} {array.shape}")
    loaded: NDArray[np.float32] = array
    return loaded
