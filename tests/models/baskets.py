"""Users who bought one item, and then three in one second."""

from models.dataset import Histories, build_histories
from models.features import EVENT_CODE

BASKET_ITEMS = list("abcdefgh")


def in_baskets(order: str) -> Histories:
    """Return a dozen users whose second basket is told in this order, and one who comes later."""
    events = [(f"u{user:02d}", "a", 0) for user in range(12)]
    events += [(f"u{user:02d}", item, 10) for user in range(12) for item in order]
    events += [("z", BASKET_ITEMS[n % 8], 1_000 + n) for n in range(16)]
    users, items, times = zip(*events, strict=True)
    kinds = [EVENT_CODE["purchase"]] * len(events)
    return build_histories(users, items, kinds, times, item_ids=BASKET_ITEMS)
