"""Item text: cleaned of what a web page needed, and once for each language."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.catalogue import Catalogue
from operators.item_text import (
    MAX_TEXTS,
    clean_text,
    content_key,
    guess_language,
    own_text,
    texts_of,
)
from operators.messages import Item, LocalText


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain words", "plain words"),
        ("<p>one</p><p>two</p>", "one two"),
        ("wire<b>less</b> <i class='x'>mouse</i>", "wireless mouse"),
        ("line<br/>break<BR>here", "line break here"),
        ("a &lt; b &amp; c &gt; d", "a < b & c > d"),
        ("5 < 6, I <3 tea", "5 < 6, I <3 tea"),
        ("&amp;lt;b&amp;gt;escaped&amp;lt;/b&amp;gt; twice", "escaped twice"),
        ("&eacute;t&#233; &#x1F600;", "été 😀"),
        ("seen<script>if (a < b) hide()</script><style>p {}</style>", "seen"),
        ("kept <!-- not <b>this</b> -->too", "kept too"),
        ("soft\u00adhyphen\u200b zero\ufeff", "softhyphen zero"),
        ("tab\tand\r\nline\u00a0space\u3000wide", "tab and line space wide"),
        ("bell\x07 nul\x00end", "bell nul end"),
        ("\u202eright to left\u202c", "right to left"),
        ("e\u0301clair", "éclair"),
        ("👩\u200d🚀", "👩\u200d🚀"),  # a joiner that joins stays
        ("<p>红色&nbsp;台灯</p>", "红色 台灯"),
        ("", ""),
        ("<br><hr>", ""),
    ],
)
def test_markup_goes_and_words_stay(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@given(st.text(max_size=300))
def test_what_is_clean_stays_as_it_is_and_holds_nothing_that_is_not_seen(raw: str) -> None:
    words = raw.replace("<", "").replace("&", "")  # what unescapes to markup is cleaned further
    clean = clean_text(words)

    assert clean_text(clean) == clean
    assert clean == clean.strip()
    assert not any(c.isspace() and c != " " for c in clean)
    assert "\x00" not in clean


@given(st.text(alphabet="<>!-/ab&;lt\x00 ", max_size=200))
def test_any_markup_however_broken_is_taken(raw: str) -> None:
    assert "\x00" not in clean_text(raw)


@pytest.mark.parametrize("piece", ["<!--", "<script>", "<", "&amp;", "<b ", "</"])
def test_a_text_of_the_longest_kind_of_nonsense_takes_no_time(piece: str) -> None:
    text = piece * (4_096 // len(piece))

    assert len(clean_text(text)) <= len(text)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("红色台灯", "zh"),
        ("赤いランプ", "ja"),
        ("빨간 램프", "ko"),
        ("โคมไฟ", "th"),
        ("κόκκινη λάμπα", "el"),
        ("The lamp is for the desk and the wall", "en"),
        ("Die Lampe ist für den Tisch und die Wand", "de"),
        ("La lampe est pour la table et le mur", "fr"),
        ("Lamp X200", ""),  # a name says nothing
        ("красная лампа", ""),  # a script of many languages neither
        ("", ""),
    ],
)
def test_a_language_is_named_where_the_text_says_it(text: str, language: str) -> None:
    assert guess_language(text) == language


def test_a_locale_in_the_items_own_language_is_not_encoded_twice() -> None:
    item = Item(
        item_id="i",
        title="台灯",
        locales={"zh-TW": LocalText(title="檯燈"), "en-US": LocalText(title="Lamp")},
    )

    assert texts_of(item) == ["台灯", "Lamp"]


def test_all_parts_of_an_item_are_read_in_their_locale() -> None:
    item = Item(
        item_id="i",
        title="<b>Lamp</b>",
        description="Gives&nbsp;light",
        categories=["home &amp; garden"],
        tags=["warm"],
        locales={"zh": LocalText(title="台灯", description="<p>发光</p>")},
    )

    assert texts_of(item) == [
        "Lamp home & garden warm Gives light",
        "台灯 home & garden warm 发光",
    ]


def test_an_item_costs_no_more_than_a_few_texts() -> None:
    locales = {f"{a}{b}": LocalText(title=f"title {a}{b}") for a in "abc" for b in "defgh"}

    assert len(texts_of(Item(item_id="i", title="Lamp", locales=locales))) == MAX_TEXTS


def test_decide_hashes_what_an_encoder_reads_first() -> None:
    raw = Item(item_id="i", title="<p>Red&nbsp;lamp</p>", tags=["<i>warm</i>"])
    plain = Item(item_id="i", title="Red lamp", tags=["warm"])
    catalogue = Catalogue()
    catalogue.apply("raw", raw)
    catalogue.apply("plain", plain)
    catalogue.refresh()

    assert own_text(raw) == texts_of(raw)[0] == own_text(plain)
    assert catalogue.text_key[catalogue.row("raw")] == catalogue.text_key[catalogue.row("plain")]


def test_an_item_of_markup_alone_has_no_text() -> None:
    assert texts_of(Item(item_id="i", title="<img src='a.png'>")) == []


def test_a_key_tells_all_contents_apart() -> None:
    contents = [
        (["a"], []),
        (["a", ""], []),
        (["", "a"], []),
        (["a"], [0.5]),
        (["a"], [0.5, 0.0]),
        ([], [0.5]),
        ([], []),
    ]
    keys = {content_key(texts, vector) for texts, vector in contents}

    assert len(keys) == len(contents)
    assert content_key(["a"], [0.5], []) != content_key(["a"], [], [0.5])
