"""`pushflow train compress`: name, help and options of the command.

Owns    what a person sees while it runs; the work is in `flows.compress`.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import orjson
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows.evaluate_models import Baskets, Cutting, Kind, Repeats, Titles, cut_of

if TYPE_CHECKING:
    from flows.compress import Compressed

console = Console(stderr=True)

Out = Annotated[Path, typer.Option(help="The model file to write.")]
TeacherFile = Annotated[
    Path | None, typer.Option("--teacher", help="Of `pushflow train teacher`: distil from it.")
]
Reach = Annotated[
    str, typer.Option(help="Positions that each layer sees, by commas; empty: all, no such step.")
]
Heads = Annotated[int, typer.Option(min=1, help="Left of each layer.")]
Units = Annotated[int, typer.Option(min=1, help="Hidden units left of each layer.")]
Epochs = Annotated[int, typer.Option(min=1, help="Of the student, at most.")]
Recovery = Annotated[int, typer.Option(min=1, help="Epochs after a cut, at most.")]
Asked = Annotated[int, typer.Option(min=1, help="Of validation and test, at most each.")]
Linear = Annotated[
    float,
    typer.Option(min=0, help="Beside the teacher, logits for a weight from item to item: 8, say."),
]
Seed = Annotated[int, typer.Option(help="Of weights and the order of batches.")]


def add_command(app: typer.Typer, fail: Callable[[str], NoReturn]) -> None:
    """Give `pushflow train` the command; `fail` is that of `flows.cli`."""

    @app.command()
    def compress(
        kind: Annotated[Kind, typer.Argument(help="What PATH is.")],
        path: Annotated[Path, typer.Argument(help="A file, or MovieLens' folder.")],
        out: Out = Path("student.pfm"),
        teacher: TeacherFile = None,
        linear: Linear = 0.0,
        reach: Reach = "43,7",
        heads: Heads = 1,
        feed_forward: Units = 64,
        epochs: Epochs = 16,
        recovery: Recovery = 4,
        repeats: Repeats = False,
        baskets: Baskets = False,
        requests: Asked = 5_000,
        split: Cutting = None,
        titles: Titles = None,
        seed: Seed = 1,
    ) -> None:
        """Train a student, make it smaller step by step, and keep the steps that pay.

        pushflow train compress movielens ../shared/data/ml-latest-small --teacher t.safetensors

        student       as `pushflow train` makes it, distilled where there is a teacher
        narrowed      layers see --reach positions, so that the first answers at few
        pruned        --heads and --feed-forward of each layer are left, by Taylor importance
        int8 dynamic  ranges from each call: such a model is asked one user at a time
        int8 static   ranges from the training: rows do not depend on each other

        With --linear 8 the student also hears which items go together, as users other than the
        example's own show it. It gained on online-retail with --baskets, and not on MovieLens:
        compare the student's validation with and without.

        What is cut is trained again by what the student knows. A step is kept if 32 users cost
        at most 95% of the time, and it keeps 98% of the student's NDCG@10 on the validation;
        int8 99% of its float model's. The test decides nothing. A step that is left out is no
        start for the next one. The file is that of the last step kept.
        """
        try:
            from flows import compress as steps
            from flows import sequence_data as data
            from models.checkpoint import write_model
            from models.distill import Distillation
            from models.teacher_file import TeacherFileError, load_teacher
        except ImportError as error:
            fail(f"{error}. Training needs more packages: pip install 'pushflow[train]'")
        if linear and teacher is None:
            fail("--linear is told beside a teacher: name its file with --teacher")
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        try:
            plan = steps.Plan(
                reach=tuple(int(n) for n in reach.split(",")) if reach else (),
                heads=heads,
                feed_forward=feed_forward,
                requests=requests,
                repeats=repeats,
                baskets=baskets,
                distillation=Distillation(linear=linear),
                seed=seed,
            )
            plan = replace(
                plan,
                training=replace(plan.training, epochs=epochs),
                recovery=replace(plan.recovery, epochs=recovery),
            )
            with Progress(*columns, console=console, transient=True) as progress:
                task = progress.add_task("reading", total=None)

                def tell(what: str) -> None:
                    progress.update(task, description=what)

                histories, item_ids, texts = data.read(
                    kind.value, path, titles, lambda n: tell(f"reading events: {n:,}")
                )
                known = steps.Data(data.cut(histories, cut_of(kind, split)), item_ids, texts)
                taught = None
                if teacher is not None:
                    taught, taught_ids = load_teacher(teacher)
                    if taught_ids != item_ids:
                        fail(f"{teacher} was trained on other items than {path} has")
                found = steps.compress(known, plan, teacher=taught, tell=tell)
        except (ValueError, TeacherFileError) as error:
            fail(str(error))
        out.parent.mkdir(parents=True, exist_ok=True)
        version = write_model(out, found.model)
        _show(found)
        console.print(f"{found.chosen} -> {out} (version {version})", highlight=False)
        told = {
            "path": str(out),
            "version": version,
            "chosen": found.chosen,
            "steps": [step._asdict() for step in found.steps],
        }
        sys.stdout.write(orjson.dumps(told).decode() + "\n")


def _show(found: "Compressed") -> None:
    out = Console()
    table = Table("step", title="from teacher to what serves")
    for name in ("net KB", "file KB", "ms of 32", "NDCG@10", "validation", "parity"):
        table.add_column(name, justify="right")
    for step in found.steps:
        table.add_row(
            step.name,
            f"{step.network_bytes / 1e3:,.0f}",
            f"{step.file_bytes / 1e3:,.0f}",
            f"{step.ms:.2f}",
            f"{step.test:.4f}",
            f"{step.validation:.4f}",
            f"{step.parity:.1e}" if step.parity else "",
        )
    out.print(table)
    for step in found.steps:
        if step.verdict:
            out.print(f"{step.name}: {step.verdict}", highlight=False, soft_wrap=True)
