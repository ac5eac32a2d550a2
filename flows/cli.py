"""The command line: `pushflow --help`.

Owns    names and help of commands and options, and exit codes; the work is in other files,
        which are loaded when their command runs, so that `run` starts without torch.
"""

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.logging import RichHandler

from flows.settings import Settings

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
replay_app = typer.Typer(help="Send recorded data to Kafka.", no_args_is_help=True)
app.add_typer(replay_app, name="replay")
train_app = typer.Typer(help="Train the student.", no_args_is_help=True)
app.add_typer(train_app, name="train")

console = Console(stderr=True)


class Flow(StrEnum):
    """Flows that `run` knows."""

    decide = "decide"
    learn = "learn"


def settings() -> Settings:
    """Return the settings, or say which one is wrong and leave."""
    try:
        return Settings()
    except ValidationError as error:
        fail(f"settings: {error}")


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what is wrong, and leave."""
    console.print(message, style="red", markup=False, highlight=False)
    raise typer.Exit(code)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line, always the last of a command's output."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()


@app.command()
def run(
    flow: Annotated[Flow, typer.Argument(help="decide: events to decisions; learn: feedback.")],
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop where the topics end now, for replays.")
    ] = False,
    process_id: Annotated[
        int, typer.Option(help="This process's place in --addresses, from 0.")
    ] = 0,
    addresses: Annotated[
        str, typer.Option(help="host:port of every process of the cluster, by commas.")
    ] = "",
) -> None:
    """Run a flow against Kafka until SIGTERM. Prints `ready` once it reads."""
    from flows import run as running
    from operators.kafka_client import KafkaFailure
    from operators.state import CheckpointError

    places = tuple(address for address in addresses.split(",") if address)
    try:
        running.run(
            flow.value,
            settings(),
            cluster=running.Cluster(process_id, places),
            stop_at_end=until_end,
            on_ready=lambda: print("ready", flush=True),
        )
    except (KafkaFailure, CheckpointError) as error:
        fail(str(error))


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
