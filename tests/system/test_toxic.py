"""A cluster that goes wrong: `decide` waits and goes on, and the dead do not write."""

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from flows.supervisor import NO_RESTART
from operators.kafka_admin import create_topics
from operators.kafka_sink import PartitionWriter
from operators.kafka_transactions import Lanes, transactional_id
from tests.conftest import absent
from tests.contracts.kafka import Broker, record
from tests.system import toxic
from tests.system.brokers import KEPT
from tests.system.cluster import Island, Nodes, has_java
from tests.system.harness import DECISIONS, Case, Stage, Verdict, judge, wait

pytestmark = [pytest.mark.system, pytest.mark.slow]

PACE = 1_000  # messages a second
CUT_S = 3.0  # `make chaos` cuts for 20 s


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Nodes]:
    """Three nodes of this test's own."""
    if not has_java():
        absent("java and mvn, for a cluster to break")
    nodes = Nodes(tmp_path / "kafka", 3)
    yield nodes
    nodes.close()


@pytest.fixture
def island() -> Iterator[Island]:
    """A network namespace; a privilege, not a program, so that its want is no failure in CI."""
    try:
        made = Island()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"no network namespace: {said.strip()} (needs root and iproute2)")
    yield made
    made.close()


@pytest.fixture
def reachable(island: Island, tmp_path: Path) -> Iterator[Nodes]:
    """A broker of this test's own that the namespace reaches."""
    if not has_java():
        absent("java and mvn, for a broker that a namespace reaches")
    nodes = Nodes(tmp_path / "kafka", host=island.host)
    yield nodes
    nodes.close()


def stage_on(bootstrap: str, work: Path, *, replication: int = 1) -> Iterator[Stage]:
    """Topics of this test's own."""
    built = Stage(bootstrap, f"{uuid.uuid4().hex[:12]}.", work, replication=replication)
    yield built
    built.close()


@pytest.fixture
def on_trio(trio: Nodes, tmp_path: Path) -> Iterator[Stage]:
    yield from stage_on(trio.bootstrap, tmp_path, replication=3)


@pytest.fixture
def on_reachable(reachable: Nodes, tmp_path: Path) -> Iterator[Stage]:
    yield from stage_on(reachable.bootstrap, tmp_path)


@pytest.fixture
def on_kafka(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Stage]:
    """Not the embedded broker: it fences nobody."""
    yield from stage_on(kafka_bootstrap, tmp_path)


def test_a_node_killed_a_leader_moved_and_most_nodes_lost_are_waited_out(
    case: Case, on_trio: Stage, trio: Nodes
) -> None:
    scene = toxic.three_nodes(on_trio, trio, case, pace=PACE, outage_s=CUT_S)

    assert scene.verdict == Verdict(len(case.expected), 0, 0, 0, 0)
    assert scene.codes == [0]
    assert scene.n_moved > 0


def test_a_process_cut_off_from_the_broker_writes_nothing_when_it_is_back(
    case: Case, on_reachable: Stage, island: Island
) -> None:
    how = toxic.unplugged(on_reachable, island)

    scene = toxic.zombie(on_reachable, case, how, pace=PACE, cut_s=CUT_S)

    assert scene.verdict == Verdict(len(case.expected), 0, 0, 0, 0)
    assert toxic.is_fenced(scene), scene.last_words
    assert scene.codes[1] == 0


def test_a_process_that_was_stopped_and_goes_on_writes_nothing(case: Case, on_kafka: Stage) -> None:
    how = toxic.stopped(on_kafka)

    scene = toxic.zombie(on_kafka, case, how, pace=PACE, cut_s=0)

    assert scene.verdict == Verdict(len(case.expected), 0, 0, 0, 0)
    assert toxic.is_fenced(scene), scene.last_words
    assert scene.codes[1] == 0


def test_a_process_fenced_while_the_state_is_its_own_is_to_start_again(
    case: Case, on_kafka: Stage
) -> None:
    on_kafka.fill_tables(case)
    decisions = on_kafka.collect(DECISIONS, toxic.placed)
    half = len(case.events) // 2

    [first] = on_kafka.start("decide")
    on_kafka.send(case.events[:half])
    toxic.await_everywhere(decisions, first)
    # As a process does that was stopped on its way here, and replaced meanwhile.
    Lanes(on_kafka.client, on_kafka.topic(DECISIONS), 0, n_lanes=2).fence()
    on_kafka.send(case.events[half:])
    wait("its end", lambda: first.code is not None)
    [second] = on_kafka.start("decide")
    wait("all decisions", lambda: len(decisions.rows) >= len(case.expected), [second])

    assert first.code not in (None, 0, NO_RESTART)
    assert second.stop() == 0
    found = [row for _, row in decisions.close()]
    assert judge(found, case.expected) == Verdict(len(case.expected), 0, 0, 0, 0)


def test_a_transaction_whose_end_the_broker_lost_is_ended_by_the_next_writer(trio: Nodes) -> None:
    client = {"bootstrap.servers": trio.bootstrap}
    create_topics(client, [("out", 1, 1, KEPT)])  # one copy: its node's end leaves no leader
    wait("its place", lambda: trio.partitions("out"))  # no node knows it at once
    [place] = trio.partitions("out")
    quiet = {"log_level": 2, "transactional.id": transactional_id("out", 0, 1)}
    dead = Producer(client | quiet)
    dead.init_transactions()
    dead.begin_transaction()
    dead.produce("out", b"d1", partition=0, headers=[("ce_id", b"d1")])
    dead.flush()
    trio.kill(place.leader)
    wait("no leader", lambda: trio.partitions("out")[0].leader == -1)
    dead.commit_transaction()  # Kafka 4.3 takes the partition for a deleted one
    trio.start()

    successor = PartitionWriter(client, "out", 0, resume=0, n_lanes=2)
    successor.write_batch([record("d1"), record("d2")])
    successor.close()

    assert [m.value for m in Broker(client, print, "").read("out")] == [b"d1", b"d2"]
