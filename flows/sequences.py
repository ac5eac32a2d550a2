"""Files of sequences: `user item item ...`, one user a line, items in time order.

Reads   such a file, plain or gzip, as papers on next items share their data; and titles.
Emits   histories whose clock ticks an hour an item: the file tells the order alone.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from models.dataset import Histories, build_histories
from models.features import EVENT_CODE

_TICK_S: Final = 3_600  # the same pause between any two items says nothing, which is the point


def read_sequences(
    path: Path, titles: Path | None = None
) -> tuple[Histories, list[str], list[str]]:
    """Return histories, item ids and texts of a file of sequences.

    Parameters
    ----------
    path
        Each line a user and their items, oldest first, separated by spaces or tabs. A user's
        lines after the first go on where it ended.
    titles
        Lines of `item<TAB>title`; items without one have an empty text.

    Raises
    ------
    ValueError
        If there is no user with an item, or a line of titles has no tab.
    """
    users: list[str] = []
    items: list[str] = []
    times: list[int] = []
    n_of: dict[str, int] = {}
    for line in _lines(path):
        user, *sequence = line.split()
        before = n_of.get(user, 0)
        n_of[user] = before + len(sequence)
        users += [user] * len(sequence)
        items += sequence
        times += [(before + place) * _TICK_S for place in range(len(sequence))]
    if not items:
        raise ValueError(f"{path} has no line of a user and an item")
    named = _titles(titles) if titles is not None else {}
    item_ids = sorted(set(items))
    views = [EVENT_CODE["view"]] * len(items)
    histories = build_histories(users, items, views, times, item_ids=item_ids)
    return histories, item_ids, [named.get(item_id, "") for item_id in item_ids]


def _titles(path: Path) -> dict[str, str]:
    named = {}
    for number, line in enumerate(_lines(path), start=1):
        item_id, tab, title = line.partition("\t")
        if not tab:
            raise ValueError(f"{path}, line {number}: item, tab, title expected")
        named[item_id] = title.strip()
    return named


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield line
