"""One of several processes that train the same teacher: `python -m tests.models.parallel_worker`.

Prints the losses of each way as JSON, from the first process.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.distributed as dist

from models.features import TEXT_DIM
from models.parallel import settled
from models.splits import by_time
from models.teacher import TeacherConfig
from models.teacher_training import TeacherTraining, train_teacher
from tests.models.chain import ITEMS, chains

# No dropout: each process draws its own. 14 windows: the last batch has an odd number of them.
STILL = TeacherConfig(
    width=16, factors=8, hidden=16, layers=2, feed_forward=32, request=16, dropout=0.0
)
PLAIN = TeacherTraining(teacher=STILL, epochs=2, batch_size=5, repeats=False)
WAYS = {
    "data": replace(PLAIN, accumulate=2),
    "sharded": replace(PLAIN, sharded=True),
}


def losses(config: TeacherTraining, checkpoint: Path | None = None) -> tuple[list[float], float]:
    """Return the loss of each step, and what the teacher reached."""
    split = by_time(chains(n_users=14, n_events=12), validation=0.1, test=0.1)
    texts = np.random.default_rng(0).normal(size=(len(ITEMS), TEXT_DIM)).astype(np.float32)
    seen: list[float] = []
    found = train_teacher(
        split.histories,
        texts,
        split.cuts,
        config=config,
        seed=3,
        checkpoint=checkpoint,
        on_progress=lambda at: seen.append(at.loss),
    )
    return seen, float(sum(own.double().abs().sum() for own in found.teacher.state_dict().values()))


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    told = {}
    for name, way in WAYS.items():
        half = folder / f"{name}.pt"
        losses(replace(way, epochs=2), half)
        told[name] = (*losses(way), losses(way, half)[1])
    if rank == 0:
        sys.stdout.write(json.dumps(told))
    settled()
    dist.destroy_process_group()
