"""What users write: their searches and comments as vectors, in the space of the item texts.

Reads   texts of events, and an encoder.
Emits   the session's intent and the user's taste, as directions to search items by.
Owns    how much each text weighs, what happens when the encoder changes, and the cache of vectors.

A text counts in full for its user's taste, and half after 30 days. A search counts twice as much
for the session's intent as the one before it. Vectors of two encoders do not compare: the first
text of another encoder begins both sums anew, and what is left of an old one is not handed on.
"""

import base64
from collections.abc import Callable, Iterable
from itertools import islice
from sys import intern
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.encoders import HASH_ID
from models.neighbours import to_grid
from models.taste import add_text, direction_of, pack_vectors, unpack_vector
from models.text import encode_texts
from operators.messages import Event, UserSignal
from operators.user_state import UserState

Encode = Callable[[list[str]], NDArray[np.float32]]

# Characters of a text that are encoded: a search is shorter, and a comment's start says what it
# is about. It bounds what one event can cost `decide` to 1 ms, for 50 words never seen before.
MAX_CHARS: Final = 256
_HALF_LIFE_MS: Final = 30 * 86_400_000
_PER_SEARCH: Final = 0.5
_SEARCHES: Final = 1.0 / (1.0 - _PER_SEARCH)  # the weight of endless searches


class TextVectors:
    """Texts to packed vectors (`models.taste`), of one encoder.

    Parameters
    ----------
    encode
        Texts to vectors, float32, shape (N, TEXT_DIM), a row depending on its own text alone.
    kept
        Vectors remembered, >= 2: people search for the same things. About 0.3 kB each.

    Notes
    -----
    By `models.text` 25 µs for a text of three words known before, 30 µs more for each new word,
    1 µs for a text that is remembered (`python -m bench.written`).

    Examples
    --------
    >>> from models.text import encode_texts
    >>> vectors = TextVectors(encode_texts)
    >>> first, second, none = vectors.many(["red lamp", " red  lamp", "!"])
    >>> len(first), first == second, none
    (128, True, b'')
    """

    def __init__(self, encode: Encode, *, kept: int = 16_384) -> None:
        self._encode = encode
        self._kept = kept
        self._known: dict[str, bytes] = {}

    def many(self, texts: Iterable[str]) -> list[bytes]:
        """Return a packed vector for each text, b"" where it says nothing; one call to `encode`."""
        cut = [" ".join(text[:MAX_CHARS].split()) for text in texts]
        known = self._known
        missing = [text for text in dict.fromkeys(cut) if text not in known]
        if missing:
            if len(known) + len(missing) > self._kept:
                # Half of them at once: one by one would walk over the holes of all before.
                for text in list(islice(known, self._kept // 2)):
                    if text not in cut:
                        del known[text]
            vectors = to_grid(self._encode(missing))
            known.update(zip(missing, pack_vectors(vectors), strict=True))
        return [known[text] for text in cut]


class ServedTexts(NamedTuple):
    """How `decide` gets at the vectors of texts.

    The vectors of any other encoder than `inline` come later, as `operators.messages.UserSignal`.
    """

    encoder: Callable[[], str]  # the one that the catalogue serves now
    inline: str  # the one that is cheap enough for the hot path
    vectors: TextVectors  # of `inline`

    def vector(self, text: str) -> bytes:
        """Return the packed vector of a text, b"" where it is not made here."""
        if not text or self.encoder() != self.inline:
            return b""
        return self.vectors.many((text,))[0]


HASHED: Final = ServedTexts(lambda: HASH_ID, HASH_ID, TextVectors(encode_texts))
"""Where the catalogue's encoder is the one that needs no other process."""


def text_of(event: Event) -> str:
    """Return what the user wrote in a search or a comment, "" for any other event.

    >>> text_of(Event(event_id="e", user_id="u", type="search", time_ms=0, text="lamp"))
    'lamp'
    """
    return event.text or "" if event.type in ("search", "comment") else ""


def add_written(
    state: UserState, vector: bytes, encoder: str, time_ms: int, *, is_intent: bool
) -> None:
    """Fold the vector of a text into what is kept of its user.

    Parameters
    ----------
    vector
        Packed; b"" changes nothing.
    encoder
        The vector's.
    time_ms
        When it was written; late texts count for less.
    is_intent
        Whether it is a search of the session that goes on.

    Examples
    --------
    >>> red, lamp = TextVectors(lambda texts: np.eye(2, 64, dtype=np.float32)).many(["r", "l"])
    >>> state = UserState()
    >>> for vector in (red, lamp):
    ...     add_written(state, vector, "hash-1", 1_700_000_000_000, is_intent=True)
    >>> from models.taste import unpack_vector
    >>> for packed in written(state, "hash-1"): print(unpack_vector(packed)[:2].round(2).tolist())
    [0.44..., 0.88...]
    [0.70..., 0.70...]
    >>> written(state, "another")
    (b'', b'')
    """
    if not vector:
        return
    if state.encoder != encoder:
        state.encoder = intern(encoder)
        state.session.intent = state.taste = b""
        state.taste_weight, state.taste_ms = 0.0, 0
    if is_intent:
        intent = state.session.intent
        state.session.intent, _ = add_text(intent, _SEARCHES, vector, fade=_PER_SEARCH)
    newest_ms = max(state.taste_ms, time_ms)
    state.taste, state.taste_weight = add_text(
        state.taste,
        state.taste_weight,
        vector,
        2.0 ** ((time_ms - newest_ms) / _HALF_LIFE_MS),
        fade=2.0 ** ((state.taste_ms - newest_ms) / _HALF_LIFE_MS),
    )
    state.taste_ms = newest_ms


def add_signal(state: UserState, signal: UserSignal, encoder: str, gap_ms: int) -> str:
    """Fold in a text that was encoded elsewhere; return why not, or "".

    Parameters
    ----------
    signal
        Of type "searched" or "commented".
    encoder
        The one that the catalogue serves now.
    gap_ms
        Longest pause inside a session: it may have gone on since, or its event is yet to come.
    """
    if signal.encoder != encoder:
        return "other_encoder"
    try:
        vector = base64.b64decode(signal.vector, validate=True)
        unpack_vector(vector)
    except ValueError:
        return "bad_vector"
    session, time_ms = state.session, signal.time_ms
    is_current = session.events > 0 and session.start_ms <= time_ms <= session.last_ms + gap_ms
    is_intent = is_current and signal.type == "searched"
    add_written(state, vector, encoder, time_ms, is_intent=is_intent)
    return ""


def written(state: UserState, encoder: str) -> tuple[bytes, bytes]:
    """Return the directions of the session's intent and of the user's taste, packed.

    b"" where there is none, or none of `encoder`.
    """
    if state.encoder != encoder:
        return b"", b""
    return direction_of(state.session.intent), direction_of(state.taste)
