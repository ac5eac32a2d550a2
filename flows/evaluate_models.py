"""`pushflow evaluate models`: next-item models side by side on recorded data.

Owns    the command's name, help and options; the work is in `flows.model_arms`.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, NoReturn

import orjson
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console(stderr=True)

_MODELS: Final = "popularity,item-CF,ALS,SASRec,teacher,student,distilled"


class Kind(StrEnum):
    """Data that can be read."""

    retail = "retail"
    movielens = "movielens"
    sequences = "sequences"


class SplitKind(StrEnum):
    """How histories are cut."""

    time = "time"
    leave_one_out = "leave-one-out"


Models = Annotated[str, typer.Option(help="Which, by commas.")]
Cutting = Annotated[
    SplitKind | None, typer.Option("--split", help="time, but leave-one-out for sequences.")
]
Seeds = Annotated[str, typer.Option(help="Of the networks, by commas: their mean is told.")]
Budget = Annotated[int, typer.Option(min=1, help="Settings tried of each baseline.")]
Tries = Annotated[
    int, typer.Option(min=1, help="Settings tried of SASRec and the teacher; of the distilled, 2.")
]
Epochs = Annotated[int, typer.Option(min=1, help="Of every network, at most.")]
Backbone = Annotated[str, typer.Option(help="gpt2, bert, or a folder of a pre-trained model.")]
Hidden = Annotated[int, typer.Option(min=8, help="Columns inside SASRec and the teacher.")]
Layers = Annotated[int, typer.Option(min=1, help="Of SASRec and the teacher.")]
Repeats = Annotated[bool, typer.Option(help="Rank what the user had before, too.")]
Baskets = Annotated[bool, typer.Option(help="Ask before a basket for all that it held.")]
Requests = Annotated[int, typer.Option(min=1, help="Of the test, at most, evenly strided.")]
Titles = Annotated[Path | None, typer.Option(help="Of sequences: lines of item, tab, title.")]
Folds = Annotated[int, typer.Option(min=1, help="Of the split by time; more roll through it.")]
Workers = Annotated[int, typer.Option(min=1, help="Networks trained at a time, a process each.")]
Plot = Annotated[Path | None, typer.Option(help="A PNG of NDCG@10 with intervals.")]
LabelFile = Annotated[
    Path | None, typer.Option("--llm-labels", help="For distilled: of `pushflow train llm-labels`.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the JSON object alone.")]


def cut_of(kind: Kind, split: SplitKind | None) -> Literal["time", "leave-one-out"]:
    """Return how data is cut: as said, else by time where the data tells it."""
    by_time = kind is not Kind.sequences if split is None else split is SplitKind.time
    return "time" if by_time else "leave-one-out"


def add_command(app: typer.Typer, fail: Callable[[str], NoReturn]) -> None:
    """Give `pushflow evaluate` the command; `fail` is that of `flows.cli`."""

    @app.command()
    def models(
        kind: Annotated[Kind, typer.Argument(help="What PATH is.")],
        path: Annotated[Path, typer.Argument(help="A file, or MovieLens' folder.")],
        models: Models = _MODELS,
        split: Cutting = None,
        seeds: Seeds = "1",
        budget: Budget = 12,
        tries: Tries = 1,
        epochs: Epochs = 16,
        backbone: Backbone = "gpt2",
        hidden: Hidden = 64,
        layers: Layers = 2,
        repeats: Repeats = False,
        baskets: Baskets = False,
        requests: Requests = 10_000,
        titles: Titles = None,
        folds: Folds = 1,
        workers: Workers = 1,
        llm_labels: LabelFile = None,
        plot: Plot = None,
        as_json: Json = False,
    ) -> None:
        """Compare models of the next item: at which rank they put what came next.

        pushflow evaluate models movielens ../shared/data/ml-latest-small --seeds 1,2,3

        pushflow evaluate models sequences Beauty.txt --titles titles.tsv

        Sequences are lines of `user item item ...`, oldest first.

        time           everybody's events are cut at one moment: the first 80% train, the next 10%
                       choose settings and when to stop, the newest 10% are asked about
        leave-one-out  each user's last item is asked about, the one before it chooses
        --folds N      N tests of a tenth that follow each other, each trained on what was before

        --baskets      every item of a basket, an invoice or what else was done in one second, is
                       asked for before the first of them, of users who did something before; all
                       networks are trained so, and stopped by such questions

        All models learn from the same events, and see all that the user did before the request.
        All items are ranked, never a sample. Ties count against the model: the rank is one more
        than the number of other items that score at least as high. What the user had before is
        left out, for every model, without --repeats.

        hr@K        share of requests whose answer is among the first K; recall@K is the same here
        ndcg@K      1 / log2(1 + rank) within the first K, else 0
        mrr@K       1 / rank within the first K, else 0; mrr of any rank
        precision   share of the first K that is right: hr@K / K; f1@K is between it and recall
        auc         share of the other items that score lower than the answer
        calibration mean difference between the probability that a model gives its first item and
                    how often it is right, over ten bins; a softmax over its scores, of baselines
                    the share of the sum
        diversity   mean 1 - cosine between the contents of the first K, by pairs
        coverage    share of all items that were among anybody's first K
        novelty     mean bits of surprise in a shown item: log2 of users per user who knew it

        popularity, item-CF and ALS: each the best of --budget settings between the cuts. SASRec
        (cross-entropy, ids alone) and the teacher: each the best of --tries, by the same training.
        student: what decide serves, by `pushflow train`; distilled: the same with the teachers'
        say in its loss, those of all seeds by turns, of several --tries beside weights from item to
        item if that is better between the cuts, and with --llm-labels a language model's, where it
        was let in. Intervals are 95%, by a bootstrap over users; with several seeds they
        are of the mean over seeds.
        """
        try:
            from flows import model_arms as arms
            from flows import model_report as report
            from flows import sequence_data as data
            from models.llm_labels import LabelFileError, load_labels
            from models.teacher import TeacherConfig
            from models.teacher_training import TeacherTraining
        except ImportError as error:
            fail(f"{error}. This needs more packages: pip install 'pushflow[train,evaluate]'")
        chosen = tuple(models.split(","))
        if unknown := sorted(set(chosen) - set(arms.MODELS)):
            fail(f"no model {', '.join(unknown)}; there are {', '.join(arms.MODELS)}")
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        how = cut_of(kind, split)
        try:
            teacher = TeacherConfig(
                backbone=backbone, hidden=hidden, layers=layers, feed_forward=4 * hidden
            )
            plan = arms.Plan(
                models=chosen,
                seeds=tuple(int(seed) for seed in seeds.split(",")),
                budget=budget,
                tries=tries,
                repeats=repeats,
                baskets=baskets,
                requests=requests,
                training=TeacherTraining(teacher=teacher),
                epochs=epochs,
                workers=workers,
            )
            with Progress(*columns, console=console, disable=as_json, transient=True) as progress:
                task = progress.add_task("reading", total=None)

                def tell(what: str) -> None:
                    progress.update(task, description=what)

                histories, item_ids, texts = data.read(
                    kind.value, path, titles, lambda n: tell(f"reading events: {n:,}")
                )
                if llm_labels is not None and folds > 1:
                    raise ValueError("labels were let in by one validation: use no --folds")
                if llm_labels is not None:
                    plan = replace(plan, labels=load_labels(llm_labels, item_ids))
                reports = []
                for split_of in data.cuts(histories, how, folds):
                    known = arms.Data(split_of, item_ids, texts)
                    found = arms.compare(known, plan, tell)
                    reports.append(report.summary(path.name, how, known, plan, found))
        except (ValueError, LabelFileError) as error:
            fail(str(error))
        if plot is not None:
            report.plot(reports, plot)
        summed = report.folded(reports) if folds > 1 else reports[0]
        if not as_json:
            for one in reports:
                Console().print(report.table(one))
            if folds > 1:
                Console().print(report.folds_table(summed))
        sys.stdout.write(orjson.dumps(summed).decode() + "\n")
