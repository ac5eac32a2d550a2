"""What is in a customer's next invoice, of what the job and two baselines would show.

Reads   a recording's events, and the decisions that the job made of them (`bench.retail`).
Emits   lists at each decision, and how often the next invoice holds what they name.
Owns    the baselines: the neighbours alone, and the popular items, by the job's own code.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import track

from flows import decide, learn, recorded, training
from flows.settings import Settings
from operators import item_stats
from operators.attribution import Attribution
from operators.attribution_state import decode_state as decode_attribution
from operators.attribution_state import encode_state as encode_attribution
from operators.attribution_state import new_state as new_attribution
from operators.candidates import CandidateGenerator
from operators.catalogue import Catalogue
from operators.hops import ItemSignal, ShardBatch, Trigger
from operators.item_stats import InteractionTracker, ItemStatsShard
from operators.learning import LearningUsers
from operators.messages import Decision, Event
from operators.shards import DictShard
from operators.user_state import decode_state, encode_state, new_state
from operators.users import UserShard

TOP: Final = 10
_DAY_MS: Final = 86_400_000

Invoices = dict[str, list[tuple[int, frozenset[str]]]]  # user -> (time, items), by time


class Lists(NamedTuple):
    """What each method would show at one decision."""

    user_id: str
    time_ms: int
    pushed: str  # "" where nothing was sent
    job: list[str]
    neighbours: list[str]
    popular: list[str]


def invoices_of(events: list[Event]) -> Invoices:
    """Return each customer's invoices with the items bought."""
    found: dict[tuple[str, str], tuple[int, set[str]]] = {}
    for event in events:
        if event.type == "purchase" and event.item_id and event.props:
            key = (event.user_id, str(event.props["basket"]))
            found.setdefault(key, (event.time_ms, set()))[1].add(event.item_id)
    by_user: Invoices = defaultdict(list)
    for (user, _), (time_ms, items) in found.items():
        by_user[user].append((time_ms, frozenset(items)))
    for rows in by_user.values():
        rows.sort(key=lambda row: row[0])
    return by_user


def next_invoice(
    invoices: Invoices, user_id: str, after_ms: int
) -> tuple[int, frozenset[str]] | None:
    """Return the time and the items of a user's first invoice after a moment."""
    return next((row for row in invoices[user_id] if row[0] > after_ms), None)


class Baselines:
    """The neighbours alone and the popular items, as they stood at each trigger.

    The job's own code, in one process: statistics are refreshed after each day of event time.
    """

    def __init__(self, recording: recorded.Recording, settings: Settings) -> None:
        self._catalogue = Catalogue()
        for item in training.recorded_items(recording):
            self._catalogue.apply(item.item_id, item)
        self._catalogue.refresh()
        self._one = {
            name: CandidateGenerator(self._catalogue, weights={source: 1.0}, limit=TOP)
            for name, source in (("neighbours", "neighbour"), ("popular", "trend"))
        }
        users = DictShard("00", encode=encode_state, decode=decode_state, new=new_state)
        self._users = UserShard("00", users, decide.rules(settings), self._catalogue.category_of)
        learning = DictShard(
            "00", encode=encode_attribution, decode=decode_attribution, new=new_attribution
        )
        self._learning = LearningUsers(
            Attribution(learning, learn.reward_rules(settings)),
            InteractionTracker(gap_ms=settings.time.session_gap_seconds * 1_000),
        )
        states = DictShard(
            "00",
            encode=item_stats.encode_state,
            decode=item_stats.decode_state,
            new=item_stats.new_state,
        )
        self._stats = ItemStatsShard(states)
        self._refreshed_ms = 0

    def triggers(self, event: Event) -> Iterator[tuple[Trigger, dict[str, list[str]]]]:
        """Fold in one event; yield each trigger with what the baselines would show."""
        stamp = event.time_ms - 10_000
        batch = ShardBatch("00", 0, stamp, [(stamp, event)])
        if event.time_ms - self._refreshed_ms > _DAY_MS:
            self._refreshed_ms = event.time_ms
            for row in self._stats.dirty():
                self._catalogue.apply_stats(row)
            self._catalogue.refresh()
        [output] = self._users.on_batch([batch])
        for trigger in output.triggers:
            if isinstance(trigger, Trigger) and trigger.type == "session_ended":
                yield (
                    trigger,
                    {
                        name: [c.item_id for c in one.generate(trigger)]
                        for name, one in self._one.items()
                    },
                )
        for signal in self._learning.on_batch([batch]):
            if isinstance(signal, ItemSignal):
                self._stats.on_signal(signal)


def lists(
    decisions: list[Decision],
    events: list[Event],
    recording: recorded.Recording,
    cut_ms: int,
    console: Console,
) -> list[Lists]:
    """Return what each method shows at every decision after the cut."""
    decided = {(d.user_id, d.decided_at): d for d in decisions if len(d.learning.action_set) > 1}
    baselines = Baselines(recording, Settings())
    out = []
    for event in track(events, "baselines", console=console):
        for trigger, shown in baselines.triggers(event):
            decision = decided.get((trigger.user_id, trigger.time_ms))
            if trigger.time_ms < cut_ms or decision is None:
                continue
            # The action set is in the order of the student and the sources, fused.
            job = [action.item_id for action in decision.learning.action_set[:-1]][:TOP]
            pushed = decision.content.item_id if decision.content else ""
            out.append(Lists(trigger.user_id, trigger.time_ms, pushed, job, **shown))
    return out


def judge(found: list[Lists], invoices: Invoices) -> dict[str, float]:
    """Return hits in the customers' next invoices."""
    sums: Counter[str] = Counter()
    for row in found:
        following = next_invoice(invoices, row.user_id, row.time_ms)
        if following is None:
            continue
        bought = following[1]
        sums["cases"] += 1
        if row.pushed:
            sums["pushed"] += 1
            sums["pushed_hits"] += row.pushed in bought
        for name in ("job", "neighbours", "popular"):
            items = getattr(row, name)
            hits = len(bought.intersection(items))
            sums[f"{name}_any"] += hits > 0
            sums[f"{name}_hits"] += hits
            sums[f"{name}_first"] += bool(items) and items[0] in bought
    cases = max(sums["cases"], 1)
    rates = {"cases": sums["cases"], "pushed_cases": sums["pushed"]}
    rates["pushed_in_next"] = sums["pushed_hits"] / max(sums["pushed"], 1)
    for name in ("job", "neighbours", "popular"):
        rates[f"{name}_first_in_next"] = sums[f"{name}_first"] / cases
        rates[f"{name}_any_of_10"] = sums[f"{name}_any"] / cases
        rates[f"{name}_precision_10"] = sums[f"{name}_hits"] / cases / TOP
    return {key: round(value, 4) for key, value in rates.items()}
