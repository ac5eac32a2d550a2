"""The garbage collector of a flow: users that come and go must not all be young at once."""

import subprocess
import sys

# In a process of its own, for what is frozen stays so. One user comes for each that goes, as where
# they do not fit in memory: Python's own count stands still.
_PROGRAM = """
import gc, itertools, time
from flows.run import settle_garbage_collector
users = [[[] for _ in range(10)] for _ in range(5_000)]
if {settles}:
    settle_garbage_collector()
else:
    gc.collect()
    gc.set_threshold(5_000, 500, 100)
most = 0
for start in itertools.islice(itertools.cycle(range(0, 5_000, 100)), 100):
    for place in range(start, start + 100):
        users[place] = [[] for _ in range(10)]
    time.sleep(0.02)
    most = max(most, len(gc.get_objects(generation=0)))
print(most)
"""


def most_young(*, settles: bool) -> int:
    program = _PROGRAM.format(settles=settles)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_users_that_replace_others_are_collected_by_the_clock() -> None:
    assert most_young(settles=True) < most_young(settles=False) / 2
