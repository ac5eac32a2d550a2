"""Fusion of modes: NDCG@10 with and without each mode, before and after training on behaviour.

    python -m bench.fusion [--encoder hash] [--retail PATH] [--movielens PATH] [--seeds N]

Real    what users did, and all words. "one text" is what `pushflow train fusion` makes of these
        data: title, genres and description together. In ml-latest-small titles, genres and tags
        (those given before the test) stand once more as three modes side by side.
Planted image and audio vectors of online-retail, for the data have neither. An item's image is
        made of its place among who bought what (the first 16 factors of all invoices, those of
        the test too, so that items new in the test have a look), turned into 256 columns, under
        noise of the same length and a common direction five times as long: what a mode that carries
        taste would bring, not what images bring. Its audio is noise: what a mode without any
        sense costs. Both are there for two items of three.
Leaves out  popularity, behaviour itself and the merge: see `pushflow evaluate candidates`.

The mean direction of a user's last 20 items ranks the whole catalogue, but what they know. In
online-retail it is asked before each invoice of the last tenth of time for the items of it that
are new to the customer, from what was bought before that invoice; in ml-latest-small for the
next film rated. Cold items were met by nobody in training. Ties count against the ranker.
`untrained` is the fusion that is fitted to the catalogue alone, `trained` what the command keeps
after training: the mean and the standard deviation over seeds. How far it goes, and whether at
all, is chosen on the tenth of time before (`models.fusion_judge`), as the settings were; the test
is asked once. A row leaves the named modes to both: the fusion is the same one.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.fusion import histories_of
from flows.recorded import Recording, movielens, retail
from flows.training import recorded_events, recorded_items
from models.dataset import Histories, requests_at, time_split
from models.encoders import TextEncoder, load_encoder, mean_of_texts
from models.evaluate import ranks
from models.fusion import Fusion, ModeVectors
from models.fusion_judge import content_scores, split_targets, thinned
from models.fusion_training import FusionConfig, train_fusion
from operators.item_text import texts_of
from operators.messages import Item

RETAIL = Path("../shared/data/online-retail/online_retail.csv.gz")
MOVIELENS = Path("../shared/data/ml-latest-small")
GAP_S = 1_800
MAX_REQUESTS = 2_000  # for warm items, and as many for cold ones
IMAGE_COLUMNS, AUDIO_COLUMNS, FACTORS = 256, 128, 16
SHARE_WITH_MEDIA = 2 / 3
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.0f} s  {text}", flush=True)


class Asked(NamedTuple):
    """Requests: `at` is the events whose moment asks, `wanted` the item numbers from 0; (R,)."""

    at: NDArray[np.int64]
    wanted: NDArray[np.int64]


class Data(NamedTuple):
    """One data set: `names` is what each mode holds, in the order of text, image and audio."""

    name: str
    names: Sequence[str]
    histories: Histories
    vectors: ModeVectors
    warm: Asked
    cold: Asked


def planted(histories: Histories, n_items: int, rng: np.random.Generator) -> ModeVectors:
    """Return image vectors with taste and audio vectors without, (N, 256) and (N, 128)."""
    n_users = len(histories.user_ids)
    users = np.repeat(np.arange(n_users), np.diff(histories.offsets))
    met = np.zeros((n_users, n_items), np.float32)
    met[users, histories.rows - 1] = 1.0
    met /= np.sqrt(np.maximum(met.sum(axis=1, keepdims=True), 1))  # a wholesaler counts like one
    met /= np.sqrt(np.maximum(met.sum(axis=0, keepdims=True), 1e-9))
    _, axes = np.linalg.eigh(met.T @ met)
    factors = axes[:, -FACTORS - 1 : -1]  # the first is popularity
    factors /= np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-9)
    turn = np.linalg.qr(rng.normal(size=(IMAGE_COLUMNS, IMAGE_COLUMNS)))[0]
    noise = rng.normal(size=(n_items, IMAGE_COLUMNS)) / np.sqrt(IMAGE_COLUMNS)
    image = factors @ turn[:FACTORS] + noise + 5.0 * turn[-1]
    audio = rng.normal(size=(n_items, AUDIO_COLUMNS))
    for vectors in (image, audio):
        vectors[rng.random(n_items) >= SHARE_WITH_MEDIA] = np.nan
    return ModeVectors(None, image.astype(np.float32), audio.astype(np.float32))


def before_invoices(histories: Histories, targets: NDArray[np.int64]) -> Asked:
    """Return each target's item, asked for at the first event of its invoice."""
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    is_start = np.ones(len(users), np.bool_)
    is_start[1:] = (np.diff(users) > 0) | (np.diff(histories.time_s) > GAP_S)
    starts = np.flatnonzero(is_start)
    asked_at = starts[np.searchsorted(starts, targets, side="right") - 1]
    has_past = asked_at > histories.offsets[users[targets]]
    kept = thinned(np.flatnonzero(has_past), MAX_REQUESTS)
    return Asked(asked_at[kept], histories.rows[targets[kept]] - 1)


def as_they_come(histories: Histories, targets: NDArray[np.int64]) -> Asked:
    """Return each target's item, asked for just before it."""
    kept = thinned(targets, MAX_REQUESTS)
    return Asked(kept, histories.rows[kept] - 1)


def asked(
    histories: Histories, ask: Callable[[Histories, NDArray[np.int64]], Asked]
) -> tuple[Asked, Asked]:
    """Return the requests of the test for warm items, then for those that nobody trained on."""
    first, second = cuts_of(histories)
    warm, cold = split_targets(histories, second, None, cold_s=first)
    return ask(histories, warm), ask(histories, cold)


def load(recording: Recording) -> tuple[list[Item], Histories]:
    items = sorted(recorded_items(recording), key=lambda item: item.item_id)
    return items, histories_of(recorded_events(recording), [item.item_id for item in items])


def cuts_of(histories: Histories) -> tuple[int, int]:
    config = FusionConfig()
    return time_split(histories, validation=config.validation, test=config.test)


def one_text(name: str, data: Data, items: Sequence[Item], text: TextEncoder) -> Data:
    """Return the data with all words of an item in one text, as the command takes them."""
    words = mean_of_texts(text, [texts_of(item) for item in items])
    return data._replace(name=name, names=("one text (real)",), vectors=ModeVectors(words))


def retail_data(path: Path, text: TextEncoder) -> list[Data]:
    items, histories = load(retail(path))
    media = planted(histories, len(items), np.random.default_rng(0))
    words = mean_of_texts(text, [[item.title] for item in items])
    data = Data(
        "online-retail",
        ("title (real)", "image (planted)", "noise (planted)"),
        histories,
        media._replace(text=words),
        *asked(histories, before_invoices),
    )
    return [one_text("online-retail, one text", data, items, text), data]


def movielens_data(path: Path, text: TextEncoder) -> list[Data]:
    recording = movielens(path)
    items, histories = load(recording)
    test_ms = cuts_of(histories)[1] * 1_000
    tags: dict[str, list[str]] = {}
    for event in recorded_events(recording):
        if event.type == "comment" and event.item_id and event.time_ms < test_ms:
            tags.setdefault(event.item_id, []).append(event.text or "")
    given = [
        [[item.title] for item in items],
        [[" ".join(item.categories)] for item in items],
        [[" ".join(tags.get(item.item_id, ()))] for item in items],
    ]
    data = Data(
        "ml-latest-small",
        ("title (real)", "genres (real)", "tags (real)"),
        histories,
        ModeVectors(*(mean_of_texts(text, texts) for texts in given)),
        *asked(histories, as_they_come),
    )
    return [one_text("ml-latest-small, one text", data, items, text), data]


def rank_of(table: NDArray[np.float32], data: Data, of: Asked) -> NDArray[np.int64]:
    """Return the rank of each wanted item, shape (R,)."""
    score = content_scores(table)
    found = [np.empty(0, np.int64)]
    for start in range(0, len(of.wanted), 256):
        part = slice(start, start + 256)
        scores = score(requests_at(data.histories, of.at[part]))
        found.append(ranks(scores, np.arange(len(scores)), of.wanted[part]))
    return np.concatenate(found)


def measured(fusion: Fusion, vectors: ModeVectors, data: Data) -> dict[str, float]:
    """Return NDCG@10 and recall@100, warm and cold."""
    table, row = fusion.fuse(*vectors), {}
    for name, of in (("warm", data.warm), ("cold", data.cold)):
        rank = rank_of(table, data, of)
        gains = np.where(rank <= 10, 1 / np.log2(1.0 + rank), 0.0)
        row[f"{name} ndcg@10"] = float(gains.mean()) if len(rank) else 0.0
        row[f"{name} recall@100"] = float((rank <= 100).mean()) if len(rank) else 0.0
    return row


def rows_of(data: Data) -> dict[str, ModeVectors]:
    """Return the vectors by the modes that are left: all, without each, text alone."""
    there = [m for m, x in enumerate(data.vectors) if x is not None]
    if len(there) == 1:
        return {data.names[0]: data.vectors}
    left = {"all": there}
    left |= {f"without {data.names[m]}": [n for n in there if n != m] for m in there}
    left |= {f"{data.names[0]} alone": [0]}
    return {
        name: ModeVectors(*(x if m in modes else None for m, x in enumerate(data.vectors)))
        for name, modes in left.items()
    }


def trained(data: Data, seed: int) -> Fusion:
    """Return what training keeps."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fusion.pff"
        result = train_fusion(data.histories, data.vectors, path=path, seed=seed)
        told = result.metrics
        say(
            f"{data.name}, seed {seed}: {told['epochs']:.0f} epochs, share {told['share']:.2f}, "
            f"on validation warm {told['warm_gain']:+.4f}, cold {told['cold_gain']:+.4f}"
        )
        return Fusion.load(path)


def compare(data: Data, n_seeds: int) -> dict[str, dict[str, list[float]]]:
    """Return each row's measures: untrained, then trained by each seed."""
    say(f"{data.name}: {len(data.warm.at)} requests for warm items, {len(data.cold.at)} for cold")
    fusions = [Fusion.fitted(*data.vectors)]
    fusions += [trained(data, seed) for seed in range(1, n_seeds + 1)]
    found: dict[str, dict[str, list[float]]] = {}
    for name, vectors in rows_of(data).items():
        rows = [measured(fusion, vectors, data) for fusion in fusions]
        found[name] = {key: [row[key] for row in rows] for key in rows[0]}
    return found


def print_table(found: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    kinds = ("warm ndcg@10", "cold ndcg@10", "cold recall@100")
    print(f"\n{'':44}" + "".join(f"{kind:>26}" for kind in kinds))
    print(f"{'':44}" + f"{'untrained':>10}{'trained':>16}" * len(kinds))
    for data, rows in found.items():
        print(data)
        for name, row in rows.items():
            cells = [
                f"{row[kind][0]:10.4f}{np.mean(row[kind][1:]):9.4f} ±{np.std(row[kind][1:]):.4f}"
                for kind in kinds
            ]
            print(f"  {name:42}" + "".join(cells))


def main() -> None:
    """Print progress, a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="hash")
    parser.add_argument("--retail", type=Path, default=RETAIL)
    parser.add_argument("--movielens", type=Path, default=MOVIELENS)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    text = load_encoder(args.encoder)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for path, make in ((args.movielens, movielens_data), (args.retail, retail_data)):
        if path.exists():
            say(f"reading {path}")
            for data in make(path, text):
                found[data.name] = compare(data, args.seeds)
    print_table(found)
    rounded = {
        data: {
            name: {key: [round(value, 4) for value in values] for key, values in row.items()}
            for name, row in rows.items()
        }
        for data, rows in found.items()
    }
    print(json.dumps({"bench": "fusion", "encoder": text.id, "seeds": args.seeds, **rounded}))


if __name__ == "__main__":
    main()
