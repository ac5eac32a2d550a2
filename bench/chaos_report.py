"""What a scene of chaos has to say: a row, held or not, and the table and JSON of all of them.

Reads   rows from the scenes.
Emits   progress lines while scenes run; a table; one JSON object on the last line.
Owns    what "held" means: nothing lost, nothing twice, no byte changed, the state equal, and no
        fault that the scene found by itself. A scene that could not run is skipped, and says why.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table


@dataclass
class Row:
    """One line of the table.

    Parameters
    ----------
    name
        What was done, with its number: "20 kill -9 of a worker".
    run
        Names the run whose decisions these are: rows of one run share them.
    kills
        Processes that were killed with signal 9.
    expected, found
        Decisions (rewards, for `learn`) of the undisturbed run, and those written here.
    lost, twice, changed
        Expected and not found; found more than once; found with other bytes, or unexpected.
    is_state_equal
        Whether the state at the end is that of the undisturbed run; None where a scene has none.
    note
        What else is worth saying: times, counts.
    faults
        What did not go as promised, in words; any fault means that the row does not hold.
    skipped
        Why the scene could not run; "" where it did.
    """

    name: str
    run: str
    kills: int = 0
    expected: int = 0
    found: int = 0
    lost: int = 0
    twice: int = 0
    changed: int = 0
    is_state_equal: bool | None = None
    note: str = ""
    faults: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def is_held(self) -> bool:
        """Whether all that the row promises is so."""
        is_whole = not (self.lost or self.twice or self.changed or self.faults or self.skipped)
        return is_whole and self.is_state_equal is not False


class Report:
    """Gathers rows, and tells of the progress on standard error.

    Parameters
    ----------
    work
        A directory for everything that the scenes write.
    seed
        Of every random moment.
    is_short
        Whether the run is to take less than two minutes.
    pace
        Events a second.
    """

    def __init__(self, work: Path, *, seed: int, is_short: bool, pace: int) -> None:
        self.work = work
        self.pace = pace
        self.seed = seed
        self.is_short = is_short
        self.rows: list[Row] = []
        self._began = time.monotonic()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the start."""
        return time.monotonic() - self._began

    def rng(self, name: str) -> np.random.Generator:
        """Return a generator for a scene: the same for a seed, whichever scenes run before."""
        return np.random.default_rng([self.seed, *name.encode()])

    def say(self, text: str) -> None:
        """Print a line of progress."""
        self._console.print(f"{self.seconds:6.1f} s  {text}", markup=False)

    def add(self, row: Row) -> None:
        """Take a row."""
        self.rows.append(row)
        held = "skipped" if row.skipped else "held" if row.is_held else "NOT HELD"
        self.say(f"{row.name}: {held}{''.join(f'; {fault}' for fault in row.faults)}")

    @property
    def is_held(self) -> bool:
        """Whether every row that ran holds, and one ran at all."""
        ran = [row for row in self.rows if not row.skipped]
        return bool(ran) and all(row.is_held for row in ran)

    def print(self) -> None:
        """Print the table, and the JSON object last."""
        Console(highlight=False, width=150).print(self.table())
        print(json.dumps(self.summary()), flush=True)

    def table(self) -> Table:
        """Return the rows for the terminal."""
        minutes = self.seconds / 60
        table = Table(title=f"make chaos, seed {self.seed}, {minutes:.1f} minutes")
        table.add_column("what was done", overflow="fold")
        for name in ("kills", "expected", "found", "lost", "twice", "changed"):
            table.add_column(name, justify="right")
        table.add_column("state")
        table.add_column("held")
        table.add_column("note", overflow="fold")
        for row in self.rows:
            table.add_row(row.name, *_cells(row))
        return table

    def summary(self) -> dict[str, object]:
        """Return the numbers of all runs together, and each row by itself."""
        ran = [row for row in self.rows if not row.skipped]
        runs = {row.run: row for row in ran}.values()  # rows of one run say the same of it
        return {
            "kills": sum(row.kills for row in ran),
            "decisions": sum(row.found for row in runs),
            "lost": sum(row.lost for row in runs),
            "twice": sum(row.twice for row in runs),
            "changed": sum(row.changed for row in runs),
            "state_equal": bool(ran) and all(row.is_state_equal is not False for row in ran),
            "held": sum(row.is_held for row in ran),
            "rows": len(ran),
            "skipped": {row.name: row.skipped for row in self.rows if row.skipped},
            "faults": [fault for row in ran for fault in row.faults],
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "table": [asdict(row) for row in self.rows],
        }


def _cells(row: Row) -> list[str]:
    numbers = (row.kills, row.expected, row.found, row.lost, row.twice, row.changed)
    if row.skipped:
        return ["-"] * len(numbers) + ["-", "skipped", row.skipped]
    state = {True: "equal", False: "DIFFERS", None: "-"}[row.is_state_equal]
    note = "; ".join([*row.faults, *filter(None, [row.note])])
    return [*(f"{number:,}" for number in numbers), state, "yes" if row.is_held else "NO", note]
