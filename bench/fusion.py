"""Fusion of modes: NDCG@10 with and without each mode, before and after training on behaviour.

    python -m bench.fusion [--encoder hash] [--retail PATH] [--movielens PATH] [--epochs N]

Real    what users did, and all words: titles of online-retail; titles, genres and tags of
        ml-latest-small, where genres and tags (those given before the test) stand as two more
        modes of their own beside the titles.
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
next film rated. Cold items were met by nobody in training. Ties count against the ranker. `start`
is the fusion that is fitted to the catalogue alone, `trained` what behaviour made of it, and a
row leaves the named modes to both: the fusion is the same one.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.fusion import histories_of
from flows.recorded import Recording, movielens, retail
from flows.training import recorded_events, recorded_items
from models.dataset import Histories, popularity, requests_at, time_split
from models.encoders import TextEncoder, load_encoder, mean_of_texts
from models.evaluate import ranks
from models.fusion import Fusion, ModeVectors
from models.fusion_training import FusionConfig, content_scores, new_targets, train_fusion
from operators.messages import Item

RETAIL = Path("../shared/data/online-retail/online_retail.csv.gz")
MOVIELENS = Path("../shared/data/ml-latest-small")
GAP_S = 1_800
MAX_REQUESTS = 4_000
IMAGE_COLUMNS, AUDIO_COLUMNS, FACTORS = 256, 128, 16
SHARE_WITH_MEDIA = 2 / 3


class Data(NamedTuple):
    """One data set: `names` is what each mode holds, `asked_at` the events whose moment asks."""

    name: str
    names: Sequence[str]
    histories: Histories
    vectors: ModeVectors
    is_cold: NDArray[np.bool_]  # shape (N,)
    asked_at: NDArray[np.int64]  # shape (R,), events
    wanted: NDArray[np.int64]  # shape (R,), item numbers from 0


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


def before_invoices(
    histories: Histories, targets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each target's item, asked for at the first event of its invoice."""
    users = np.repeat(np.arange(len(histories.user_ids)), np.diff(histories.offsets))
    is_start = np.ones(len(users), np.bool_)
    is_start[1:] = (np.diff(users) > 0) | (np.diff(histories.time_s) > GAP_S)
    starts = np.flatnonzero(is_start)
    asked_at = starts[np.searchsorted(starts, targets, side="right") - 1]
    has_past = asked_at > histories.offsets[users[targets]]
    return asked_at[has_past], histories.rows[targets[has_past]] - 1


def load(recording: Recording) -> tuple[list[Item], Histories]:
    items = sorted(recorded_items(recording), key=lambda item: item.item_id)
    return items, histories_of(recorded_events(recording), [item.item_id for item in items])


def cuts_of(histories: Histories) -> tuple[int, int]:
    config = FusionConfig()
    return time_split(histories, validation=config.validation, test=config.test)


def retail_data(path: Path, text: TextEncoder) -> Data:
    items, histories = load(retail(path))
    first, second = cuts_of(histories)
    media = planted(histories, len(items), np.random.default_rng(0))
    words = mean_of_texts(text, [[item.title] for item in items])
    targets = new_targets(histories, second, None, limit=3 * MAX_REQUESTS)
    asked_at, wanted = before_invoices(histories, targets)
    return Data(
        "online-retail",
        ("title (real)", "image (planted)", "noise (planted)"),
        histories,
        media._replace(text=words),
        popularity(histories, len(items), until_s=first)[1:] == 0,
        asked_at[:MAX_REQUESTS],
        wanted[:MAX_REQUESTS],
    )


def movielens_data(path: Path, text: TextEncoder) -> Data:
    recording = movielens(path)
    items, histories = load(recording)
    first, second = cuts_of(histories)
    tags: dict[str, list[str]] = {}
    for event in recorded_events(recording):
        if event.type == "comment" and event.item_id and event.time_ms < second * 1_000:
            tags.setdefault(event.item_id, []).append(event.text or "")
    given = [
        [[item.title] for item in items],
        [[" ".join(item.categories)] for item in items],
        [[" ".join(tags.get(item.item_id, []))] for item in items],
    ]
    targets = new_targets(histories, second, None, limit=MAX_REQUESTS)
    return Data(
        "ml-latest-small",
        ("title (real)", "genres (real)", "tags (real)"),
        histories,
        ModeVectors(*(mean_of_texts(text, texts) for texts in given)),
        popularity(histories, len(items), until_s=first)[1:] == 0,
        targets,
        histories.rows[targets] - 1,
    )


def rank_of(table: NDArray[np.float32], data: Data) -> NDArray[np.int64]:
    """Return the rank of each wanted item, shape (R,)."""
    score = content_scores(table)
    found = []
    for start in range(0, len(data.wanted), 256):
        part = slice(start, start + 256)
        scores = score(requests_at(data.histories, data.asked_at[part]))
        found.append(ranks(scores, np.arange(len(scores)), data.wanted[part]))
    return np.concatenate(found)


def ndcg(rank: NDArray[np.int64]) -> float:
    return float(np.where(rank <= 10, 1 / np.log2(1.0 + rank), 0.0).mean()) if len(rank) else 0.0


def measure(data: Data, config: FusionConfig, seed: int) -> dict[str, dict[str, float]]:
    """Return NDCG@10 and recall@100 by the modes that are left, before and after training."""
    with tempfile.TemporaryDirectory() as folder:
        result = train_fusion(
            data.histories, data.vectors, path=Path(folder) / "f", config=config, seed=seed
        )
        trained = Fusion.load(result.path)
    fusions = {"start": Fusion.fitted(*data.vectors), "trained": trained}
    is_cold = data.is_cold[data.wanted]
    table: dict[str, dict[str, float]] = {}
    for left in ((0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)):
        vectors = ModeVectors(*(x if m in left else None for m, x in enumerate(data.vectors)))
        row = {}
        for name, fusion in fusions.items():
            rank = rank_of(fusion.fuse(*vectors), data)
            row[f"{name} ndcg@10"] = ndcg(rank)
            row[f"{name} recall@100"] = float((rank <= 100).mean())
            row[f"{name} cold recall@100"] = float((rank[is_cold] <= 100).mean())
        table[" + ".join(data.names[m] for m in left)] = row
    shares = trained.blend(*data.vectors)[1].mean(axis=0)
    print(
        f"{data.name}: {len(data.is_cold)} items, {len(data.wanted)} requests, "
        f"{int(is_cold.sum())} of them for cold items; {result.metrics['epochs']:.0f} epochs"
    )
    print(f"{'':52s}     start                  trained\n{'':52s}" + "  ndcg  r@100   cold" * 2)
    for name, row in table.items():
        print(f"  {name:50s}" + "".join(f" {value:6.4f}" for value in row.values()))
    print(
        "  mean share of the gate: "
        + ", ".join(f"{name} {share:.2f}" for name, share in zip(data.names, shares, strict=True))
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="hash")
    parser.add_argument("--retail", type=Path, default=RETAIL)
    parser.add_argument("--movielens", type=Path, default=MOVIELENS)
    parser.add_argument("--epochs", type=int, default=FusionConfig.epochs)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    text = load_encoder(args.encoder)
    config = FusionConfig(epochs=args.epochs)
    result: dict[str, object] = {"bench": "fusion", "encoder": text.id, "seed": args.seed}
    for path, make in ((args.retail, retail_data), (args.movielens, movielens_data)):
        if path.exists():
            data = make(path, text)
            table = measure(data, config, args.seed)
            result[data.name] = {
                name: {key: round(value, 4) for key, value in row.items()}
                for name, row in table.items()
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
