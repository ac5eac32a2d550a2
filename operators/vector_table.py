"""The items' vectors that `decide` searches, read as a global table, and the encoder they are of.

Reads   `push.item-vectors.v1`: vectors by encoder and item, and each shard's word that its are all
        there.
Emits   vectors to the catalogue, of one encoder at a time.
Owns    which encoder serves: of those whose vectors are all there, the one that came last.

Vectors of the next encoder are kept beside those in use, and take their place in one step, between
two batches: a query and the items it is held against are always of one encoder. Until an encoder
is whole for the first time, `decide` goes on with its own hashed text.
"""

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from models.features import TEXT_DIM
from operators.messages import ItemVector

_BYTES: Final = 2 * TEXT_DIM


class Index(Protocol):
    """What is asked of `operators.catalogue.Catalogue`."""

    @property
    def encoder(self) -> str:
        """Id of the encoder that serves."""
        ...

    def apply_vector(self, item_id: str, vector: bytes | None) -> None:
        """Take a vector of the encoder that serves, or its removal."""
        ...

    def serve_encoder(self, encoder: str, vectors: Mapping[str, bytes]) -> None:
        """Search these vectors from now on, and no others."""
        ...


class ShardWord(NamedTuple):
    """What a shard of `catalog` says of an encoder."""

    n_shards: int
    n_items: int
    since_ms: int


class VectorTable:
    """Vectors on their way into the catalogue.

    Parameters
    ----------
    index
        The catalogue.

    Notes
    -----
    Vectors of encoders that do not serve (yet): about 300 bytes each, for as long as the topic has
    them. Those that serve are in the catalogue alone.

    Examples
    --------
    >>> class Printed:
    ...     encoder = "hash-1"
    ...     def apply_vector(self, item_id, vector):
    ...         print("one", item_id, vector is not None)
    ...     def serve_encoder(self, encoder, vectors):
    ...         self.encoder = encoder
    ...         print("all", encoder, sorted(vectors))
    >>> table = VectorTable(Printed())
    >>> vector = "A" * 170 + "A="  # 128 zero bytes
    >>> table.apply("e1#i00", ItemVector(encoder="e1", shard="i00", n_shards=1, n_items=2))
    >>> table.apply("e1/a", ItemVector(encoder="e1", item_id="a", vector=vector))
    >>> table.refresh()
    False
    >>> table.apply("e1/b", ItemVector(encoder="e1", item_id="b", vector=vector))
    >>> table.refresh()
    all e1 ['a', 'b']
    True
    >>> table.apply("e1/a", None)
    one a False
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._vectors: dict[str, dict[str, bytes]] = {}  # by encoder and item
        self._words: dict[str, dict[str, ShardWord]] = {}  # by encoder and shard
        self._is_changed = False

    def apply(self, key: str, row: ItemVector | None) -> None:
        """Take a row, or its removal, by the key `<encoder>/<item>` or `<encoder>#<shard>`.

        Raises
        ------
        ValueError
            For a vector that is none.
        """
        encoder, is_item, name = key.partition("/")
        if is_item:
            self._apply_vector(encoder, name, None if row is None else _unpacked(row.vector))
        else:
            encoder, _, shard = key.rpartition("#")
            self._apply_word(encoder, shard, row)

    def _apply_vector(self, encoder: str, item_id: str, vector: bytes | None) -> None:
        if encoder == self._index.encoder:
            self._index.apply_vector(item_id, vector)
            return
        self._is_changed = True
        if vector is not None:
            self._vectors.setdefault(encoder, {})[item_id] = vector
        elif encoder in self._vectors:
            self._vectors[encoder].pop(item_id, None)
            if not self._vectors[encoder]:
                del self._vectors[encoder]

    def _apply_word(self, encoder: str, shard: str, row: ItemVector | None) -> None:
        self._is_changed = True
        words = self._words.setdefault(encoder, {})
        if row is not None:
            words[shard] = ShardWord(row.n_shards, row.n_items, row.since_ms)
        else:
            words.pop(shard, None)
        if not words:
            del self._words[encoder]

    def refresh(self) -> bool:
        """Serve a newer encoder if all of its vectors are here, and say whether that is so now.

        To be called between batches. Serving another takes about 5 µs an item, and as long as the
        index takes to be built.
        """
        if not self._is_changed:
            return False
        self._is_changed = False
        serving = self._since(self._index.encoder)
        whole = [name for name in self._words if self._is_whole(name)]
        newest = max(whole, key=self._since, default="")
        if not newest or newest == self._index.encoder or self._since(newest) <= serving:
            return False
        self._index.serve_encoder(newest, self._vectors.pop(newest, {}))
        return True

    def _is_whole(self, encoder: str) -> bool:
        words = self._words[encoder].values()
        n_shards = max(word.n_shards for word in words)
        n_items = sum(word.n_items for word in words)
        return len(words) >= n_shards and len(self._vectors.get(encoder, ())) >= n_items

    def _since(self, encoder: str) -> int:
        words = self._words.get(encoder, {}).values()
        return max((word.since_ms for word in words), default=-1)


def _unpacked(vector: str) -> bytes:
    try:
        unpacked = b64decode(vector, validate=True)
    except Base64Error as error:
        raise ValueError(f"a vector that is no base64: {error}") from error
    if len(unpacked) != _BYTES:
        raise ValueError(f"a vector of {len(unpacked)} bytes, expected {_BYTES}")
    return unpacked
