"""Where the archive's files lie: a directory or an object store, through fsspec.

Reads   names of files, and their rows.
Emits   Parquet files, each there whole or not at all.
Owns    how a file comes into being, and how several become one.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from operators.archive_names import ArchiveError, ArchiveFile, ArchiveUnusable, parse

_UNFINISHED: Final = ".unfinished"
_COMPRESSION: Final = "zstd"
_GROUP_BYTES: Final = 32 << 20  # of a merged file's row groups, in memory


class Place:
    """Where an archive lies.

    Parameters
    ----------
    url
        A directory, in any form that fsspec knows.

    Notes
    -----
    A file comes into being in one step: locally it is written beside its place, synced and
    renamed; an object store's put is atomic. Calls raise `ArchiveError` for what the file system
    says, and `FileNotFoundError` for a file that is not there (any more).

    Examples
    --------
    >>> place = Place("memory://doctest-archive")
    >>> file = ArchiveFile("push.events.v1", 0, 0, 5, 6, "2026-01-05T07")
    >>> n_bytes = place.write(file, pa.table({"offset": [5, 6]}), {"topic_id": "x"})
    >>> place.files("push.events.v1") == {file: n_bytes}
    True
    >>> place.metadata(file)
    {'topic_id': 'x'}
    >>> [rows.num_rows for rows in place.rows(file, begin=6)]
    [1]
    """

    def __init__(self, url: str) -> None:
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ArchiveUnusable(f"archive.url {url!r}: {error}") from error
        self._root = root.rstrip("/")
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def files(self, topic: str, partition: int | None = None) -> dict[ArchiveFile, int]:
        """Return a topic's files and their bytes, all or those of a partition, in no order."""
        found = {parse(topic, path): size for path, size in self._find(topic).items()}
        return {
            file: size
            for file, size in found.items()
            if file is not None and partition in (None, file.partition)
        }

    def _find(self, topic: str) -> dict[str, int]:
        with _told():
            self._fs.invalidate_cache()
            found = self._fs.find(f"{self._root}/{topic}", detail=True)
            return {path: info["size"] for path, info in found.items()}

    def write(
        self, file: ArchiveFile, table: pa.Table, metadata: Mapping[str, str] | None = None
    ) -> int:
        """Write a file, in place of one of this name; return its bytes."""
        sink = io.BytesIO()
        if metadata is not None:
            table = table.replace_schema_metadata(dict(metadata))
        pq.write_table(table, sink, compression=_COMPRESSION)
        return self._put(file, sink.getbuffer())

    def _put(self, file: ArchiveFile, data: memoryview) -> int:
        path = f"{self._root}/{file.path}"
        with _told():
            if self._is_local:
                _write_local(Path(path), data)
            else:
                self._fs.pipe_file(path, bytes(data))
        return len(data)

    def sweep(self, topic: str, partition: int) -> None:
        """Remove what a crash left unfinished; a writer that was cut off then fails."""
        for path in self._find(topic):
            name = path.rpartition("/")[2]
            if name.startswith(f".{partition}.") and name.endswith(_UNFINISHED):
                self._remove(path)

    def remove(self, file: ArchiveFile) -> None:
        """Remove a file, and its directories if they are empty by then."""
        self._remove(f"{self._root}/{file.path}")
        if self._is_local:
            hour = Path(self._root, file.path).parent
            for directory in (hour, hour.parent):
                with contextlib.suppress(OSError):  # not empty
                    directory.rmdir()

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError), _told():
            self._fs.rm_file(path)

    def metadata(self, file: ArchiveFile) -> dict[str, str]:
        """Return what was written with a file's rows."""
        with self._open(file) as parquet:
            found = parquet.schema_arrow.metadata or {}
            return {key.decode(): value.decode() for key, value in found.items()}

    def rows(
        self, file: ArchiveFile, begin: int = 0, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Yield a file's rows from offset `begin` on, a row group at a time.

        `columns` are all or those that are given; "offset" is always among them.
        """
        wanted = None if columns is None else list(dict.fromkeys(["offset", *columns]))
        with self._open(file) as parquet:
            for number in range(parquet.num_row_groups):
                with _told():
                    # One thread: a flow shares its cores with others.
                    table = parquet.read_row_group(number, columns=wanted, use_threads=False)
                if begin > file.first:
                    table = table.filter(pc.greater_equal(table.column("offset"), begin))
                if table.num_rows:
                    yield table

    @contextlib.contextmanager
    def _open(self, file: ArchiveFile) -> Iterator[pq.ParquetFile]:
        path = f"{self._root}/{file.path}"
        with contextlib.ExitStack() as stack:
            with _told():
                source = stack.enter_context(self._fs.open(path, "rb"))
                try:
                    parquet = stack.enter_context(pq.ParquetFile(source))
                except (pa.ArrowException, EOFError) as error:
                    raise ArchiveUnusable(
                        f"{path} is torn: {error}. Remove it: what it held is written again, if "
                        "Kafka still has it"
                    ) from error
            yield parquet

    def schema(self, file: ArchiveFile) -> pa.Schema:
        """Return a file's columns."""
        with self._open(file) as parquet:
            return parquet.schema_arrow

    def merge(self, parts: Sequence[ArchiveFile]) -> tuple[ArchiveFile, int]:
        """Put one file in place of adjacent ones of the same columns; return it and its bytes.

        A crash before those are removed leaves files that the new one covers.
        """
        whole = parts[0]._replace(last=parts[-1].last)
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, self.schema(parts[-1]), compression=_COMPRESSION) as writer:
            for table in _gathered(rows for part in parts for rows in self.rows(part)):
                writer.write_table(table)
        n_bytes = self._put(whole, sink.getbuffer())
        for part in parts:
            self.remove(part)
        return whole, n_bytes

    def rewrite(self, file: ArchiveFile, keep: Callable[[pa.Table], pa.Table]) -> int:
        """Put what `keep` leaves of each row group in place of a file; return the rows gone."""
        sink, n_gone = io.BytesIO(), 0
        with pq.ParquetWriter(sink, self.schema(file), compression=_COMPRESSION) as writer:
            for table in self.rows(file):
                kept = keep(table)
                n_gone += table.num_rows - kept.num_rows
                writer.write_table(kept)
        if n_gone:
            self._put(file, sink.getbuffer())
        return n_gone


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables, so that a merged file has few row groups."""
    held: list[pa.Table] = []
    for table in tables:
        # Metadata say where a writer stood: they differ, and the last file's are kept.
        held.append(table.replace_schema_metadata(None))
        if sum(rows.nbytes for rows in held) >= _GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _write_local(path: Path, data: memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    with unfinished.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what a file system raises into `ArchiveError`, but for a file that is not there."""
    try:
        yield
    except (ArchiveError, FileNotFoundError):
        raise
    except Exception as error:  # each file system raises its own
        raise ArchiveError(f"the archive: {type(error).__name__}: {error}") from error
