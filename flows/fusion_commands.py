"""`pushflow train fusion`: names and help of the commands.

Owns    names and help; the work is in `flows.fusion`, which is loaded when a command runs.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import orjson
import typer
from rich.console import Console

if TYPE_CHECKING:
    from flows.settings import Settings
    from operators.messages import Event, Item

console = Console(stderr=True)

Out = Annotated[Path, typer.Option(help="The fusion file to write.")]
Epochs = Annotated[
    int, typer.Option(min=0, help="At most; training stops when it has enough. 0: no events.")
]
Seed = Annotated[int, typer.Option(help="Of the order of batches and the modes left out.")]
Until = Annotated[str | None, typer.Option(help="Leave out events from then on, 2011-06-01.")]

_HELP = """Train the fusion of item text, images and sound into one vector.

Items that users have together, in one invoice or visit, are pulled together, and an item
is known by any of its modes: one that has only an image is found beside those it looks
like. Text alone gains too: a sentence encoder's vectors are centred, and fitted to the shop.

The encoders are those of the settings, and the file fits no others:
PUSHFLOW_CATALOG__ENCODER of text, __IMAGE_ENCODER and __AUDIO_ENCODER of files under
__MEDIA_ROOTS. Items may bring image_vector and audio_vector in their place.

1. pushflow train fusion topics --out fusion.pff
2. Compare ndcg@10 with start_ndcg@10 (the same without behaviour) and with
without_image_ndcg@10: if a mode adds nothing, leave it out. Where training helps items that
nobody has had yet no more than chance would, the command says so and keeps the untrained fusion.
3. PUSHFLOW_CATALOG__FUSION_PATH=fusion.pff for catalog and decide, then start catalog:
it encodes all items anew, and decide changes over when the last one is there.

--epochs 0 needs no events: it only finds the centre and the main directions of the items'
vectors, which a large encoder's vectors need before 64 columns of them can be compared.
"""


def make_app(settings: "Callable[[], Settings]", fail: Callable[[str], NoReturn]) -> typer.Typer:
    """Return the commands; `settings` and `fail` are those of `flows.cli`."""
    app = typer.Typer(help=_HELP, no_args_is_help=True)

    def train(
        events: "Iterable[Event]", items: "Iterable[Item]", out: Path, epochs: int, seed: int
    ) -> None:
        try:
            from flows.fusion import teach_fusion, tell
        except ImportError as error:
            fail(f"{error}. Training needs torch: pip install 'pushflow[train]'")
        from models.encoders import EncoderError
        from operators.kafka_client import KafkaFailure

        try:
            result = teach_fusion(
                settings(), events, items, out, epochs=epochs, seed=seed, console=console
            )
        except (EncoderError, KafkaFailure, ValueError) as error:
            fail(str(error))
        tell(console, result)
        found = {"path": str(result.path), "id": result.version, **result.metrics}
        sys.stdout.write(orjson.dumps(found).decode() + "\n")

    @app.command()
    def retail(
        path: Annotated[Path, typer.Argument(help="online_retail.csv or .csv.gz", exists=True)],
        out: Out = Path("fusion.pff"),
        until: Until = None,
        epochs: Epochs = 6,
        seed: Seed = 1,
    ) -> None:
        """Train on an online shop's invoices."""
        from flows.recorded import retail as recorded
        from flows.training import recorded_events, recorded_items

        recording = recorded(path)
        train(recorded_events(recording, until), recorded_items(recording), out, epochs, seed)

    @app.command()
    def movielens(
        path: Annotated[Path, typer.Argument(help="Folder with ratings.csv and movies.csv.")],
        out: Out = Path("fusion.pff"),
        until: Until = None,
        epochs: Epochs = 6,
        seed: Seed = 1,
    ) -> None:
        """Train on MovieLens ratings."""
        from flows.recorded import movielens as recorded
        from flows.training import recorded_events, recorded_items

        if not (path / "ratings.csv").is_file():
            fail(f"{path} has no ratings.csv: give the folder of a MovieLens data set")
        recording = recorded(path)
        train(recorded_events(recording, until), recorded_items(recording), out, epochs, seed)

    @app.command()
    def topics(out: Out = Path("fusion.pff"), epochs: Epochs = 6, seed: Seed = 1) -> None:
        """Train on what push.events.v1 and push.items.v1 hold now."""
        from flows.training import topic_events, topic_items

        current = settings()
        train(topic_events(current), topic_items(current), out, epochs, seed)

    return app
