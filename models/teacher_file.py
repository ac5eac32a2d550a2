"""The teacher's file: weights in safetensors, and in its metadata all that reads them.

Reads   a teacher, or a file of one.
Emits   the file in one step, or the teacher.
Owns    the file's layout, and its version: a hash of its bytes.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from models.features import spec_hash
from models.teacher import Teacher, TeacherConfig

_META: Final = "pushflow"


class TeacherFileError(Exception):
    """The file is absent, damaged, or was made by another version; the message says what to do."""


def save_teacher(
    path: Path, teacher: Teacher, item_ids: list[str], metrics: dict[str, float]
) -> str:
    """Write a teacher's file in one step; return its version, 16 hex digits.

    The file is of safetensors: weights, and in its metadata the sizes, ids and metrics.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    meta = {
        "config": asdict(teacher.config),
        "feature_spec": spec_hash(),
        "item_ids": item_ids,
        "metrics": metrics,
    }
    weights = {name: own.contiguous().cpu() for name, own in teacher.state_dict().items()}
    # One entry: safetensors writes several in any order, and the version is of the bytes.
    save_file(weights, unfinished, metadata={_META: json.dumps(meta)})
    with unfinished.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8))
    unfinished.replace(path)
    return digest.hexdigest()


def load_teacher(path: Path) -> tuple[Teacher, list[str]]:
    """Return a teacher and the ids of the items that it has vectors of.

    Raises
    ------
    TeacherFileError
        If there is no usable file.
    """
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads(file.metadata()[_META])
        if meta["feature_spec"] != spec_hash():
            raise ValueError(f"it is of feature specification {meta['feature_spec']}")
        item_ids = [str(item_id) for item_id in meta["item_ids"]]
        teacher = Teacher(TeacherConfig(**meta["config"]), len(item_ids))
        teacher.load_state_dict(load_file(path))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise TeacherFileError(
            f"cannot read the teacher's file {path}: {error}. "
            "Make one with `pushflow train teacher`."
        ) from error
    return teacher.eval(), item_ids
