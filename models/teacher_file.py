"""The teacher's file: weights in safetensors, and in its metadata all that reads them.

Reads   a teacher, with its heads of outcomes or without, or a file of one.
Emits   the file in one step, or the teacher.
Owns    the file's layout, and its version: a hash of its bytes.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from models.features import spec_hash
from models.teacher import Teacher, TeacherConfig
from models.teacher_outcomes import Outcomes, OutcomeTraining

_META: Final = "pushflow"
_UNUSABLE: Final = (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError)


class TeacherFileError(Exception):
    """The file is absent, damaged, or was made by another version; the message says what to do."""


def save_teacher(
    path: Path, teacher: Teacher, item_ids: list[str], metrics: dict[str, float]
) -> str:
    """Write a teacher's file in one step; return its version, 16 hex digits.

    The file is of safetensors: weights, and in its metadata the sizes, ids and metrics.
    """
    return _save(path, teacher, _meta(teacher, item_ids, metrics))


def save_outcomes(
    path: Path, model: Outcomes, item_ids: list[str], metrics: dict[str, float]
) -> str:
    """Write a teacher with its heads of outcomes, as `save_teacher` writes one without."""
    meta = _meta(model.teacher, item_ids, metrics)
    return _save(path, model, {**meta, "outcomes": asdict(model.config)})


def load_teacher(path: Path) -> tuple[Teacher, list[str]]:
    """Return a teacher and the ids of the items that it has vectors of.

    Raises
    ------
    TeacherFileError
        If there is no usable file.
    """
    try:
        meta = _read_meta(path)
        item_ids, teacher = _empty(meta)
        teacher.load_state_dict(load_file(path))
    except _UNUSABLE as error:
        raise TeacherFileError(
            f"cannot read the teacher's file {path}: {error}. "
            "Make one with `pushflow train teacher`."
        ) from error
    return teacher.eval(), item_ids


def load_outcomes(path: Path) -> tuple[Outcomes, list[str]]:
    """Return a teacher with its heads of outcomes, and the ids of its items.

    Raises
    ------
    TeacherFileError
        If there is no usable file.
    """
    try:
        meta = _read_meta(path)
        item_ids, teacher = _empty(meta)
        model = Outcomes(teacher, OutcomeTraining(**meta["outcomes"]))
        model.load_state_dict(load_file(path))
    except _UNUSABLE as error:
        raise TeacherFileError(
            f"cannot read the file of outcomes {path}: {error}. "
            "Make one with `pushflow train outcomes`."
        ) from error
    return model.eval(), item_ids


def _meta(teacher: Teacher, item_ids: list[str], metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "config": asdict(teacher.config),
        "feature_spec": spec_hash(),
        "item_ids": item_ids,
        "metrics": metrics,
    }


def _save(path: Path, model: nn.Module, meta: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    weights = {name: own.contiguous().cpu() for name, own in model.state_dict().items()}
    # One entry: safetensors writes several in any order, and the version is of the bytes.
    save_file(weights, unfinished, metadata={_META: json.dumps(meta)})
    with unfinished.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8))
    unfinished.replace(path)
    return digest.hexdigest()


def _read_meta(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        meta: dict[str, Any] = json.loads(file.metadata()[_META])
    if meta["feature_spec"] != spec_hash():
        raise ValueError(f"it is of feature specification {meta['feature_spec']}")
    return meta


def _empty(meta: dict[str, Any]) -> tuple[list[str], Teacher]:
    """Return the item ids, and a teacher of the right size."""
    item_ids = [str(item_id) for item_id in meta["item_ids"]]
    return item_ids, Teacher(TeacherConfig(**meta["config"]), len(item_ids))
