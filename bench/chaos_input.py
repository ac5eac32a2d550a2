"""The input of chaos: simulated shoppers, made while it is sent, the same for a seed.

Emits   profiles, then events in order of arrival; at the end one event in each partition.
Owns    the triggers' settings, by which about one event in twenty fires.

All events so far are kept, about 500 bytes each, for the undisturbed run is sent the same. The
last events lie two hours on: what was due in between is then decided whatever the last batches
were.
"""

import functools
from pathlib import Path
from typing import Final

from flows.simulate import SLOT_MS, Population
from operators.codec import encode
from operators.hops import RawMessage
from operators.messages import Event
from tests.flows import world as w
from tests.system.harness import EVENTS, USERS, Case, as_messages, one_a_partition

# Of all kinds some, and 6% of events in all; by the defaults every session fires, which is 20%.
TRIGGERS: Final = {
    "PUSHFLOW_TRIGGERS__INTENT_VIEWS": "8",
    "PUSHFLOW_TRIGGERS__SESSION_ENDED_MIN_EVENTS": "15",
    "PUSHFLOW_TRIGGERS__IDLE_DAYS": "1",
}
_HOUR_MS: Final = 3_600_000
_N_ITEMS: Final = 80


class Input:
    """Events of a population, slot by slot of event time.

    Parameters
    ----------
    directory
        For the student; inputs of one directory share theirs.
    n_users
        Each has about 12 events a day of event time.
    seed
        Of the population.

    Attributes
    ----------
    case
        The tables and the profiles, for `Stage.fill_tables`.
    events
        All messages so far.
    """

    def __init__(self, directory: Path, *, n_users: int, seed: int) -> None:
        world = _world(directory)
        population = Population(n_users, n_items=_N_ITEMS, seed=seed, start_ms=w.START_MS)
        profiles = as_messages(USERS, [(w.START_MS, row) for row in population.profiles()])
        self.case = Case(world, population, profiles, [], {})
        self._partition = {(row.key or b"").decode(): row.partition for row in profiles}
        self.events: list[RawMessage] = []
        self._now_ms = w.START_MS

    def more(self) -> list[RawMessage]:
        """Return the events of the next ten minutes of event time."""
        self._now_ms += SLOT_MS
        return self._kept(self.case.population.advance(self._now_ms))

    def closing(self) -> list[RawMessage]:
        """Return the last events."""
        time_ms = self._now_ms + 2 * _HOUR_MS
        users = one_a_partition(self.case.population.profiles())
        return self._kept(
            [
                Event(event_id=f"last-{user_id}", user_id=user_id, type="app_open", time_ms=time_ms)
                for user_id in users
            ]
        )

    def _kept(self, events: list[Event]) -> list[RawMessage]:
        made = [
            RawMessage(
                *(EVENTS, self._partition[event.user_id], -1),
                *(event.user_id.encode(), encode(event), event.time_ms),
            )
            for event in events
        ]
        self.events += made
        return made


@functools.cache
def _world(directory: Path) -> w.World:
    folder = directory / "world"
    folder.mkdir()
    return w.make_world(folder)
