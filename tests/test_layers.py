"""The import rules: flows -> operators -> models, systems at the rim, no hidden clock or dice."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    p for layer in ("flows", "operators", "models") for p in (ROOT / layer).glob("**/*.py")
)

BELOW = {"flows": {"operators", "models"}, "operators": {"models"}, "models": set()}
SHARED = {"messages", "hops", "metrics"}  # what every file of operators/ may import
_CLIENT = {"kafka_client"}
JOINS = {  # a file of operators/ that joins others -> those; all other files stand alone
    "archive_columns": {"codec"},
    "archive_files": {"archive_names"},
    "archive_reader": {"archive_files", "archive_names"},
    "archive_writer": {"archive_columns", "archive_files", "archive_names"},
    "buffered_store": {"feature_store"},
    "decider": {"campaigns", "content", "eligibility", "emitted", "fatigue", "policy_table"},
    "kafka": {
        *("kafka_admin", "kafka_client", "kafka_sink", "kafka_source", "kafka_standing"),
        *("kafka_tables", "kafka_transactions"),
    },
    "kafka_admin": _CLIENT,
    "kafka_sink": _CLIENT | {"kafka_standing", "kafka_transactions"},
    "kafka_standing": _CLIENT,
    "kafka_transactions": _CLIENT | {"kafka_admin", "kafka_standing"},
    "kafka_source": _CLIENT | {"kafka_admin"},
    "kafka_tables": _CLIENT,
    "kafka_watch": _CLIENT | {"kafka_admin"},
    "attribution": {"attribution_state", "attribution_timers", "rewards"},
    "attribution_state": {"packed"},
    "attribution_timers": {"attribution_state", "packed", "rewards", "timers"},
    "fatigue": {"packed"},
    "interest": {"packed"},
    "catalogue": {"item_text"},
    "item_contents": {"codec", "item_text", "packed"},
    "item_stats": {"packed"},
    "learning": {"attribution", "duplicates", "item_stats", "packed"},
    "lineage": {"shards"},
    "recovery": {"lineage", "shards"},
    "checkpoints": {"lineage"},
    "incarnations": {"checkpoints", "lineage", "recovery", "shards"},
    "savepoints": {"incarnations", "lineage", "recovery"},
    "ranking": {"campaigns", "candidates", "catalogue", "model_table"},
    "live_database": {"checkpoints", "lineage", "shards"},
    "state": {"checkpoints", "lineage", "live_database", "shards"},
    "steps": {"codec", "shards", "state"},
    "triggers": {"sessions"},
    "written": {"user_state"},
    "context": {"counters", "user_state"},
    "timers": {"packed"},
    "user_state": {"counters", "packed", "sessions"},
    "users": {
        "context",
        "counters",
        "duplicates",
        "sessions",
        "timers",
        "triggers",
        "user_state",
        "written",
    },
}
HOMES = {  # third party -> where it may be imported
    "bytewax": ("flows/", "operators/steps.py", "operators/kafka.py"),
    "redis": ("operators/feature_store.py",),
    "confluent_kafka": ("operators/kafka", "operators/embedded.py"),
    "rocksdict": ("operators/state.py", "operators/live_database.py", "operators/checkpoints.py"),
    "fsspec": ("operators/savepoints.py", "operators/media_files.py", "operators/archive_files.py"),
    "pyarrow": ("operators/archive_", "flows/archive"),
    "torch": (
        *("models/student.py", "models/train.py", "models/optimization.py", "models/compress.py"),
        *(
            "models/student_start.py",
            "models/student_scores.py",
            "models/softmax.py",
            "models/fading_weights.py",
        ),
        "models/fusion_training.py",
        *("models/teacher.py", "models/teacher_training.py", "models/distill.py"),
        *("models/teacher_loss.py", "models/teacher_start.py", "models/teacher_checkpoint.py"),
        *("models/teacher_outcomes.py", "models/teacher_file.py", "models/parallel.py"),
        "models/value_training.py",
        *("models/transformer_encoder.py", "models/media_encoders.py"),
        *(
            "models/llm_teacher.py",
            "models/llm_guide.py",
            "models/linear_guide.py",
            "models/student_outcomes.py",
        ),
    ),
    "transformers": (
        *("models/transformer_encoder.py", "models/media_encoders.py", "models/teacher.py"),
        "models/llm_teacher.py",
    ),
    "PIL": ("models/media_encoders.py",),
    "soundfile": ("models/media_encoders.py",),
    "numba": ("models/compiled.py", "models/byte_scan_kernel.py", "models/incremental_kernel.py"),
    "llvmlite": ("models/compiled.py", "models/byte_scan_kernel.py"),
    "onnxruntime": ("models/",),
    "river": ("models/",),
    "implicit": ("models/baselines.py",),
    "threadpoolctl": ("models/baselines.py",),
}
ENVIRONMENT = {"os.environ", "os.getenv", "os.putenv"}
CLOCKS = {
    *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
    *(f"time.{name}" for name in ("time", "time_ns")),
    "datetime.date.today",
}
SEEDED = {"Random", "RandomState", "default_rng", "Generator", "SeedSequence", "PCG64", "Philox"}


def violations(path: str, source: str) -> list[str]:
    """Return what a file, by its path from the root, breaks of the rules."""
    tree = ast.parse(source)
    imported = {name: full for full, name in _imports(tree)}
    modules = {full for full, _ in _imports(tree)}
    names = {_full_name(node, imported) for node in ast.walk(tree)} | modules
    return sorted({*_bad_imports(path, modules), *_bad_names(path, names)})


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each import as its dotted name and the name that it gets in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                prefix = "." * node.level + (node.module or "")
                yield f"{prefix}.{alias.name}", alias.asname or alias.name


def _full_name(node: ast.AST, imported: dict[str, str]) -> str:
    """Return a name as it would read without aliases: `np.random.rand` -> `numpy.random.rand`."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := _full_name(node.value, imported)):
        return f"{owner}.{node.attr}"
    return ""


def _bad_imports(path: str, modules: set[str]) -> Iterator[str]:
    layer = path.partition("/")[0]
    allowed = SHARED | JOINS.get(Path(path).stem, set())
    for module in modules:
        top, _, rest = module.partition(".")
        if module.startswith("."):
            yield f"relative import {module}"
        if top in BELOW and top != layer and top not in BELOW[layer]:
            yield f"{layer} imports {module}"
        if top == layer == "operators" and rest.partition(".")[0] not in allowed:
            yield f"sibling import {module}"
        if top in HOMES and not path.startswith(HOMES[top]):
            yield f"{top} away from its home"


def _bad_names(path: str, names: set[str]) -> Iterator[str]:
    for name in names:
        owner, _, last = name.rpartition(".")
        if path != "flows/settings.py" and name in ENVIRONMENT:
            yield f"{name} outside flows/settings.py"
        if path.startswith("flows/"):
            continue
        if name in CLOCKS:
            yield f"clock {name}"
        if owner in ("random", "numpy.random") and last not in SEEDED:
            yield f"unseeded {name}"


def test_the_files_that_join_others_do_so_in_one_direction() -> None:
    assert len(tuple(TopologicalSorter(JOINS).static_order())) >= len(JOINS)


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_file_keeps_the_import_rules(file: Path) -> None:
    path = file.relative_to(ROOT).as_posix()
    assert violations(path, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        (
            "models/a.py",
            "from operators.messages import Event",
            "models imports operators.messages.Event",
        ),
        ("operators/a.py", "import flows.settings", "operators imports flows.settings"),
        ("operators/a.py", "from operators.b import B", "sibling import operators.b.B"),
        ("operators/a.py", "from .messages import Event", "relative import .messages.Event"),
        ("operators/a.py", "def f():\n    import redis", "redis away from its home"),
        ("models/serving.py", "import torch.nn as nn", "torch away from its home"),
        (
            "flows/a.py",
            "from os import environ as e\ne['X']",
            "os.environ outside flows/settings.py",
        ),
        ("operators/a.py", "import os\nos.getenv('X')", "os.getenv outside flows/settings.py"),
        (
            "operators/a.py",
            "from datetime import datetime as d\nd.now()",
            "clock datetime.datetime.now",
        ),
        ("operators/a.py", "import time as t\nt.time()", "clock time.time"),
        ("models/a.py", "import numpy as np\nnp.random.rand()", "unseeded numpy.random.rand"),
        ("models/a.py", "from random import random\nrandom()", "unseeded random.random"),
    ],
)
def test_a_file_that_breaks_a_rule_is_caught(path: str, source: str, found: str) -> None:
    assert violations(path, source) == [found]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flows/a.py", "import bytewax.operators as op\nimport time\ntime.time()"),
        ("operators/users.py", "from operators.sessions import Session"),
        ("operators/a.py", "from operators.messages import Event\nfrom models import features"),
        (
            "models/a.py",
            "import numpy as np\nnp.random.default_rng(0)\nimport time\ntime.monotonic",
        ),
    ],
)
def test_a_file_that_keeps_the_rules_passes(path: str, source: str) -> None:
    assert violations(path, source) == []
