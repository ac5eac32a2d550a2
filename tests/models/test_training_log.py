"""Where a training's numbers go, against the packages' own calls as they document them."""

import sys
from types import ModuleType

import pytest

from models.train import Progress
from models.training_log import opened


def test_a_package_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match="mlflow"), opened("mlflow:file:runs", {}):
        pass


def test_each_step_is_written_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []
    closed: list[bool] = []

    class SummaryWriter:
        def __init__(self, where: str) -> None:
            assert where == "runs/a"

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written.append((tag, value, step))

        def close(self) -> None:
            closed.append(True)

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with opened("tensorboard:runs/a", {}) as log:
        log(Progress(7, 10, 1, 0.5, 0.25))
    assert written == [("loss", 0.5, 7), ("validation_ndcg@10", 0.25, 7)]
    assert closed == [True]
