"""RocksDB as the store opens it: what a read costs."""

import time
from pathlib import Path
from statistics import median

from rocksdict import BottommostLevelCompaction, CompactOptions, Rdict, WriteBatch, WriteOptions

from operators.live_database import _rocksdb_options

_CACHE_BYTES = 64 << 20
_BUFFER_BYTES = 16 << 20


def key(i: int) -> bytes:
    return f"07|{i:036d}".encode()


def opened(path: Path) -> Rdict:
    return Rdict(str(path), _rocksdb_options(_CACHE_BYTES, _BUFFER_BYTES))


def in_one_file(path: Path, n: int) -> Rdict:
    """Return a database of n rows as one finds it that was merged and opened again."""
    database = opened(path)
    no_log = WriteOptions()
    no_log.disable_wal = True
    database.set_write_options(no_log)
    for start in range(0, n, 5_000):
        batch = WriteBatch(raw_mode=True)
        for i in range(start, start + 5_000):
            batch.put(key(i), b"%084d" % (i * 7_919))
        database.write(batch)
    database.flush()
    forced = CompactOptions()
    forced.set_bottommost_level_compaction(BottommostLevelCompaction.force())
    database.compact_range(None, None, forced)
    database.close()
    return opened(path)


def read_ns(path: Path, n: int) -> float:
    """Return the median time of a read of one of n rows."""
    database = in_one_file(path, n)
    times = []
    for i in [*range(0, n, n // 500)] * 2:
        began = time.perf_counter_ns()
        found = database.get(key(i))
        times.append(time.perf_counter_ns() - began)
        assert found is not None
    database.close()
    return median(times[len(times) // 2 :])


def test_a_read_costs_much_the_same_in_a_file_of_many_rows(tmp_path: Path) -> None:
    few, many = (read_ns(tmp_path / str(n), n) for n in (5_000, 600_000))

    assert many < 8 * few  # 40 times where the file's index and filter are each in one piece
