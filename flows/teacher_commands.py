"""`pushflow train teacher`: name, help and options of the command.

Owns    what a person sees while it runs; the work is in `models.teacher_training`.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.evaluate_models import Backbone, Cutting, Kind, Layers, Titles, cut_of
from flows.train_commands import Baskets

console = Console(stderr=True)


class Loss(StrEnum):
    """What the next item is learned by."""

    softmax = "softmax"
    gbce = "gbce"


Out = Annotated[Path, typer.Option(help="The file to write.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Written after each epoch; a run that was stopped goes on from it."),
]
Hidden = Annotated[int, typer.Option(min=8, help="Columns inside the backbone.")]
Heads = Annotated[int, typer.Option(min=1, help="Of each layer.")]
Losses = Annotated[Loss, typer.Option("--loss", help="What the next item is learned by.")]
Sharded = Annotated[bool, typer.Option(help="Of several processes: FSDP, in place of DDP.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Parts in which a process takes a batch.")]
LogTo = Annotated[str, typer.Option("--log", help="tensorboard:FOLDER or mlflow:URI.")]
Repeats = Annotated[bool, typer.Option(help="Items may be had again: --no-repeats of films.")]
Epochs = Annotated[int, typer.Option(min=1, help="At most; training stops when it has enough.")]
Seed = Annotated[int, typer.Option(help="Of weights and the order of batches.")]


def add_command(app: typer.Typer, fail: Callable[[str], NoReturn]) -> None:
    """Give `pushflow train` the command; `fail` is that of `flows.cli`."""

    @app.command()
    def teacher(
        kind: Annotated[Kind, typer.Argument(help="What PATH is.")],
        path: Annotated[Path, typer.Argument(help="A file, or MovieLens' folder.")],
        out: Out = Path("teacher.safetensors"),
        checkpoint: Checkpoint = None,
        backbone: Backbone = "gpt2",
        hidden: Hidden = 64,
        layers: Layers = 2,
        heads: Heads = 2,
        loss: Losses = Loss.softmax,
        epochs: Epochs = 16,
        split: Cutting = None,
        titles: Titles = None,
        repeats: Repeats = True,
        baskets: Baskets = False,
        sharded: Sharded = False,
        accumulate: Accumulate = 1,
        log: LogTo = "",
        seed: Seed = 1,
    ) -> None:
        """Train the teacher: a transformer of any size over item vectors.

        pushflow train teacher movielens ../shared/data/ml-latest-small --checkpoint teacher.pt

        pushflow train teacher sequences Beauty.txt --hidden 256 --layers 4 --heads 4

        Sequences are lines of `user item item ...`, oldest first. It trains on what is before
        the validation and stops by it; `pushflow evaluate models` says what it is worth beside
        simpler models, on the test that neither has seen. It runs on a GPU where there is one,
        in bfloat16 if that can.

        torchrun --nproc-per-node 2 --no-python pushflow train teacher movielens ...

        trains on several GPUs, or processes of one CPU: each takes a part of each batch, and with
        --sharded a part of the weights too.

        A folder of a pre-trained model is read from the disk alone, by transformers; its sizes
        are its own, and --hidden, --layers and --heads are not read.
        """
        try:
            from flows import sequence_data as data
            from models.parallel import joined
            from models.teacher import TeacherConfig
            from models.teacher_file import save_teacher
            from models.teacher_training import CheckpointError, TeacherTraining, train_teacher
            from models.text import encode_texts
            from models.train import Progress as At
            from models.training_log import opened
        except ImportError as error:
            fail(f"{error}. Training needs more packages: pip install 'pushflow[train]'")
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        try:
            sizes = TeacherConfig(
                backbone=backbone, hidden=hidden, layers=layers, heads=heads,
                feed_forward=4 * hidden,
            )  # fmt: skip
            config = replace(
                TeacherTraining(teacher=sizes, epochs=epochs, repeats=repeats, baskets=baskets),
                loss=loss.value,
                sharded=sharded,
                accumulate=accumulate,
            )
            with (
                joined() as group,
                Progress(
                    *columns, TimeRemainingColumn(), console=console, disable=not group.is_first
                ) as progress,
                opened(log if group.is_first else "", asdict(config)) as write,
            ):
                task = progress.add_task("reading", total=None)

                def show(at: At) -> None:
                    text = f"epoch {at.epoch}, loss {at.loss:.3f}, validation {at.ndcg:.4f}"
                    progress.update(task, description=text, completed=at.done, total=at.total)
                    write(at)

                histories, item_ids, texts = data.read(
                    kind.value,
                    path,
                    titles,
                    lambda n: progress.update(task, description=f"reading events: {n:,}"),
                )
                known = data.cut(histories, cut_of(kind, split))
                taught = train_teacher(
                    known.histories,
                    encode_texts(texts),
                    known.cuts,
                    config=config,
                    seed=seed,
                    checkpoint=checkpoint,
                    on_progress=show,
                )
        except (ValueError, CheckpointError, ImportError) as error:
            fail(str(error))
        if not group.is_first:
            return
        n_weights = sum(weights.numel() for weights in taught.teacher.parameters())
        version = save_teacher(out, taught.teacher, item_ids, taught.metrics)
        console.print(
            f"{len(histories.rows):,} events, {len(item_ids):,} items, {n_weights:,} parameters "
            f"-> {out} (version {version})"
        )
        found = {"path": str(out), "version": version, "parameters": n_weights, **taught.metrics}
        sys.stdout.write(orjson.dumps(found).decode() + "\n")
