"""Users: the one keyed step that knows what each user has done, and when that is a reason to push.

Reads   events, feedback, profiles, signals and erasures of one shard, in partition order.
Emits   a feature row for each user touched, and triggers; most events fire none.
Owns    the timers of a shard, and the order in which a user's state is brought up to date.

A timer is an entry in one heap for each source partition, in event time; at most two a user are
live (session or cart, idle or expiry), and entries that an event has overtaken are re-armed when
they come up, not searched for. The heaps are rebuilt from the heads of the packed states.
"""

from collections.abc import Callable, Iterable, Iterator
from math import exp
from typing import Final, NamedTuple, Protocol

from operators import metrics
from operators.context import context_of
from operators.counters import OTHER, TYPE_INDEX, add_decayed, add_sliding
from operators.duplicates import is_repeat
from operators.hops import Engagement, FeatureRow, Forget, History, ShardBatch, Trigger
from operators.messages import Event, Feedback, TriggerType, UserProfile, UserSignal
from operators.sessions import Session, ends_before, main_category, observe
from operators.timers import PartitionTimers, load_timers
from operators.triggers import (
    INTENT_FIRED,
    Due,
    TriggerRules,
    concerns,
    has_intent,
    next_later,
    next_soon,
)
from operators.user_state import (
    ENGAGEMENT_MS,
    STATE_VERSION,
    UserState,
    add_totals,
    older_timers,
)
from operators.written import HASHED, ServedTexts, add_signal, add_written, text_of, written

# A change that old is no news. It is what `push.user-signals.v1` keeps, and `catalog` reads the
# events of a week when it starts for the first time.
_STALE_MS: Final = 86_400_000


class Users(Protocol):
    """The part of `operators.state.Shard` that is needed here."""

    def get(self, key: str) -> UserState: ...  # noqa: D102
    def peek(self, key: str) -> UserState | None: ...  # noqa: D102
    def delete(self, key: str) -> None: ...  # noqa: D102
    def scan_raw(self) -> Iterator[tuple[str, bytes]]: ...  # noqa: D102


class ShardOutput(NamedTuple):
    """What one call gave: the latest row of each user touched, and what follows in order.

    `Forget` says that a user was erased or expired, so that the steps behind drop theirs too.
    """

    rows: list[FeatureRow]
    triggers: list[Trigger | Forget]


class UserShard:
    """The users of one shard.

    Parameters
    ----------
    shard
        The shard's name, handed on with each trigger.
    users
        State by user_id.
    rules
        When to consider a push.
    category_of
        item_id -> its main category, "" where it is not known.
    texts
        The vectors of what users write.

    Notes
    -----
    Memory: users are bounded by `users`; the heaps hold at most two live entries a user and those
    overtaken within the idle time, about 60 bytes each. A user without events stays until a
    tombstone if there is a profile, and else as long as an idle one. Time: about 13 us an event,
    features included; 40 us more for a search of three words that is encoded here, 15 where it is
    remembered, 80 for a comment of 40 words (`python -m bench.written`). A start reads every state
    of the shard once, without decoding it.

    Examples
    --------
    >>> from operators.shards import DictShard
    >>> from operators.user_state import decode_state, encode_state, new_state
    >>> users = DictShard("00", encode=encode_state, decode=decode_state, new=new_state)
    >>> shard = UserShard("00", users, TriggerRules(idle_ms=0), category_of=lambda item: "shoes")
    >>> t = 1_700_000_000_000
    >>> views = [Event(event_id=f"e{i}", user_id="u", type="view", item_id=f"i{i}", time_ms=t + i)
    ...          for i in range(3)]
    >>> [out] = shard.on_batch([ShardBatch("00", 0, t, [(t, view) for view in views])])
    >>> [(trigger.type, trigger.event_id) for trigger in out.triggers]
    [('intent', 'e2')]
    >>> [out] = shard.on_batch([ShardBatch("00", 0, t + 1_800_003, [])])  # half an hour of quiet
    >>> [(trigger.type, trigger.event_id, trigger.time_ms - t) for trigger in out.triggers]
    [('session_ended', 'e2', 1800003)]
    """

    def __init__(
        self,
        shard: str,
        users: Users,
        rules: TriggerRules,
        category_of: Callable[[str], str],
        texts: ServedTexts = HASHED,
    ) -> None:
        self._shard = shard
        self._users = users
        self._rules = rules
        self._category_of = category_of
        self._texts = texts
        self._triggers: list[Trigger | Forget] = []
        self._touched: dict[str, UserState] = {}
        self._duplicates = 0
        self._late = 0
        cart_ms, idle_ms = rules.cart_left_ms, rules.idle_ms
        self._soonest_ms = min(rules.session_gap_ms, cart_ms or rules.session_gap_ms)  # with a cart
        self._idle_ms = min(rules.expire_ms, idle_ms or rules.expire_ms)
        self._timers = load_timers(users.scan_raw(), STATE_VERSION, older_timers)

    def on_batch(self, batches: Iterable[ShardBatch]) -> list[ShardOutput]:
        """Fold the batches in, time passing as it did for each partition; return one output."""
        for batch in batches:
            partition = batch.partition
            timers = self._timers_of(partition)
            for watermark_ms, entry in batch.entries:
                if timers.first_ms <= watermark_ms:
                    self._fire_due(timers, partition, watermark_ms)
                if isinstance(entry, Event):
                    self._on_event(entry, partition, watermark_ms)
                elif isinstance(entry, Feedback):
                    self._on_feedback(entry, partition)
                elif isinstance(entry, UserProfile):
                    self._users.get(entry.user_id).profile = entry
                elif isinstance(entry, UserSignal):
                    self._on_signal(entry, watermark_ms)
                elif isinstance(entry, Forget):
                    self._forget(entry.user_id)
            if timers.first_ms <= batch.watermark_ms:
                self._fire_due(timers, partition, batch.watermark_ms)
        return [self._drain()]

    def moment(self, user_id: str, time_ms: int) -> Trigger | None:
        """Return the trigger of an idle user as of a time, None for one who has done nothing."""
        state = self._users.peek(user_id)
        if state is None or not state.item_ids:
            return None
        return self._made(state, user_id, "idle", state.last_event_id, time_ms)

    def _timers_of(self, partition: int) -> PartitionTimers:
        timers = self._timers.get(partition)
        if timers is None:
            timers = self._timers[partition] = PartitionTimers()
        return timers

    def _drain(self) -> ShardOutput:
        rows = [
            FeatureRow(user_id, state.last_ms, context_of(state, state.last_ms))
            for user_id, state in self._touched.items()
        ]
        triggers, self._triggers, self._touched = self._triggers, [], {}
        for trigger in triggers:
            if isinstance(trigger, Trigger):
                metrics.TRIGGERS.labels(trigger.type).inc()
        if self._duplicates:
            metrics.DUPLICATES.inc(self._duplicates)
        if self._late:
            metrics.LATE_EVENTS.inc(self._late)
        self._duplicates = self._late = 0
        return ShardOutput(rows, triggers)

    def _forget(self, user_id: str) -> None:
        self._users.delete(user_id)
        self._touched.pop(user_id, None)
        self._triggers.append(Forget(user_id, self._shard))

    def _is_duplicate(self, state: UserState, message_id: str) -> bool:
        is_known = is_repeat(state.seen, message_id)
        self._duplicates += is_known
        return is_known

    def _on_event(self, event: Event, partition: int, watermark_ms: int) -> None:
        user_id, time_ms, kind = event.user_id, event.time_ms, event.type
        state = self._users.get(user_id)
        if self._is_duplicate(state, event.event_id):
            return
        self._late += time_ms < watermark_ms
        if event.context is not None:
            state.place = event.context
        category = self._category_of(event.item_id) if event.item_id is not None else ""
        gap_ms = self._rules.session_gap_ms
        if ends_before(state.session, time_ms, gap_ms):
            soon = next_soon(state.session, state.last_ms, False, self._rules)
            if soon is not None:
                self._apply(state, user_id, soon)
        is_current = observe(
            state.session,
            time_ms,
            event.event_id,
            kind=kind,
            item_id=event.item_id,
            category=category,
            dwell_seconds=event.value if kind == "view" else None,
            gap_ms=gap_ms,
        )
        add_decayed(state.decayed, time_ms, TYPE_INDEX.get(kind, OTHER))
        add_sliding(state.sliding, time_ms)
        add_totals(state, event)
        if event.text is not None:
            self._on_text(state, event, is_current)
        self._move_clock(state, event, partition)
        # Armed timers are at most as far as what this event could arm: the usual case.
        soonest_ms = self._soonest_ms if state.cart else gap_ms
        if not 0 < state.soon_ms <= time_ms + soonest_ms or not (
            0 < state.later_ms <= time_ms + self._idle_ms
        ):
            self._arm(state, user_id)
        self._touched[user_id] = state
        is_view = kind in ("view", "click")
        if is_view and is_current and has_intent(state.session, category, self._rules):
            state.session.fired |= INTENT_FIRED
            self._trigger(state, user_id, "intent", event.event_id, time_ms)

    def _on_text(self, state: UserState, event: Event, is_current: bool) -> None:
        vector = self._texts.vector(text_of(event))
        is_intent = is_current and event.type == "search"
        add_written(state, vector, self._texts.inline, event.time_ms, is_intent=is_intent)

    def _move_clock(self, state: UserState, event: Event, partition: int) -> None:
        if event.time_ms >= state.last_ms:
            state.last_ms = event.time_ms
            state.last_event_id = event.event_id
            state.is_idle_fired = False
        if not state.first_ms or event.time_ms < state.first_ms:
            state.first_ms = event.time_ms
        if state.partition != partition:  # the topic has grown, and the user moved
            state.partition = partition
            state.soon_ms = state.later_ms = 0

    def _on_feedback(self, feedback: Feedback, partition: int) -> None:
        kind, time_ms = feedback.type, feedback.time_ms
        if kind not in ("opened", "dismissed", "opted_out"):
            return
        state = self._users.get(feedback.user_id)
        if self._is_duplicate(state, feedback.feedback_id):
            return
        if not state.last_ms and not state.later_ms:
            # Nothing else would ever drop it: its user has expired, or is yet to come.
            state.is_idle_fired, state.partition = True, partition
            state.later_ms = time_ms + self._rules.expire_ms
            self._timers_of(partition).put(state.later_ms, feedback.user_id)
        if time_ms > state.engaged_ms:
            decay = exp((state.engaged_ms - time_ms) / ENGAGEMENT_MS)
            state.opens *= decay
            state.dismissals *= decay
            state.engaged_ms = time_ms
        if kind == "opened":
            state.opens += 1
            state.last_open_ms = max(state.last_open_ms, time_ms)
        elif kind == "dismissed":
            state.dismissals += 1
        else:
            state.opted_out_of = state.profile.consent.version if state.profile else ""

    def _on_signal(self, signal: UserSignal, watermark_ms: int) -> None:
        """Take what `catalog` found out; nothing of a user who has left nothing else here."""
        user_id = signal.user_id
        if self._users.peek(user_id) is None:
            metrics.SIGNALS_IGNORED.labels("unknown_user").inc()
            return
        state = self._users.get(user_id)
        if self._is_duplicate(state, signal.signal_id):
            return
        if signal.type in ("price_dropped", "back_in_stock"):
            ignored = self._on_change(state, signal, watermark_ms)
        else:
            gap_ms = self._rules.session_gap_ms
            ignored = add_signal(state, signal, self._texts.encoder(), gap_ms)
        if ignored:
            metrics.SIGNALS_IGNORED.labels(ignored).inc()

    def _on_change(self, state: UserState, signal: UserSignal, watermark_ms: int) -> str:
        """Fire for an item that changed, or return why not."""
        item_id = signal.item_id or ""
        bought = dict(zip(state.bought, state.bought_s, strict=True))
        if signal.time_ms < watermark_ms - _STALE_MS:
            return "stale"
        if not concerns(signal, bought.get(item_id), self._rules):
            return "not_wanted"
        # Not before what has been decided already: caps and pauses go by the trigger's time.
        time_ms = max(signal.time_ms, watermark_ms)
        kind: TriggerType = "back_in_stock" if signal.type == "back_in_stock" else "price_dropped"
        self._trigger(state, signal.user_id, kind, signal.signal_id, time_ms, about=(item_id,))
        return ""

    def _next(self, state: UserState) -> Due:
        is_cart_left = bool(state.cart) and not state.is_cart_fired
        soon = next_soon(state.session, state.last_ms, is_cart_left, self._rules)
        later = next_later(state.last_ms, state.is_idle_fired, self._rules)
        return later if soon is None or later.time_ms < soon.time_ms else soon

    def _arm(self, state: UserState, user_id: str) -> None:
        timers = self._timers_of(state.partition)
        is_cart_left = bool(state.cart) and not state.is_cart_fired
        soon = next_soon(state.session, state.last_ms, is_cart_left, self._rules)
        if soon is not None and (not state.soon_ms or soon.time_ms < state.soon_ms):
            state.soon_ms = soon.time_ms
            timers.put(soon.time_ms, user_id)
        later_ms = next_later(state.last_ms, state.is_idle_fired, self._rules).time_ms
        if not state.later_ms or later_ms < state.later_ms:
            state.later_ms = later_ms
            timers.put(later_ms, user_id)

    def _fire_due(self, timers: PartitionTimers, partition: int, watermark_ms: int) -> None:
        while timers.first_ms <= watermark_ms:
            due_ms, user_id = timers.pop()
            state = self._users.peek(user_id)
            if state is None or state.partition != partition:
                continue
            if due_ms not in (state.soon_ms, state.later_ms):
                continue  # overtaken by an earlier timer
            self._fire(self._users.get(user_id), user_id, due_ms)

    def _fire(self, state: UserState, user_id: str, due_ms: int) -> None:
        if due_ms == state.soon_ms:
            state.soon_ms = 0
        if due_ms == state.later_ms:
            state.later_ms = 0
        # Not up to the watermark: what is due later waits its turn in the heap among the other
        # users, so that the order of triggers does not depend on how far a watermark jumped.
        while (due := self._next(state)).time_ms <= due_ms:
            if due.expires:
                self._forget(user_id)
                return
            self._apply(state, user_id, due)
        self._arm(state, user_id)

    def _apply(self, state: UserState, user_id: str, due: Due) -> None:
        if due.type is not None:
            # A session of late events ends with one of its own, not with the user's newest.
            of = state.session if due.ends_session else state
            self._trigger(state, user_id, due.type, of.last_event_id, due.time_ms)
        if due.ends_session:
            state.category = main_category(state.session) or state.category
            state.session = Session()
        elif due.type == "cart_left":
            state.is_cart_fired = True
            state.cart_fired_ms = state.last_ms
        elif due.type == "idle":
            state.is_idle_fired = True

    def _trigger(
        self,
        state: UserState,
        user_id: str,
        kind: TriggerType,
        event_id: str,
        time_ms: int,
        *,
        about: tuple[str, ...] = (),
    ) -> None:
        made = self._made(state, user_id, kind, event_id, time_ms, about=about)
        self._triggers.append(made)

    def _made(
        self,
        state: UserState,
        user_id: str,
        kind: TriggerType,
        event_id: str,
        time_ms: int,
        *,
        about: tuple[str, ...] = (),
    ) -> Trigger:
        profile = state.profile
        intent, taste = written(state, self._texts.encoder()) if state.encoder else (b"", b"")
        is_opted_out = state.opted_out_of is not None and (
            profile is None or profile.consent.version == state.opted_out_of
        )
        decay = exp(min(state.engaged_ms - time_ms, 0) / ENGAGEMENT_MS)
        return Trigger(
            type=kind,
            event_id=event_id,
            user_id=user_id,
            shard=self._shard,
            time_ms=time_ms,
            context=context_of(state, time_ms),
            history=History(list(state.item_ids), list(state.types), state.times_s.tolist()),
            cart=list(state.cart),
            bought=list(state.bought),
            category=main_category(state.session) or state.category,
            platform=state.place.platform if state.place is not None else "",
            profile=profile,
            engagement=Engagement(
                state.opens * decay,
                state.dismissals * decay,
                state.last_open_ms,
                is_opted_out,
            ),
            intent=intent,
            taste=taste,
            bought_s=state.bought_s.tolist(),
            about=about,
        )
