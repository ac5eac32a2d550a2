"""`pushflow train fusion`: from items and what users did to a fusion file.

Reads   items and events, whatever they come from, and the settings of the catalogue.
Emits   a file for PUSHFLOW_CATALOG__FUSION_PATH, and the numbers that judge it.
Owns    what a person sees while it runs. Needs torch; serving does not.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flows.media import MediaEncoders, item_media, load_media_encoders
from flows.settings import Catalog, Settings
from models.dataset import Histories, build_histories
from models.encoders import TextEncoder, load_encoder, mean_of_texts
from models.features import EVENT_CODE
from models.fusion import Fusion, ModeVectors, Vectors
from models.fusion_training import FusionConfig, train_fusion
from models.train import Progress as TrainingProgress
from models.train import TrainResult
from operators.item_text import texts_of
from operators.messages import Event, Item

_PROGRESS_EVERY = 10_000
_MIN_EVENTS = 100  # fewer say nothing of which items belong together

OnCount = Callable[[int], None]


def teach_fusion(
    settings: Settings,
    events: Iterable[Event],
    items: Iterable[Item],
    path: Path,
    *,
    epochs: int,
    seed: int,
    console: Console,
) -> TrainResult:
    """Train a fusion by the encoders of the settings; 0 epochs fit it to the items alone.

    Raises
    ------
    ValueError
        If there is too little to train on.
    models.encoders.EncoderError
        If an encoder cannot be had.
    """
    catalog = settings.catalog
    text = load_encoder(
        catalog.encoder,
        query_prefix=catalog.query_prefix,
        passage_prefix=catalog.passage_prefix,
    )
    media = load_media_encoders(catalog)
    ids = {"text": text.id} | media.ids
    known = sorted(items, key=lambda item: item.item_id)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        encoding = progress.add_task("encoding items", total=len(known))
        vectors = vectors_of(
            known, catalog, text, media, lambda n: progress.update(encoding, completed=n)
        )
        if not epochs:
            fusion = Fusion.fitted(*vectors, encoders=ids)
            return TrainResult(path, fusion.save(path), {})
        reading = progress.add_task("reading events", total=None)
        histories = histories_of(
            events,
            [item.item_id for item in known],
            lambda n: progress.update(reading, description=f"reading events: {n:,}"),
        )
        progress.update(reading, total=1, completed=1)
        fitting = progress.add_task("training", total=None)

        def show(at: TrainingProgress) -> None:
            text = f"epoch {at.epoch}, loss {at.loss:.3f}, gained {at.ndcg:+.4f}"
            progress.update(fitting, description=text, completed=at.done, total=at.total)

        return train_fusion(
            histories,
            vectors,
            path=path,
            encoders=ids,
            config=FusionConfig(epochs=epochs, session_gap_s=settings.time.session_gap_seconds),
            seed=seed,
            on_progress=show,
        )


def vectors_of(
    items: Sequence[Item],
    catalog: Catalog,
    text: TextEncoder,
    media: MediaEncoders,
    on_progress: OnCount = lambda _: None,
) -> ModeVectors:
    """Return the items' vectors by mode, as `catalog` makes them; all of them in memory."""
    widths = (
        media.image.dim if media.image else _common_width(item.image_vector for item in items),
        media.audio.dim if media.audio else _common_width(item.audio_vector for item in items),
    )
    image, audio = item_media(catalog, media, *widths)
    parts: list[ModeVectors] = []
    for start in range(0, len(items), catalog.batch_items):
        batch = items[start : start + catalog.batch_items]
        words = mean_of_texts(text, [texts_of(item) for item in batch])
        looks = image.rows([i.image_vector for i in batch], [i.image_url for i in batch])
        sounds = audio.rows([i.audio_vector for i in batch], [i.audio_url for i in batch])
        parts.append(ModeVectors(words, looks, sounds))
        on_progress(start + len(batch))
    return ModeVectors(*(_joined(of_mode) for of_mode in zip(*parts, strict=True)))


def histories_of(
    events: Iterable[Event], item_ids: Sequence[str], on_progress: OnCount = lambda _: None
) -> Histories:
    """Return what users did with known items, without contexts; about 200 bytes an event.

    Raises
    ------
    ValueError
        If there is hardly any.
    """
    known = frozenset(item_ids)
    users: list[str] = []
    named: list[str] = []
    types: list[int] = []
    times: list[int] = []
    for n, event in enumerate(events, start=1):
        if event.item_id is not None and event.item_id in known:
            users.append(event.user_id)
            named.append(event.item_id)
            types.append(EVENT_CODE[event.type])
            times.append(event.time_ms // 1_000)
        if n % _PROGRESS_EVERY == 0:
            on_progress(n)
    if len(users) < _MIN_EVENTS:
        raise ValueError(
            f"{len(users)} events of known items are too few to train on: at least {_MIN_EVENTS}, "
            "and their items must be among the items given. --epochs 0 needs no events"
        )
    return build_histories(users, named, types, times, item_ids=item_ids)


def tell(console: Console, result: TrainResult) -> None:
    """Print where the file is, and how good it is."""
    console.print(f"-> {result.path} (id {result.version})")
    found = result.metrics
    if found.get("share") == 0.0:
        console.print(
            "Training did not surely help, so the file holds the untrained fusion, that of "
            "--epochs 0. On events after those it learned from, NDCG@100 changed by "
            f"{found['cold_gain']:+.4f} ± {found['cold_gain_error']:.4f} for items that nobody had "
            f"had ({found['cold_gain_requests']:.0f} requests) and by "
            f"{found['warm_gain']:+.4f} ± {found['warm_gain_error']:.4f} for the others.",
            highlight=False,
        )
    for name, value in result.metrics.items():
        console.print(f"  {name:24} {value:.4f}", highlight=False)


def _common_width(vectors: Iterable[Sequence[float]]) -> int:
    counts = Counter(len(vector) for vector in vectors if vector)
    return max(counts, key=lambda width: (counts[width], width), default=0)


def _joined(parts: Sequence[Vectors]) -> Vectors:
    rows = [part for part in parts if part is not None]
    return np.concatenate(rows) if rows else None
