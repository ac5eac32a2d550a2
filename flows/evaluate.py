"""`pushflow evaluate`: how good candidates are on recorded data, beside what others would find.

Reads   a recording: retail, MovieLens, or our own JSON lines.
Emits   a table, a plot, and one JSON object, the last line.
Owns    names and help of the commands, the dates that each data set is cut at, and the report.
"""

import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import orjson
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from flows.candidate_trial import Data, Split, Train
    from flows.recorded import Recording

console = Console(stderr=True)

Dates = tuple[str, str, str]  # --validation, --test, --until; "": by share of the events

_NO_DATES: Final = ("", "", "")
_RETAIL_DATES: Final = ("2011-07-01", "2011-08-01", "2011-10-01")
# Where no date is given: settings are chosen on the fifth before the last fifth of all events.
_SHARES: Final = (0.6, 0.8)

Retail = Annotated[Path | None, typer.Option(help="online_retail.csv or .csv.gz")]
Movielens = Annotated[Path | None, typer.Option(help="Folder with ratings.csv, movies.csv.")]
Events = Annotated[Path | None, typer.Option(help="Your events, JSON lines, plain or gzip.")]
Items = Annotated[Path | None, typer.Option(help="Their items, JSON lines; goes with --events.")]
Validation = Annotated[str, typer.Option(help="Choose settings from this date on, 2011-07-01.")]
Test = Annotated[str, typer.Option(help="Test from this date on.")]
Until = Annotated[str, typer.Option(help="Leave out what is from then on.")]
Budget = Annotated[int, typer.Option(min=1, help="Settings tried of each method that has some.")]
HoldOut = Annotated[float, typer.Option(min=0, max=0.9, help="Share of items made cold; 0: none.")]
Seed = Annotated[int, typer.Option(help="Of hidden items, settings tried, intervals, ALS.")]
Tune = Annotated[bool, typer.Option("--tune", help="Try settings of the merge too.")]
Student = Annotated[bool, typer.Option(help="Train one, for the source tower; needs torch.")]
Plot = Annotated[Path | None, typer.Option(help="Write a picture here, .png.")]
Json = Annotated[bool, typer.Option("--json", help="Print the JSON object alone.")]


def make_app(fail: Callable[[str], NoReturn]) -> typer.Typer:
    """Return the commands; `fail` is that of `flows.cli`."""
    app = typer.Typer(help="How good it is, on recorded data.", no_args_is_help=True)

    @app.callback()
    def _() -> None:
        """Keep `candidates` a word of its own while it is the only command."""

    @app.command()
    def candidates(
        retail: Retail = None,
        movielens: Movielens = None,
        events: Events = None,
        items: Items = None,
        validation: Validation = "",
        test: Test = "",
        until: Until = "",
        budget: Budget = 24,
        hold_out: HoldOut = 0.1,
        seed: Seed = 0,
        tune: Tune = False,
        student: Student = True,
        plot: Plot = None,
        as_json: Json = False,
    ) -> None:
        """Measure candidates: what share of what users took next was proposed.

        Give one of --retail, --movielens, or --events with --items:

        pushflow evaluate candidates --retail ../shared/data/online-retail/online_retail.csv.gz
        pushflow evaluate candidates --events events.jsonl --items items.jsonl --test 2025-03-01

        Time is cut in three: what is before --validation is known from the start; settings of the
        baselines are chosen between it and --test; what is reported happened after --test, and
        nobody was told of it. Without dates the last fifth of the events is the test, the fifth
        before it the validation.

        A case is what a known user did next: one basket (`props.basket` of the events), or a
        stretch without a pause of half an hour, at most 20 events of it. The product is asked for
        100 candidates a millisecond before.

        recall@K    share of the case's new items among the first K; mean over cases
        all         the same of all items, those the user had before too
        coverage    share of the available items that were proposed to anybody
        novelty     mean bits of surprise in a candidate: log2 of users per user who knew it
        warm, cold  recall@100 of items with and without interactions before --test, measured
                    with a share of all items (--hold-out) hidden from what is learned

        "new" leaves out what the product remembers of the user (50 items, 200 purchases, the cart),
        and no method may propose that; under "all" each proposes what it will. Intervals are 95%,
        by a bootstrap over users. Of equal scores the one with the smaller hash of its id is
        first: any order, but always the same.

        Beside the product: random; popularity, item-CF (cosine) and ALS, each with the best of
        --budget settings; and each of the product's sources alone. The source tower needs a
        student: one is trained on what was known before each period, without --no-student.
        --tune tries as many settings of the merge, and says which were best, as the line to set
        PUSHFLOW_CANDIDATES__WEIGHTS, __DEPTHS and __RRF by.
        """
        name, recording, dates = _chosen(retail, movielens, events, items, fail)
        logging.getLogger("faiss").setLevel(logging.WARNING)  # `implicit` loads it if it is there
        try:
            from flows import candidate_report as report
            from flows import candidate_trial as trials
        except ImportError as error:
            fail(f"{error}. This needs more packages: pip install 'pushflow[evaluate]'")
        if student and find_spec("torch") is None:
            console.print("without torch there is no student: the source tower says nothing")
            student = False
        train: Train | None = None
        if student:
            from flows import candidate_student

            train = candidate_student.train
        plan = trials.Plan(budget=budget, hold_out=hold_out, seed=seed, tune=tune)
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        try:
            with Progress(*columns, console=console, disable=as_json, transient=True) as progress:
                task = progress.add_task("reading", total=None)
                data = read(recording)
                split = _split(data, (validation, test, until), dates)
                result = trials.run(
                    data, split, plan, lambda what: progress.update(task, description=what), train
                )
        except ValueError as error:
            fail(str(error))
        if plot is not None:
            report.plot(result, plot, name)
        if not as_json:
            for table in report.tables(result):
                Console().print(table)
            if result.tuned is not None:
                console.print(report.environment(result.tuned), soft_wrap=True, highlight=False)
        found = report.summary(name, split, plan, result)
        sys.stdout.write(orjson.dumps(found).decode() + "\n")

    return app


def _chosen(
    retail: Path | None,
    movielens: Path | None,
    events: Path | None,
    items: Path | None,
    fail: Callable[[str], NoReturn],
) -> tuple[str, "Recording", Dates]:
    """Return the name, the recording and the usual dates of what was given."""
    from flows import recorded

    given = [path for path in (retail, movielens, events) if path is not None]
    if len(given) != 1 or (events is None) != (items is None):
        fail("give one of --retail, --movielens, or --events with --items")
    for path in (*given, *([items] if items else [])):
        if not path.exists():
            fail(f"no file {path}")
    if retail is not None:
        return "online-retail", recorded.retail(retail), _RETAIL_DATES
    if movielens is not None:
        if not (movielens / "ratings.csv").is_file():
            fail(f"{movielens} has no ratings.csv: give the folder of a MovieLens data set")
        return movielens.name, recorded.movielens(movielens), _NO_DATES
    own = recorded.json_lines(str(events))
    of_items = recorded.json_lines(str(items), recorded.ITEMS).events()
    return str(events), recorded.Recording(list(of_items), [], own.events), _NO_DATES


def read(recording: "Recording", until: str | None = None) -> "Data":
    """Return what a recording holds before a date and the contract takes, in time order."""
    import msgspec

    from flows.candidate_trial import Data
    from flows.training import recorded_events, recorded_items
    from operators.messages import UserProfile

    users = [msgspec.json.decode(record.value, type=UserProfile) for record in recording.users]
    events = sorted(recorded_events(recording, until), key=lambda event: event.time_ms)
    return Data(list(recorded_items(recording)), users, events)


def _split(data: "Data", given: Dates, usual: Dates) -> "Split":
    """Return where time is cut: as given, as is usual for the data, else by shares of events."""
    from flows.candidate_trial import Split
    from flows.replay import parse_time

    times = [event.time_ms for event in data.events]
    if not times:
        raise ValueError("there are no events that keep the contract")
    cuts = [times[int(share * len(times))] for share in _SHARES] + [times[-1] + 1]
    dates = [own or common for own, common in zip(given, usual, strict=True)]
    at = [parse_time(date) if date else cut for date, cut in zip(dates, cuts, strict=True)]
    if not at[0] < at[1] < at[2]:
        raise ValueError("dates must be in order: --validation, then --test, then --until")
    return Split(*at)
