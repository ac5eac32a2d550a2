"""Item text as vectors, without a language model: the default that needs no download.

Reads   texts in any language.
Emits   float32 rows of `TEXT_DIM` columns and length 1.

Each word, and each group of three letters inside it, is a feature; a feature's vector is the
bits of its hash, read as signs. Texts that share words or parts of words point the same way,
and unrelated ones are nearly at right angles (the cosine of two random sign vectors of 64
columns has standard deviation 1/8). Chinese, Japanese and Korean have no spaces, so there the
features are single characters and pairs.

Why whole sign vectors, and not one column a feature: with 64 columns two of 20 categories
share a column nearly always, and the student could never tell them apart.

References
----------
Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009.
Achlioptas, "Database-friendly random projections", JCSS 2003.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.features import TEXT_DIM

# Kana, CJK ideographs with extension A and compatibility forms, Hangul, extensions B and on.
_CJK: Final = (
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
)
_TOKEN: Final = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK: Final = re.compile(rf"[{_CJK}]")
# A word's letter groups together weigh half as much as the word: enough to tie "lamp" to
# "lamps", too little for a shared ending to look like a shared subject.
_GRAMS_WEIGHT: Final = 0.5
_MAX_CHARS: Final = 4096  # of one text; bounds the work a single item can cause
_DIGESTS: Final = -(-TEXT_DIM // 64)  # hashes of 64 bits for one vector
_DESCRIPTION_CHARS: Final = 300  # of a description: what follows is mostly boilerplate


def item_text(
    title: str,
    description: str = "",
    categories: Iterable[str] = (),
    tags: Iterable[str] = (),
) -> str:
    """Return the one text that stands for an item, the same in training and serving.

    >>> item_text("Red lamp", categories=["home", "light"], tags=["warm"])
    'Red lamp home light warm'
    """
    parts = (title, *categories, *tags, description[:_DESCRIPTION_CHARS])
    return " ".join(part for part in parts if part)


def encode_texts(texts: list[str]) -> NDArray[np.float32]:
    """Return one vector for each text, float32, shape (N, TEXT_DIM), of length 1.

    A text without any letter or digit gives zeros. A row depends on its own text alone, and
    is the same on every machine and in every process. About 13 µs for a text of five words known
    before, and 30 µs for each new word.

    >>> a, b, c = encode_texts(["Red table lamp", "red LAMPS for tables", "garden hose"])
    >>> bool(a @ b > 0.3 > abs(a @ c))
    True
    >>> a, b, c = encode_texts(["红色台灯", "台灯", "花园水管"])
    >>> bool(a @ b > 0.5 > abs(a @ c))
    True
    >>> bool(encode_texts(["", "..."]).any()), encode_texts([]).shape
    (False, (0, 64))
    """
    rows = np.zeros((len(texts), TEXT_DIM), np.float64)
    for i, text in enumerate(texts):
        # Counter keeps the order of first sight, so the sum is the same in every process.
        row = rows[i]
        for token, count in Counter(_tokens(text)).items():
            vector = _token_vector(token)
            row += vector if count == 1 else (1.0 + np.log(count)) * vector  # sublinear frequency
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    folded = unicodedata.normalize("NFKC", text[:_MAX_CHARS]).casefold()
    for run in _TOKEN.findall(folded):
        if _IS_CJK.match(run):
            tokens += run
            tokens += (run[i : i + 2] for i in range(len(run) - 1))
        else:
            tokens.append(run)
    return tokens


@lru_cache(maxsize=32_768)  # at most 32,768 x 64 float64, 17 MB
def _token_vector(token: str) -> NDArray[np.float64]:
    padded = f"<{token}>"
    grams = [f"g{padded[i : i + 3]}" for i in range(len(padded) - 2)]
    if len(grams) < 2 or _IS_CJK.match(token):  # a group that is the word itself says no more
        return _signs([f"w{token}"])[0]  # type: ignore[no-any-return]
    signs = _signs([f"w{token}", *grams])  # (1 + n, TEXT_DIM)
    # Whole numbers, so the sum is the same in any order.
    vector: NDArray[np.float64] = signs[0] + _GRAMS_WEIGHT / np.sqrt(len(grams)) * signs[1:].sum(0)
    return vector


def _signs(features: list[str]) -> NDArray[np.float64]:
    """Return the features' vectors, shape (n, TEXT_DIM), each column +1 or -1."""
    digests = [
        xxhash.xxh3_64_intdigest(feature.encode(), seed=seed)
        for feature in features
        for seed in range(_DIGESTS)
    ]
    octets = np.array(digests, "<u8").view(np.uint8)
    bits = np.unpackbits(octets).reshape(len(features), -1)[:, :TEXT_DIM]
    return bits.astype(np.float64) * 2.0 - 1.0
