"""The teacher's checkpoint: all that the next epoch depends on, written after each.

Reads   a run of training.
Emits   one file in one step, or the run as it was.
Owns    what a run is: data, settings and seed. A checkpoint of another run is refused.

Weights and moments are written whole, however they are sharded, so that a run may go on with
another number of processes; dropout then draws other numbers.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.dataset import Histories
from models.fading_weights import copied, put
from models.parallel import placed, whole

if TYPE_CHECKING:
    from models.teacher_training import TeacherTraining, _Run


class CheckpointError(Exception):
    """The checkpoint is of another run; the message says what to do."""


class Checkpoints:
    """Writes and reads the checkpoint of a run.

    Parameters
    ----------
    path
        Of the file.
    run
        Its state is read and set.
    """

    def __init__(self, path: Path, run: "_Run") -> None:
        self._path, self._run = path, run

    def save(self) -> None:
        """Write all that the next epoch depends on, in one step (rename); all processes call."""
        run, path = self._run, self._path
        held = {
            "fingerprint": run.fingerprint,
            "counts": (run.done, run.epoch, run.ndcg, run.best, run.best_epoch),
            "weights": _whole(copied(run.teacher)),
            "average": _whole(run.average.weights),
            "best_weights": _whole(run.best_weights),
            "optimizer": _whole(run.optimizer.state_dict()),
            "schedule": run.schedule.state_dict(),
            "torch_rng": run.group.gathered(torch.get_rng_state()),
            "numpy_rng": json.dumps(run.rng.bit_generator.state),
        }
        if torch.cuda.is_available():
            held["cuda_rng"] = run.group.gathered(torch.cuda.get_rng_state())
        if not run.group.is_first:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.new")
        torch.save(held, unfinished)
        unfinished.replace(path)

    def load(self) -> None:
        """Go on from the checkpoint where there is one.

        Raises
        ------
        CheckpointError
            If it is of another run.
        """
        run, path = self._run, self._path
        if not path.exists():
            return
        held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if held["fingerprint"] != run.fingerprint:
            raise CheckpointError(
                f"{path} was made with other data, settings or another seed. Delete it to start "
                "anew, or give the ones it was made with."
            )
        run.done, run.epoch, run.ndcg, run.best, run.best_epoch = held["counts"]
        own = dict(run.teacher.named_parameters())

        def lying(weights: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: placed(value, own[name].detach()) for name, value in weights.items()}

        put(run.teacher, lying(held["weights"]))
        run.average.weights, run.best_weights = lying(held["average"]), lying(held["best_weights"])
        run.optimizer.load_state_dict(_as_it_lies(held["optimizer"], run.optimizer))
        run.schedule.load_state_dict(held["schedule"])
        place = run.group.rank % len(held["torch_rng"])
        torch.set_rng_state(held["torch_rng"][place])
        run.rng.bit_generator.state = json.loads(held["numpy_rng"])
        if "cuda_rng" in held and torch.cuda.is_available():
            torch.cuda.set_rng_state(held["cuda_rng"][place])


def fingerprint(
    histories: Histories,
    texts: NDArray[np.float32],
    cuts: tuple[int, int],
    config: "TeacherTraining",
    seed: int,
) -> str:
    """Return a hash of all that decides what training makes, but for the machine."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([asdict(config), cuts, seed]).encode())
    for column in (histories.offsets, histories.rows, histories.types, histories.time_s, texts):
        digest.update(np.ascontiguousarray(column).tobytes())
    if histories.contexts is not None:
        digest.update(histories.contexts.tobytes())
    return digest.hexdigest()


def _whole(value: Any) -> Any:
    """Return nested dicts and lists with whole tensors in place of sharded ones."""
    if isinstance(value, Tensor):
        return whole(value)
    if isinstance(value, dict):
        return {name: _whole(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_whole(own) for own in value]
    return value


def _as_it_lies(held: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's state with its moments sharded as the parameters are."""
    own = [one for group in optimizer.param_groups for one in group["params"]]
    state = {
        number: {
            name: placed(value, own[number].detach()) if value.shape == own[number].shape else value
            for name, value in moments.items()
        }
        for number, moments in held["state"].items()
    }
    return {**held, "state": state}
