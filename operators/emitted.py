"""Emitted: the decisions that were written, and that no snapshot knows of.

Reads   the end of `push.decisions.v1`, once, as it was when all earlier writers were fenced.
Emits   the written decision of a trigger that a replay brings again.
Owns    the rule that the emitted record wins.

After a crash the triggers since the last snapshot come again. Their decisions may be written
already, and by now the replay could choose otherwise: items, campaigns and the policy have moved
on. A gateway has acted on what was written, and the learner learns from it; so users' state must
follow it too. It is found by trigger and not by its id, for another campaign would make another
id, and a second decision for one trigger.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from operators import metrics
from operators.hops import Trigger
from operators.messages import Decision, TriggerRef

MAX_BYTES: Final = 128 << 20  # 50,000 decisions of 2.6 KB: 100 s of 500 a second
_KEY_BYTES: Final = 500  # of the key and its place in the dictionary


class _Head(msgspec.Struct, frozen=True, gc=False):
    """The part of a decision that says which trigger it answers."""

    trigger: TriggerRef
    user_id: str
    decided_at: int


def _size(value: bytes) -> int:
    return len(value) + _KEY_BYTES


_Key = tuple[str, str, str, int]  # type, event and user of a trigger, and its event time in ms


class Emitted:
    """Gives out written decisions by their triggers, once each.

    Parameters
    ----------
    values
        Decisions as they were written, oldest first. What cannot be read is passed over.
    max_bytes
        Of more than this the oldest are dropped; the replay then decides those anew. They are not
        written twice even so: the sink knows their ids.

    Attributes
    ----------
    n_dropped
        Decisions that were too many.

    Notes
    -----
    Memory: `max_bytes` at most, and less with each trigger that comes again. What lies before the
    snapshot that is resumed is never asked for, and stays: the decisions of an epoch.
    """

    def __init__(self, values: Iterable[bytes | None], max_bytes: int = MAX_BYTES) -> None:
        self._values: OrderedDict[_Key, bytes] = OrderedDict()
        self.n_dropped = n_bytes = 0
        decode = msgspec.json.Decoder(_Head).decode
        for value in values:
            try:
                head = decode(value or b"")
            except msgspec.DecodeError:
                metrics.FALLBACKS.labels("emitted").inc()
                continue
            key = (head.trigger.type, head.trigger.event_id, head.user_id, head.decided_at)
            self._values[key] = value or b""
            n_bytes += _size(value or b"")
            while n_bytes > max_bytes:
                n_bytes -= _size(self._values.popitem(last=False)[1])
                self.n_dropped += 1

    def __len__(self) -> int:
        return len(self._values)

    def take(self, trigger: Trigger) -> Decision | None:
        """Return the decision that was written for a trigger, and forget it."""
        if not self._values:
            return None
        key = (trigger.type, trigger.event_id, trigger.user_id, trigger.time_ms)
        value = self._values.pop(key, None)
        if value is None:
            return None
        try:
            return msgspec.json.decode(value, type=Decision)
        except msgspec.DecodeError:  # an older pushflow wrote it: decide anew; the sink withholds
            metrics.FALLBACKS.labels("emitted").inc()
            return None
