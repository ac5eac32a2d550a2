"""What `archive` costs a message, and what training reads of its files, on one thread.

    python -m bench.archive

Times   CPU time of `operators.archive_writer` for decisions of 21 arms and for events: decoding,
        columns, Parquet, the merge of each hour; then of `flows.archived` reading them.
Weighs  the files beside the messages that are in them.
Leaves out Kafka, and the time that a disk or an object store takes.
"""

import json
import time
from collections.abc import Callable

import numpy as np

from flows import archived
from flows.settings import Settings
from models.arms import DECIMALS, N_ARM, N_POLICY_CONTEXT, policy_spec_hash
from operators.archive_files import Place
from operators.archive_writer import ArchiveWriter, Limits, standing
from operators.codec import encode
from operators.hops import RawMessage
from operators.messages import Action, Content, Decision, Delivery, Event, Learning, TriggerRef

T0_MS = 1_700_000_000_000
N_DECISIONS, N_EVENTS, N_USERS = 10_000, 100_000, 2_000
HOURS = 4
LIMITS = Limits(file_bytes=16 << 20, file_seconds=60.0, merge_bytes=64 << 20)


def decisions() -> list[RawMessage]:
    """Return pushes with numbers as `decide` writes them: some are 0, all have few decimals."""
    rng = np.random.default_rng(1)
    found = []
    for n in range(N_DECISIONS):
        time_ms = T0_MS + n * HOURS * 3_600_000 // N_DECISIONS
        columns = np.where(rng.random((20, N_ARM)) < 0.5, 0, rng.random((20, N_ARM)))
        arms = [
            Action(f"i{item:07d}", "neighbour", round(float(score), 4), 0.05, row)
            for item, score, row in zip(
                rng.integers(0, 50_000, 20),
                rng.random(20),
                columns.round(DECIMALS).tolist(),
                strict=True,
            )
        ]
        decision = Decision(
            decision_id=rng.bytes(16).hex(),
            trigger=TriggerRef("intent", f"e{n}"),
            user_id=f"u{n % N_USERS}",
            decided_at=time_ms,
            outcome="send",
            reason_codes=["ok"],
            delivery=Delivery(
                channel="any",
                send_after=time_ms,
                expires_at=time_ms + 14_400_000,
                priority="normal",
                collapse_key=f"c{n}",
            ),
            content=Content(
                item_id=arms[0].item_id,
                template_id="t1",
                locale="en",
                title="Still looking?",
                body=f"Item {arms[0].item_id} is here.",
                deep_link="app://item/1",
                image_url="https://img.example.com/items/1.jpg",
                data={},
            ),
            learning=Learning(
                policy_id="squarecb",
                policy_version="4-100",
                model_version="0123456789abcdef",
                feature_spec=policy_spec_hash(),
                campaign_id="c1",
                arm="policy",
                context=rng.random(N_POLICY_CONTEXT).round(DECIMALS).tolist(),
                action_set=[*arms, Action("none", "", 0.0, 0.05, [])],
                chosen=0,
                propensity=0.05,
                is_exploration=False,
                reward_deadline=time_ms + 600_000,
            ),
            explanation=[],
        )
        key = decision.user_id.encode()
        found.append(RawMessage(archived.DECISIONS, 0, n, key, encode(decision), time_ms))
    return found


def events() -> list[RawMessage]:
    """Return views of items, by users in turn."""
    found = []
    for n in range(N_EVENTS):
        time_ms = T0_MS + n * HOURS * 3_600_000 // N_EVENTS
        event = Event(
            event_id=f"e{n}",
            user_id=f"u{n % N_USERS}",
            type="view",
            time_ms=time_ms,
            item_id=f"i{n * 7_919 % 50_000:07d}",
            value=float(n % 60),
        )
        key = event.user_id.encode()
        found.append(RawMessage(archived.EVENTS, 0, n, key, encode(event), time_ms))
    return found


def timed(run: Callable[[], object], n: int) -> float:
    """Return CPU microseconds a message."""
    began = time.process_time()
    run()
    return (time.process_time() - began) / n * 1e6


def write(place: Place, messages: list[RawMessage]) -> None:
    """Archive messages poll by poll, and merge what is over."""
    topic = messages[0].topic
    for _ in range(2):  # the second start merges what the last hour left
        files = place.files(topic, 0)
        at = standing(place, files)
        writer = ArchiveWriter(
            *(place, topic, 0, files, at),
            topic_id=lambda: None,
            limits=LIMITS,
            monotonic=time.monotonic,
            wall_ms=lambda: 0,
        )
        for start in range(at.next_offset or 0, len(messages), 1_000):
            writer.add(messages[start : start + 1_000])
        writer.cut()


def main() -> None:
    """Print a table, and last one line of JSON."""
    place = Place("memory://bench-archive")
    report: dict[str, float] = {}
    reads: dict[str, Callable[[], object]] = {
        "decisions": lambda: archived.push_log(Settings(), place),
        "events": lambda: sum(1 for _ in archived.events(place)),
    }
    for name, messages in (("decisions", decisions()), ("events", events())):
        n_bytes = sum(len(message.value or b"") for message in messages)
        write_us = timed(lambda m=messages: write(place, m), len(messages))  # type: ignore[misc]
        n_kept = sum(place.files(messages[0].topic).values())
        report[f"{name}_write_us"] = round(write_us, 1)
        report[f"{name}_message_bytes"] = round(n_bytes / len(messages), 1)
        report[f"{name}_file_bytes"] = round(n_kept / len(messages), 1)
        report[f"{name}_read_us"] = round(timed(reads[name], len(messages)), 1)
    for key, value in report.items():
        print(f"{key:28} {value:12,.1f}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
