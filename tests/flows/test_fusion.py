"""`pushflow train fusion`: from recorded data, and from items with images, to a file."""

import io
from pathlib import Path

import numpy as np
import orjson
import pytest
import transformers
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.fusion import histories_of, teach_fusion, tell
from flows.media import load_media_encoders
from flows.settings import Catalog, Settings
from models.encoders import EncoderError
from models.fusion import Fusion, FusionMismatchError
from models.train import TrainResult
from operators.messages import Event, Item

GENRES = ["Western", "Musical", "Horror"]
T0_S = 1_500_000_000
COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250)]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Return a MovieLens folder: 30 films of 3 genres, 40 users who rate 8 of one each."""
    rng = np.random.default_rng(0)
    films = [f"{n},Film {n} ({1990 + n}),{GENRES[n % 3]}" for n in range(30)]
    ratings = [
        f"{user},{rng.integers(10) * 3 + user % 3},4.0,{T0_S + user * 100_000 + step * 60}"
        for user in range(40)
        for step in range(8)
    ]
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *films]))
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]))
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n")
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", "fusion", *arguments])


def test_a_fusion_is_trained_from_recorded_data_and_says_how_good_it_is(
    films: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fusion.pff"
    result = run("movielens", str(films), "--out", str(out), "--epochs", "2")
    assert result.exit_code == 0, result.output
    told = orjson.loads(result.stdout.splitlines()[-1])
    fusion = Fusion.load(out, {"text": "hash-1"})
    assert told["id"] == fusion.id and told["path"] == str(out)
    assert fusion.dims == (64, 0, 0)
    assert told["epochs"] == 2.0 and 0 < told["ndcg@10"] < 1 and 0 < told["start_ndcg@10"] < 1


def test_no_epochs_need_no_events(films: Path, tmp_path: Path) -> None:
    (films / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    out = tmp_path / "fusion.pff"
    result = run("movielens", str(films), "--out", str(out), "--epochs", "0")
    assert result.exit_code == 0, result.output
    assert Fusion.load(out).encoders["text"] == "hash-1"
    assert run("movielens", str(films), "--out", str(out)).exit_code == 1


def test_help_says_what_it_needs_and_what_comes_next() -> None:
    told = run("--help").output
    assert "PUSHFLOW_CATALOG__FUSION_PATH" in told
    assert "--epochs 0" in told


@pytest.mark.parametrize(("share", "is_told"), [(0.0, True), (0.5, False)])
def test_a_training_that_did_not_help_is_told(share: float, is_told: bool) -> None:
    console = Console(file=io.StringIO(), width=400)
    found = {"warm_gain": 0.001, "warm_gain_error": 0.002, "cold_gain": -0.0123}
    found |= {"cold_gain_error": 0.004, "cold_gain_requests": 321.0, "share": share}
    with console.capture() as said:
        tell(console, TrainResult(Path("fusion.pff"), "ab12", found))
    assert ("holds the untrained fusion" in said.get()) == is_told
    assert (
        "-0.0123 ± 0.0040 for items that nobody had had (321 requests)" in said.get()
    ) == is_told


def items_with_images(folder: Path) -> list[Item]:
    rng = np.random.default_rng(1)
    items = []
    for n in range(30):
        colour = np.clip(np.array(COLOURS[n % 3]) + rng.normal(0, 40, 3), 0, 255).astype(np.uint8)
        Image.new("RGB", (8, 8), tuple(colour.tolist())).save(folder / f"{n}.png")
        url = f"{folder}/{n}.png" if n != 29 else f"{folder}/none.png"
        items.append(Item(item_id=f"i{n:02d}", title=f"thing {n}", image_url=url))
    return items


def events_of_one_colour_each() -> list[Event]:
    rng = np.random.default_rng(2)
    return [
        Event(
            event_id=f"{user}-{step}",
            user_id=f"u{user}",
            type="view",
            item_id=f"i{rng.integers(9) * 3 + user % 3:02d}",
            time_ms=(T0_S + step * 60 + user * 100_000) * 1_000,
        )
        for user in range(40)
        for step in range(8)
    ]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    vit = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    transformers.set_seed(0)
    transformers.ViTModel(vit).save_pretrained(tmp_path / "vit")
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "vit")
    return Settings(
        catalog=Catalog(image_encoder=str(tmp_path / "vit"), media_roots=[str(tmp_path)])
    )


def test_images_are_read_from_files_and_what_is_alike_comes_to_lie_together(
    settings: Settings, tmp_path: Path
) -> None:
    items = items_with_images(tmp_path)
    result = teach_fusion(
        settings,
        events_of_one_colour_each(),
        items,
        tmp_path / "fusion.pff",
        epochs=6,
        seed=1,
        console=Console(quiet=True),
    )
    encoders = load_media_encoders(settings.catalog)
    fusion = Fusion.load(result.path, {"text": "hash-1"} | encoders.ids)
    assert fusion.dims == (64, 16, 0) and fusion.encoders["image"].startswith("vit:")
    assert encoders.image is not None
    files = [(tmp_path / f"{n}.png").read_bytes() for n in range(30)]
    rows = fusion.fuse(None, encoders.image.encode(files))  # (30, 64)
    cosines, colour = rows @ rows.T, np.arange(30) % 3
    is_alike = colour[:, None] == colour
    assert cosines[is_alike].mean() > cosines[~is_alike].mean() + 0.5
    with pytest.raises(FusionMismatchError, match="image encoder"):
        Fusion.load(result.path, {"text": "hash-1", "image": ""})


def test_files_are_read_from_nowhere_unless_a_root_is_named(settings: Settings) -> None:
    nowhere = settings.catalog.model_copy(update={"media_roots": []})
    with pytest.raises(EncoderError, match="MEDIA_ROOTS"):
        load_media_encoders(nowhere)
    assert load_media_encoders(Settings().catalog).ids == {"image": "", "audio": ""}


def test_too_few_events_are_told() -> None:
    with pytest.raises(ValueError, match="50 events of known items are too few"):
        histories_of(events_of_one_colour_each()[:50], [f"i{n:02d}" for n in range(30)])
