"""operators.content: words by locale, safe filling, the limit of 4,096 bytes."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.content import (
    MAX_BYTES,
    choose_locale,
    collapse_key,
    content_bytes,
    find_locale,
    render,
    validate_templates,
)
from operators.messages import Campaign, Content, Item, LocalText, Template
from tests.conftest import T0_MS


def campaign(campaign_id: str = "c1", **templates: Template) -> Campaign:
    return Campaign(campaign_id=campaign_id, trigger="idle", templates=templates)


def english(**fields: Any) -> Campaign:
    return campaign(en=Template(**{"title": "Hello", "body": "{item_title}", **fields}))


def lamp(**fields: Any) -> Item:
    return Item(**{"item_id": "i1", "title": "Lamp", "price": 12.5, **fields})


def rendered(one: Campaign, item: Item, locale: str = "en") -> Content:
    validate_templates(one)
    return render(one, item, locale, time_ms=T0_MS)


def test_every_field_of_a_plain_push() -> None:
    one = english(
        title="{category} for you",
        body="{item_title} at {price} ({item_id})",
        deep_link="app://item/{item_id}",
        image_url="https://cdn/{item_id}.png",
        template_id="t1",
    )
    assert rendered(one, lamp(categories=["Home", "Light"])) == Content(
        item_id="i1",
        template_id="t1",
        locale="en",
        title="Home for you",
        body="Lamp at 12.50 (i1)",
        deep_link="app://item/i1",
        image_url="https://cdn/i1.png",
        data={"campaign_id": "c1", "item_id": "i1", "locale": "en", "time_ms": str(T0_MS)},
    )


def test_links_left_empty_are_the_items() -> None:
    content = rendered(english(), lamp(deep_link="app://lamp", image_url="https://cdn/lamp.png"))
    assert (content.deep_link, content.image_url) == ("app://lamp", "https://cdn/lamp.png")


def test_template_without_an_id_is_named_by_campaign_and_locale() -> None:
    assert rendered(english(), lamp()).template_id == "c1/en"


@pytest.mark.parametrize(
    ("known", "locale", "default", "chosen"),
    [
        (["en", "zh"], "zh", "en", "zh"),
        (["en", "zh"], "zh-CN", "en", "zh"),
        (["en", "zh-CN", "zh-TW"], "zh_tw", "en", "zh-TW"),
        (["en", "zh-TW", "zh-HK"], "zh-CN", "en", "zh-HK"),  # another region, the first sorted
        (["en", "zh-Hant"], "zh-Hant-TW", "en", "zh-Hant"),
        (["fr", "en", "zh"], "ja", "en", "en"),
        (["fr", "en-GB"], "ja", "en", "en-GB"),
        (["fr", "de"], "ja", "en", "de"),
        (["fr", "de"], "", "", "de"),
        (["zho", "en"], "zh", "en", "en"),  # no prefix of letters
    ],
)
def test_template_by_locale(known: list[str], locale: str, default: str, chosen: str) -> None:
    assert choose_locale(known, locale, default) == chosen


def test_locale_found_does_not_depend_on_the_order() -> None:
    assert find_locale(["pt-PT", "pt-BR"], "pt") == find_locale(["pt-BR", "pt-PT"], "pt")
    assert find_locale(["EN", "en"], "en") == find_locale(["en", "EN"], "en")


def test_item_title_is_in_the_language_of_the_template() -> None:
    item = lamp(
        locales={
            "zh-TW": LocalText(title="檯燈"),
            "zh": LocalText(title="台灯"),
            "fr": LocalText(title="Lampe"),
        }
    )
    both = campaign(
        en=Template(title="Hello", body="{item_title}"),
        zh=Template(title="你好", body="“{item_title}”"),
    )
    assert rendered(both, item, "zh-CN").body == "“台灯”"
    assert rendered(both, item, "zh-TW").body == "“檯燈”"
    assert rendered(both, item, "fr-FR").body == "Lamp"  # English words, English title


def test_what_is_filled_in_is_not_read_as_a_template() -> None:
    item = lamp(title="{price} {item_title.__class__} {{", item_id="{category}")
    content = rendered(english(title="{item_id}"), item)
    assert content.title == "{category}"
    assert content.body == "{price} {item_title.__class__} {{"


def test_values_in_links_are_percent_encoded() -> None:
    one = english(deep_link="app://item/{item_id}?c={category}")
    content = rendered(one, lamp(item_id="a/../b?x=1&y", categories=["灯"]))
    assert content.deep_link == "app://item/a%2F..%2Fb%3Fx%3D1%26y?c=%E7%81%AF"


def test_line_breaks_of_a_title_become_spaces() -> None:
    assert rendered(english(), lamp(title=" A\n\tlamp ")).body == "A lamp"


def test_doubled_braces_are_braces() -> None:
    assert rendered(english(body="{{item_title}}"), lamp()).body == "{item_title}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (Template(title="{nam}", body=""), r"'c1': templates.en.title: unknown placeholder {nam}"),
        (Template(title="", body="{}"), r"'c1': templates.en.body: unknown placeholder {}"),
        (Template(title="", body="{0}"), r"templates.en.body: unknown placeholder {0}"),
        (Template(title="", body="{item_id.x}"), r"unknown placeholder {item_id.x}"),
        (Template(title="", body="{price:9999}"), r"unknown placeholder {price:9999}"),
        (Template(title="", body="{price!r}"), r"unknown placeholder {price!r}"),
        (Template(title="", body="", deep_link="a{"), r"templates.en.deep_link: .*'{'"),
        (Template(title="", body="", image_url="a}"), r"templates.en.image_url: .*'}'"),
        (Template(title="", body="", template_id="é" * 256), None),
    ],
)
def test_template_that_cannot_be_filled_is_refused(template: Template, message: str | None) -> None:
    if message is None:
        validate_templates(campaign(en=template))
        return
    with pytest.raises(ValueError, match=message):
        validate_templates(campaign(en=template))


@pytest.mark.parametrize("locale", ["", "e", "en us", "zh-" + "x" * 300, "en/../x"])
def test_locale_that_is_none_is_refused(locale: str) -> None:
    words = {locale: Template(title="", body="")}
    with pytest.raises(ValueError, match="not a locale"):
        validate_templates(Campaign(campaign_id="c1", trigger="idle", templates=words))


def test_long_body_is_cut_with_an_ellipsis_and_the_rest_stays() -> None:
    content = rendered(english(body="灯" * 4_096, deep_link="app://{item_id}"), lamp())
    assert MAX_BYTES - 6 < content_bytes(content) <= MAX_BYTES
    assert re.fullmatch("灯+…", content.body)
    assert (content.title, content.deep_link) == ("Hello", "app://i1")


def test_cut_keeps_joined_emoji_and_accents_whole() -> None:
    family = "👩\u200d👩\u200d👧"
    content = rendered(english(body=family * 500), lamp())
    assert set(content.body.removesuffix("…").split(family)) == {""}
    accents = rendered(english(body="e\u0301" * 2_000), lamp())
    assert set(accents.body.removesuffix("…").split("e\u0301")) == {""}


def test_links_too_long_to_leave_words_go_whole() -> None:
    item = lamp(image_url="https://cdn/" + "x" * 3_500, deep_link="app://lamp")
    content = rendered(english(body="words " * 600), item)
    assert (content.image_url, content.deep_link) == ("", "app://lamp")
    assert len(content.body) > 2_000
    short = rendered(english(body="words"), item)
    assert short.image_url == item.image_url  # there is room for both


def test_title_ends_at_256_characters() -> None:
    content = rendered(english(title="{item_title} {item_title}"), lamp(title="x" * 250))
    assert len(content.title) == 256
    assert content.title.endswith("x…")


def test_title_gives_way_when_the_ids_take_all_the_room() -> None:
    one = campaign("\x01" * 84, en=Template(title="{item_title}", body="{item_title}"))
    content = rendered(one, lamp(item_id="\x01" * 128, title="\x01" * 256))  # 6 bytes each
    assert content_bytes(content) <= MAX_BYTES
    assert content.body == ""
    assert 0 < len(content.title) < 256


texts = st.text(st.characters(codec="utf-8"), max_size=256)
ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=128) | st.just("\x01" * 128)
pieces = st.sampled_from(["x", '"', "灯", "🙂", "\n", "\x01", "{item_title}", "{category}"])
wordings = st.builds(
    Template,
    title=st.lists(pieces, max_size=20).map("".join),
    body=st.lists(pieces, max_size=300).map("".join) | st.just("{item_title}" * 300),
    template_id=st.text(max_size=60),
)
links = st.integers(0, 4_096).map("灯".__mul__)
items = st.builds(
    Item,
    item_id=ids,
    title=texts | st.just("🙂" * 256) | st.just("\x01" * 256),
    deep_link=links,
    image_url=links,
)


@given(wordings, items, st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_any_content_fits_and_is_valid_text(
    wording: Template, item: Item, campaign_id: str
) -> None:
    content = rendered(campaign(campaign_id, en=wording), item)
    assert content_bytes(content) <= MAX_BYTES
    assert msgspec.json.decode(msgspec.json.encode(content), type=Content) == content
    assert content.deep_link in ("", item.deep_link)
    assert content.image_url in ("", item.image_url)


@pytest.mark.parametrize("campaign_id", ["a", "for-you_NOW-9", "x" * 32])
def test_collapse_key_is_the_campaign_id_where_it_fits(campaign_id: str) -> None:
    assert collapse_key(campaign_id) == campaign_id


@given(st.text(min_size=1, max_size=128))
def test_collapse_key_always_has_the_form_that_gateways_take(campaign_id: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,32}", collapse_key(campaign_id))


def test_collapse_keys_of_long_ids_differ() -> None:
    assert collapse_key("x" * 40) != collapse_key("x" * 41)
    assert collapse_key("a b") == collapse_key("a b")
