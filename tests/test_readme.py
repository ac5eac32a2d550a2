"""README against the tree: the files, tests and settings that it names are there."""

import ast
import re
from pathlib import Path

from flows.settings import Settings
from operators.messages import TOPICS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("flows", "operators", "models", "bench")


def test_the_file_map_has_every_module_once_and_no_other() -> None:
    modules = [
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).glob("**/*.py")
        if path.name != "__init__.py"
    ]
    named = re.findall(rf"^\| `((?:{'|'.join(FOLDERS)})/[\w/]+\.py)` \|", README, re.MULTILINE)

    assert sorted(named) == sorted(modules)


def test_every_test_that_holds_an_invariant_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README))
    found = {
        (path, node.name)
        for path in {path for path, _ in named}
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }

    assert len(named) >= 12
    assert named - found == set()


def test_the_topics_are_those_of_the_contract() -> None:
    rows = re.findall(r"^\| `(push\.[\w.-]+)`( \(compacted\))? \|", README, re.MULTILINE)

    assert {name: bool(mark) for name, mark in rows} == {
        name: spec.is_compacted for name, spec in TOPICS.items()
    }


def test_every_variable_in_the_table_of_settings_exists() -> None:
    named = re.findall(r"^\| `PUSHFLOW_(\w+)`", README, re.MULTILINE)
    known = [
        f"{group}__{name}".upper()
        for group, field in Settings.model_fields.items()
        for name in getattr(field.annotation, "model_fields", {})
    ]

    assert len(named) >= 8
    assert set(named) - set(known) - {name.upper() for name in Settings.model_fields} == set()
