"""The command line: `pushflow --help`.

Owns    names and help of commands and options, and exit codes; the work is in other files,
        which are loaded when their command runs, so that `run` starts without torch.
"""

import logging
import os
import signal
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler

from flows.archive_commands import make_app as make_archive_app
from flows.audit_commands import add_command as add_audit
from flows.compress_commands import add_command as add_train_compress
from flows.evaluate import make_app as make_evaluate_app
from flows.evaluate_models import add_command as add_evaluate_models
from flows.experiment_commands import make_app as make_experiment_app
from flows.fusion_commands import make_app as make_fusion_app
from flows.llm_commands import add_command as add_train_llm_labels
from flows.model_commands import make_app as make_models_app
from flows.ope_commands import make_app as make_ope_app
from flows.outcome_commands import add_command as add_train_outcomes
from flows.replay_commands import make_app as make_replay_app
from flows.settings import Settings
from flows.state_commands import make_app as make_state_app
from flows.supervisor import NO_RESTART, STOP_SECONDS, end_with_supervisor, supervise
from flows.teacher_commands import add_command as add_train_teacher
from flows.train_commands import make_app as make_train_app
from flows.value_commands import add_command as add_train_value

app = typer.Typer(
    name="pushflow",
    help="Decides for every user, in real time: push or not, what, and when.\n\n"
    "Start with `pushflow demo`. Settings come from PUSHFLOW_* variables over pushflow.toml; "
    "`pushflow config` shows them, `pushflow doctor` checks them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
topics_app = typer.Typer(help="The Kafka topics.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")

console = Console(stderr=True)


class Flow(StrEnum):
    """Flows that `run` knows."""

    decide = "decide"
    learn = "learn"
    catalog = "catalog"
    archive = "archive"


def settings() -> Settings:
    """Return the settings, or say which one is wrong and leave."""
    try:
        return Settings()
    except ValidationError as error:
        fail(f"settings: {error}", NO_RESTART)


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what is wrong, and leave."""
    console.print(message, style="red", markup=False, highlight=False)
    raise typer.Exit(code)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line, always the last of a command's output."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()


def _say_ready() -> None:
    sys.stdout.write("ready\n")  # in one piece, or a log line of another thread may come between
    sys.stdout.flush()


app.add_typer(make_replay_app(settings, fail), name="replay")
train_app = make_train_app(settings, fail)
app.add_typer(train_app, name="train")
app.add_typer(make_state_app(settings, fail), name="state")
app.add_typer(make_archive_app(settings, fail), name="archive")
train_app.add_typer(make_fusion_app(settings, fail), name="fusion")
evaluate_app = make_evaluate_app(fail)
add_evaluate_models(evaluate_app, fail)
app.add_typer(evaluate_app, name="evaluate")
add_train_teacher(train_app, fail)
add_train_llm_labels(train_app, fail)
add_train_outcomes(train_app, settings, fail)
add_train_compress(train_app, fail)
add_audit(app, settings, fail)
add_train_value(train_app, settings, fail)
app.add_typer(make_models_app(settings, fail), name="models")
app.add_typer(make_experiment_app(settings, fail), name="experiment")
app.add_typer(make_ope_app(settings, fail), name="ope")


@app.command()
def run(
    flow: Annotated[
        Flow,
        typer.Argument(
            help="decide: events to decisions; learn: feedback to the policy; catalog: items to "
            "vectors; archive: the stream to Parquet."
        ),
    ],
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop where the topics end now, for replays.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Run so many on this host, supervised: see below."),
    ] = None,
    stop_seconds: Annotated[
        float,
        typer.Option(min=1, help="With --processes: how long they have to end in order."),
    ] = STOP_SECONDS,
    process_id: Annotated[
        int, typer.Option(help="This process's place in --addresses, from 0.")
    ] = 0,
    addresses: Annotated[
        str, typer.Option(help="host:port of every process of a cluster of many hosts, by commas.")
    ] = "",
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Run a flow against Kafka until SIGTERM.

    Prints `ready` once it reads, and `stopping` when it begins to stop.

    Exit codes:
    0: it ended in order.
    2: somebody must mend something first: options, settings, state; or
    another cluster runs in its place.
    75: its topics changed. Start it again at once.
    78: a topic is not there.
    Any other: it failed. Start it again.

    One host: --processes N keeps a cluster of N processes running.
    When one ends all are ended and started again, as one cluster: at once
    after 75; never after 2, nor after 78 where it was never ready, and that
    is then the exit code; else after 1 s, up to 30 s where it keeps failing.
    SIGTERM stops all, and gives 0 if all ended in order within --stop-seconds.
    Whoever kills it after a grace period should give it 2 s more than that.
    To change N, stop and start with another: users move with their state.
    Process i serves metrics at PUSHFLOW_METRICS_PORT + i.

    Many hosts: start one process on each, supervised by what you have there.
    All need the same --addresses, each its own --process-id,
    the same PUSHFLOW_RUN_ID, a new one at each start of the cluster,
    and PUSHFLOW_STATE__DIRECTORY on a file system that they share.
    When one process ends, end all and start all again.
    """
    places = tuple(address for address in addresses.split(",") if address)
    if processes is not None:
        _supervise(flow, processes, places, until_end=until_end, stop_seconds=stop_seconds)
    from flows import run as running
    from flows.failures import why

    if supervised:
        end_with_supervisor()
    # What `run` puts back when it ends: a second SIGTERM must not take its exit code away.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        running.run(
            flow.value,
            settings(),
            cluster=running.Cluster(process_id, places),
            stop_at_end=until_end,
            on_ready=_say_ready,
        )
    except (SystemExit, typer.Exit):  # a wrong option, before there was a flow
        raise
    except BaseException as error:  # a panic of Bytewax's is not even an Exception
        if (reason := why(error)) is None:
            traceback.print_exc()
            _leave(1)
        console.print(str(reason[0]), style="red", markup=False, highlight=False)
        _leave(reason[1])
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End this process as it stands: what counts is written, or is replayed by the next start.

    Threads of RocksDB, librdkafka and Bytewax still run. Taking the interpreter down around them
    has ended in a segmentation fault, in the place of the exit code that a supervisor goes by.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _supervise(
    flow: Flow, n: int, places: tuple[str, ...], *, until_end: bool, stop_seconds: float
) -> NoReturn:
    current = settings()
    if places:
        fail("--processes starts a cluster, --addresses joins one: give one of them", NO_RESTART)
    if current.run_id:
        fail("PUSHFLOW_RUN_ID names one start, --processes makes many: unset it", NO_RESTART)
    arguments = ["--until-end"] if until_end else []
    code = supervise(
        *(flow.value, n),
        metrics_port=current.metrics_port,
        stop_seconds=stop_seconds,
        arguments=arguments,
    )
    raise typer.Exit(code)


@topics_app.command("create")
def topics_create() -> None:
    """Make the topics that are not there, and say where one differs from what it should be."""
    from flows.topics import specs
    from operators.kafka_admin import create_topics, topic_drift
    from operators.kafka_client import KafkaFailure

    current = settings()
    try:
        made = create_topics(current.kafka.client(), specs(current))
        drift = topic_drift(current.kafka.client(), specs(current))
    except KafkaFailure as error:
        fail(str(error))
    for name in made:
        console.print(f"made {name}")
    for line in drift:
        console.print(line, style="yellow", markup=False)
    print_json({"made": made, "drift": drift})
    if drift:
        raise typer.Exit(1)


@topics_app.command("list")
def topics_list() -> None:
    """Print every topic with its partitions, key and retention."""
    from flows.topics import specs

    for name, partitions, replication, config in specs(settings()):
        details = ", ".join(f"{key}={value}" for key, value in config.items())
        console.print(f"{name}: {partitions} partitions, replication {replication}, {details}")


@app.command()
def schema(
    topic: Annotated[str, typer.Argument(help="A topic's own name; all of them without.")] = "",
) -> None:
    """Print the JSON Schema of a topic's messages."""
    import msgspec

    from operators.messages import TOPICS

    if topic and topic not in TOPICS:
        fail(f"no topic {topic!r}; there are {', '.join(TOPICS)}")
    names = [topic] if topic else list(TOPICS)
    schemas = {name: msgspec.json.schema(TOPICS[name].value) for name in names}
    value = schemas[topic] if topic else schemas
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


@app.command()
def config() -> None:
    """Print all settings as they are in force, without secrets."""
    values = settings().model_dump(mode="json")
    sys.stdout.write(orjson.dumps(values, option=orjson.OPT_INDENT_2).decode() + "\n")


@app.command()
def doctor() -> None:
    """Check the set-up: what is wrong, and how to mend it. Exit code 1 if anything is."""
    from flows.doctor import doctor as examine

    raise typer.Exit(examine())


@app.command()
def explain(
    decision_id: Annotated[str, typer.Argument(help="32 hex digits, as in the decision.")],
    file: Annotated[
        Path | None, typer.Option(help="Read JSON lines here in place of the topic.")
    ] = None,
) -> None:
    """Show why a decision was made: sources, scores, the bandit's sum, eligibility."""
    from flows import explain as explaining

    found = (
        explaining.in_file(file, decision_id)
        if file is not None
        else explaining.in_topic(settings(), decision_id)
    )
    if found is None:
        where = str(file) if file is not None else "push.decisions.v1"
        fail(f"no decision {decision_id} in {where}")
    Console().print(explaining.explain(found))


@app.command()
def demo(
    users: Annotated[int, typer.Option(min=10, help="Simulated users.")] = 2_000,
    seconds: Annotated[float, typer.Option(min=5, help="Length of the run, by the clock.")] = 90.0,
    seed: Annotated[int, typer.Option(help="Of the population and the training.")] = 1,
    port: Annotated[int | None, typer.Option(help="Port of the broker; any without.")] = None,
    policy: Annotated[
        str, typer.Option(help="That decides, as PUSHFLOW_RANKING__POLICY.")
    ] = "squarecb",
    epochs: Annotated[int, typer.Option(min=1, help="Of each model's training.")] = 3,
    report: Annotated[
        Path | None, typer.Option(help="Write the report here as JSON, and its plot beside it.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="Write decisions here as they come, for `audit --log`.")
    ] = None,
) -> None:
    """Watch the whole loop: simulated users, decisions, and a policy that learns.

    First a teacher is trained on a simulated past, a student by itself and another by what the
    teacher says; the better one is exported, in int8 where that keeps its quality. A table shows
    all of them, and which one serves. Training is --epochs long: the same seed, the same model.
    """
    try:
        from flows.demo import run_demo
        from models.policies import KINDS
    except ImportError as error:
        fail(f"{error}. The demo needs more packages: pip install 'pushflow[demo]'")
    if policy not in KINDS:
        known = "\n".join(f"  {name}: {kind.meaning}" for name, kind in KINDS.items())
        fail(f"there is no policy {policy!r}; there are:\n{known}")
    code = run_demo(
        users=users,
        seconds=seconds,
        seed=seed,
        port=port,
        policy=policy,
        epochs=epochs,
        report=report,
        log=log,
    )
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the `pushflow` command."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        datefmt="[%X]",
        handlers=[RichHandler(console=console, show_path=False)],
    )
    app()


if __name__ == "__main__":
    main()
