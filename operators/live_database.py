"""The live database of one state store: RocksDB, made of checkpoints and saved as checkpoints.

Reads   the checkpoints that `SnapshotRef`s name.
Owns    RocksDB's options, the directory `live` of a lineage, and which rows a shard has in it.

It begins as the checkpoint that most shards come from, by hard links; the rows of the others are
copied in, and what came with the links and is nobody's goes. It has no write-ahead log: a
checkpoint flushes, and nothing but checkpoints is ever resumed from.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rocksdict import (
    AccessType,
    BlockBasedIndexType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from operators.checkpoints import CorruptionError, key_range, scan
from operators.lineage import Lineage
from operators.shards import SnapshotRef

_COPY_ROWS: Final = 4_096  # rows copied in one write: about 1 MiB at 288 bytes a row
_MAX_LOG_BYTES: Final = 1 << 20  # RocksDB's own text log; two files are kept
_FILES_TO_MERGE: Final = 8  # RocksDB's own default is 4
_BLOOM_BITS: Final = 10  # per key, 1% false positives: most misses are users never seen


class LiveDatabase:
    """The database that a store writes; for one thread, as the store is.

    Parameters
    ----------
    lineage
        Where checkpoints lie; the database is its directory `live`.
    block_cache_bytes, write_buffer_bytes
        RocksDB's read cache and the size of one of its at most two write buffers.
    fault
        Called with the name of each point that a crash test aims at.
    """

    def __init__(
        self,
        lineage: Lineage,
        block_cache_bytes: int,
        write_buffer_bytes: int,
        *,
        fault: Callable[[str], None],
    ) -> None:
        self._lineage, self._fault = lineage, fault
        self._path = lineage.path / "live"
        self._options = _rocksdb_options(block_cache_bytes, write_buffer_bytes)
        self._db: Any = None
        self._is_closed = False
        self._base: SnapshotRef | None = None  # the newest checkpoint it was linked from

    def open(self, names: Iterable[SnapshotRef]) -> Any:
        """Return the `Rdict`, linked from the checkpoint that holds most of `names`.

        Raises
        ------
        CheckpointError
            When that checkpoint is missing or torn.
        """
        if self._is_closed:
            raise RuntimeError("the store is closed")
        by_lineage: dict[str, list[SnapshotRef]] = defaultdict(list)
        for ref in names:
            by_lineage[ref.lineage].append(ref)
        self._path.mkdir()
        if by_lineage:
            most = max(by_lineage.values(), key=len)
            # The newest of them holds the others too: who named an older one has not changed.
            self._base = max(most, key=lambda ref: ref.number)
            _link_files(self._lineage.checkpoint(self._base), self._path)
        # Only an empty directory may become a database: a torn one must not become empty.
        self._options.create_if_missing(not by_lineage)
        try:
            self._db = Rdict(str(self._path), self._options)
        except Exception as error:  # rocksdict raises nothing narrower
            shutil.rmtree(self._path)
            if self._base is None:  # then no checkpoint is to blame
                raise
            raise self._lineage.torn(self._base, error) from error
        no_log = WriteOptions()
        no_log.disable_wal = True
        self._db.set_write_options(no_log)
        self._fault("linked")
        return self._db

    def adopt(self, shard: str, ref: SnapshotRef | None) -> bool:
        """Make it hold `shard` just as `ref` says, whatever came with the links.

        Returns whether it had to be changed for that.
        """
        base = self._base
        if ref and base and ref.lineage == base.lineage and ref.number <= base.number:
            return False
        is_changed = False
        begin, end = key_range(shard)
        if next(scan(self._db, begin, end), None) is not None:
            self._db.delete_range(begin, end)
            is_changed = True
        if ref is not None:
            self._copy_in(ref)
            is_changed = True
        self._fault("adopted")
        return is_changed

    def save(self, shards: Collection[str]) -> None:
        """Make what it holds the lineage's next checkpoint, of these shards."""
        # A checkpoint flushes too, but holds Python's lock meanwhile: the writers' threads would
        # stand still with us.
        self._db.flush()
        # RocksDB writes beside, syncs and renames; the rename is the lineage's to sync.
        checkpoint = Checkpoint(self._db)
        self._lineage.add(shards, lambda path: checkpoint.create_checkpoint(str(path)))

    def close(self) -> None:
        """Close it and remove its directory."""
        self._is_closed = True
        if self._db is not None:
            self._db.close()
            self._db = None
            shutil.rmtree(self._path, ignore_errors=True)

    def _copy_in(self, ref: SnapshotRef) -> None:
        path = self._lineage.checkpoint(ref)
        self._options.create_if_missing(False)
        try:
            source = Rdict(str(path), self._options, access_type=AccessType.read_only(False))
        except Exception as error:  # rocksdict raises nothing narrower
            raise self._lineage.torn(ref, error) from error
        try:
            self._copy_rows(source, *key_range(ref.shard))
        except CorruptionError as error:
            raise self._lineage.torn(ref, error) from error
        finally:
            source.close()

    def _copy_rows(self, source: Any, begin: bytes, end: bytes) -> None:
        rows = scan(source, begin, end)
        while chunk := list(islice(rows, _COPY_ROWS)):
            batch = WriteBatch(raw_mode=True)
            for key, value in chunk:
                batch.put(key, value)
            self._db.write(batch)


def _rocksdb_options(block_cache_bytes: int, write_buffer_bytes: int) -> Any:
    table = BlockBasedOptions()
    table.set_block_cache(Cache(block_cache_bytes))
    table.set_bloom_filter(_BLOOM_BITS, False)
    # Else indexes and filters stay outside the bound, and grow with the state.
    table.set_cache_index_and_filter_blocks(True)
    # In parts of 4 KB: a large file's, of some MB in one piece, were read anew for each key asked
    # for, however large the cache: 170 us with a million users, and 4 so.
    table.set_index_type(BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_pin_top_level_index_and_filter(True)
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(write_buffer_bytes)
    options.set_max_write_buffer_number(2)
    # An epoch leaves two files, and merging files takes a core from the flow: half as often.
    options.set_level_zero_file_num_compaction_trigger(_FILES_TO_MERGE)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(_MAX_LOG_BYTES)
    return options


def _link_files(checkpoint: Path, live: Path) -> None:
    """Make `live` a database as of `checkpoint`: table files never change, the others do."""
    for file in checkpoint.iterdir():
        if file.suffix == ".sst":
            os.link(file, live / file.name)
        else:
            shutil.copy(file, live / file.name)
