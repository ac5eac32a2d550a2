"""The demo's live view in a terminal, and its plain lines elsewhere.

Reads   `flows.tally.Tally` and the flows' counters.
Emits   text. Redraws at most four times a second; without a terminal one line every five
        seconds, so that a log stays readable.
"""

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from flows.tally import ARMS, Counters, Rate, Tally

_REDRAW_S: Final = 0.25
_LINE_S: Final = 5.0
_POINTS: Final = 45  # of a sparkline: one every two seconds of a run of 90
_POINT_S: Final = 2.0
_BARS: Final = "▁▂▃▄▅▆▇█"


class Frame(NamedTuple):
    """One moment of the run."""

    at_s: float  # wall clock of the run, seconds
    of_s: float
    sim_ms: int  # event time
    counters: Counters


def sparkline(values: Sequence[float], top: float) -> str:
    """Return one bar a value, from 0 to `top`.

    >>> sparkline([0.0, 0.1, 0.2], top=0.2)
    '▁▅█'
    """
    if top <= 0:
        return _BARS[0] * len(values)
    last = len(_BARS) - 1
    return "".join(_BARS[min(last, max(0, int(value / top * last + 0.5)))] for value in values)


def percent(rate: Rate) -> str:
    """Return a rate for people.

    >>> percent(Rate(200, 25)), percent(Rate(0, 0))
    ('12.5%', '-')
    """
    return "-" if rate.value is None else f"{100 * rate.value:.1f}%"


class View:
    """Shows a run while it goes on; use as a context manager, call `update` at every tick.

    Parameters
    ----------
    tally
        The run's books, read at every redraw.
    console
        Where to. Not a terminal: plain lines.
    header
        A line on top, the broker's address say.

    Notes
    -----
    Memory: 45 points a curve.
    """

    def __init__(self, tally: Tally, console: Console, header: str) -> None:
        self._tally, self._console, self._header = tally, console, header
        self._live: Live | None = None
        self._due_s = 0.0
        self._point_due_s = 0.0
        self._points: dict[str, deque[float]] = {arm: deque(maxlen=_POINTS) for arm in ARMS}
        self._before: tuple[float, int] = (0.0, 0)  # at_s and events at the rate's last reading
        self._events_per_s = 0.0

    def __enter__(self) -> "View":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def update(self, frame: Frame) -> None:
        """Show a moment, if it is time to."""
        if frame.at_s < self._due_s:
            return
        if frame.at_s >= self._point_due_s:
            self._point_due_s = frame.at_s + _POINT_S
            self._mark(frame)
        if self._live is not None:
            self._due_s = frame.at_s + _REDRAW_S
            self._live.update(self.panel(frame), refresh=True)
        else:
            self._due_s = frame.at_s + _LINE_S
            self._console.print(self.line(frame), highlight=False, soft_wrap=True)

    def _mark(self, frame: Frame) -> None:
        """Take a point of the curves and of the rate of events."""
        for arm in ARMS:
            self._points[arm].append(self._tally.rate(arm).value or 0.0)
        before_s, before = self._before
        if frame.at_s > before_s:
            self._events_per_s = (self._tally.events_sent - before) / (frame.at_s - before_s)
        self._before = frame.at_s, self._tally.events_sent

    def line(self, frame: Frame) -> str:
        """Return a moment as one plain line."""
        tally = self._tally
        return (
            f"{frame.at_s:5.1f} s  {_clock(frame.sim_ms)}  {self._events_per_s:,.0f} events/s  "
            f"decoded {frame.counters.decoded_events:,}/{tally.events_sent:,}  "
            f"triggers {frame.counters.triggers:,}  decisions {tally.n_decisions:,}  "
            f"sent {len(tally.sends):,}  opens policy {percent(tally.rate('policy'))} "
            f"random {percent(tally.rate('random'))}  "
            f"p50 {_ms(tally.latency_ms(50))} p99 {_ms(tally.latency_ms(99))}"
        )

    def panel(self, frame: Frame) -> RenderableType:
        """Return a moment as a panel of tables."""
        title = f"pushflow demo  {frame.at_s:.0f} of {frame.of_s:.0f} s   {_clock(frame.sim_ms)}"
        beside = Table.grid(padding=(0, 4))
        beside.add_row(self._flow(frame), self._decisions())
        body = Group(self._header, beside, self._learning(frame))
        return Panel(body, title=title, title_align="left")

    def _flow(self, frame: Frame) -> Table:
        tally, counters = self._tally, frame.counters
        return _grid(
            "flow",
            {
                "events/s": f"{self._events_per_s:,.0f}",
                "sent": f"{tally.events_sent:,}",
                "decoded": f"{counters.decoded_events:,}",
                "dead letters": f"{counters.dead_letters:,} of {tally.rubbish_sent:,} bad",
                "triggers": f"{counters.triggers:,}",
                "decisions": f"{tally.n_decisions:,}",
                "p50": _ms(tally.latency_ms(50)),
                "p99": _ms(tally.latency_ms(99)),
            },
        )

    def _decisions(self) -> Table:
        tally = self._tally
        rows = {name: f"{n:,}" for name, n in sorted(tally.outcomes.items())}
        # The commonest reasons, in the order of names so that lines do not jump about.
        common = sorted(dict(tally.reasons.most_common(7)))
        return _grid(
            "decisions", rows | {f"  {name}": f"{tally.reasons[name]:,}" for name in common}
        )

    def _learning(self, frame: Frame) -> Table:
        tally = self._tally
        top = max((value for points in self._points.values() for value in points), default=0.0)
        rows = {}
        for arm in ARMS:
            rate = tally.rate(arm)
            rows[f"opens, {arm}"] = f"{percent(rate)} of {rate.sends:,}"
            rows[f"  {arm}"] = sparkline(list(self._points[arm]), top)
        pushed, held_out = tally.purchases_per_user()
        rows["bought, pushed"] = "-" if pushed is None else f"{pushed:.2f} a user"
        rows["bought, holdout"] = "-" if held_out is None else f"{held_out:.2f} a user"
        rows["rewards"] = f"{frame.counters.rewards:,}"
        rows["policy"] = (tally.policy_version or "-")[:20]
        rows["  changed"] = f"{max(0.0, frame.at_s - tally.policy_changed_s):.1f} s ago"
        return _grid("learning", rows)


def _grid(title: str, rows: dict[str, str]) -> Table:
    table = Table(title=title, box=None, show_header=False, title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _clock(sim_ms: int) -> str:
    return datetime.fromtimestamp(sim_ms / 1_000, UTC).strftime("%a %d %b %H:%M UTC")
