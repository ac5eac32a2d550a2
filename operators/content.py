"""Content: the words of a push, in the user's language and within what gateways can carry.

Reads   a campaign's templates, an item, a locale.
Emits   `Content`, at most `MAX_BYTES` as JSON.
Owns    the placeholders, the choice of template and title by locale, what is cut when it is long.

A template is compiled once to the pieces between its placeholders. What is filled in is never
read as a template again, so braces in an item's title are only braces. In links the values are
percent-encoded, so an item_id cannot change where a link leads.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from string import Formatter
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec
import xxhash

from operators.messages import Campaign, Content, Item, Template

MAX_BYTES: Final = 4_096  # of FCM's and APNs' payload; Web Push allows no more either
MAX_TITLE: Final = 256  # characters; no device shows more of a title
PLACEHOLDERS: Final = ("item_title", "price", "category", "item_id")
_FIELDS: Final = ("title", "body", "deep_link", "image_url")  # of a template, that have some
_IDS_BYTES: Final = 1_024  # of a campaign's own ids, so that they leave room for the item's
_ELLIPSIS: Final = "…"
_JOINER: Final = "\u200d"  # joins emoji into one
_LOCALE = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8}){0,3}")
_COLLAPSE_KEY = re.compile(r"[A-Za-z0-9_-]{1,32}")

_Text = tuple[str, ...]  # literal, placeholder, literal, placeholder, ..., literal


class _Compiled(NamedTuple):
    title: _Text
    body: _Text
    deep_link: _Text
    image_url: _Text


def render(campaign: Campaign, item: Item, locale: str, *, time_ms: int) -> Content:
    """Return what a user of `locale` reads of `item`.

    Parameters
    ----------
    time_ms
        The trigger's event time; goes into `data`, so that an app can show how old a push is.

    Raises
    ------
    ValueError
        For a template that `validate_templates` refuses.

    Notes
    -----
    A link that the template leaves empty is the item's. A title ends at `MAX_TITLE`. Of what is
    too long as a whole there goes first the image, then the deep link, where the body would have
    less than a quarter of the room; then the body's end, then the title's. Nothing is cut inside
    a character.

    Examples
    --------
    >>> words = {"en": Template(title="Still looking?", body="{item_title} for {price}",
    ...                         deep_link="app://item/{item_id}")}
    >>> campaign = Campaign(campaign_id="hi", trigger="idle", templates=words)
    >>> content = render(campaign, Item(item_id="a b", title="Lamp", price=9.5), "en-GB", time_ms=0)
    >>> content.title, content.body, content.deep_link
    ('Still looking?', 'Lamp for 9.50', 'app://item/a%20b')
    >>> content.data
    {'campaign_id': 'hi', 'item_id': 'a b', 'locale': 'en', 'time_ms': '0'}
    """
    chosen = choose_locale(campaign.templates, locale, campaign.default_locale)
    template = campaign.templates[chosen]
    compiled = _compile(template)
    values = _values(item, chosen, locale)
    links = {name: quote(value, safe="") for name, value in values.items()}
    content = Content(
        item_id=item.item_id,
        template_id=template.template_id or f"{campaign.campaign_id}/{chosen}",
        locale=chosen,
        title=_cut(_fill(compiled.title, values), MAX_TITLE, len),
        body=_fill(compiled.body, values),
        deep_link=_fill(compiled.deep_link, links) or item.deep_link,
        image_url=_fill(compiled.image_url, links) or item.image_url,
        data={
            "campaign_id": campaign.campaign_id,
            "item_id": item.item_id,
            "locale": chosen,
            "time_ms": str(time_ms),
        },
    )
    return content if content_bytes(content) <= MAX_BYTES else _shorten(content)


def content_bytes(content: Content) -> int:
    """Return the size of a content as JSON in UTF-8, which is how `MAX_BYTES` is meant."""
    return len(msgspec.json.encode(content))


def _values(item: Item, template_locale: str, user_locale: str) -> dict[str, str]:
    title = item.title
    if item.locales:
        # A sentence stays in one language: the user's region of it where there is one.
        same = _language(user_locale) == _language(template_locale)
        found = find_locale(item.locales, user_locale if same else template_locale)
        title = item.locales[found].title if found else title
    category = item.categories[0] if item.categories else ""
    return {
        "item_title": " ".join(title.split()),  # no line breaks or tabs in a notification
        "price": f"{item.price:.2f}",
        "category": " ".join(category.split()),
        "item_id": item.item_id,
    }


def _fill(text: _Text, values: Mapping[str, str]) -> str:
    if len(text) == 1:
        return text[0]
    filled = list(text)
    filled[1::2] = [values[name] for name in text[1::2]]
    return "".join(filled)


# Locales ------------------------------------------------------------------------------------


def choose_locale(templates: Iterable[str], locale: str, default: str) -> str:
    """Return the locale whose template to use: the user's, the default's, or the first sorted.

    >>> choose_locale(["en", "zh", "zh-TW"], "zh-CN", "en")
    'zh'
    >>> choose_locale(["en", "de", "fr"], "ja-JP", "en-US")
    'en'
    >>> choose_locale(["fr", "de"], "ja", "en")
    'de'
    """
    known = tuple(templates)
    return find_locale(known, locale) or find_locale(known, default) or min(known)


def find_locale(known: Iterable[str], wanted: str) -> str | None:
    """Return the known locale nearest to the wanted one, or None if none has its language.

    RFC 4647's lookup: the exact one, then with fewer and fewer subtags. After that another
    region of the same language, the first sorted. Case, and "_" for "-", make no difference.

    >>> find_locale(["zh-Hant", "zh"], "zh_Hant_TW"), find_locale(["pt-PT", "pt-BR"], "pt")
    ('zh-Hant', 'pt-BR')
    """
    return _find_locale(tuple(known), wanted)


@lru_cache(maxsize=4_096)  # sets of locales of campaigns and items, times users' locales
def _find_locale(known: tuple[str, ...], wanted: str) -> str | None:
    by_name = {_normal(locale): locale for locale in sorted(known, reverse=True)}
    tag = _normal(wanted)
    while tag:
        if tag in by_name:
            return by_name[tag]
        tag = tag.rpartition("-")[0]
    language = _language(wanted)
    return min((locale for locale in known if _language(locale) == language), default=None)


def _normal(locale: str) -> str:
    return locale.replace("_", "-").casefold()


def _language(locale: str) -> str:
    return _normal(locale).partition("-")[0]


# Templates ----------------------------------------------------------------------------------


def validate_templates(campaign: Campaign) -> None:
    """Raise ValueError, naming campaign and field, for templates that cannot be filled.

    To be called when a campaign is loaded; `render` then cannot fail.

    >>> words = {"zh": Template(title="{item_titel}", body="")}
    >>> validate_templates(Campaign(campaign_id="hi", trigger="idle", templates=words))
    Traceback (most recent call last):
    ...
    ValueError: campaign 'hi': templates.zh.title: unknown placeholder {item_titel}; known are ...
    """
    for locale, template in campaign.templates.items():
        where = f"campaign {campaign.campaign_id!r}: templates.{locale}"
        if not _LOCALE.fullmatch(locale):
            raise ValueError(f"{where}: not a locale such as zh or zh-CN")
        ids = [campaign.campaign_id, template.template_id or campaign.campaign_id]
        if len(msgspec.json.encode(ids)) > _IDS_BYTES:
            raise ValueError(f"{where}.template_id: with campaign_id over {_IDS_BYTES} bytes")
        for name in _FIELDS:
            try:
                _parse(getattr(template, name))
            except ValueError as error:
                raise ValueError(f"{where}.{name}: {error}") from error


def _parse(text: str) -> _Text:
    """Split a template at its placeholders; `{{` and `}}` stand for braces."""
    pieces = [""]
    for literal, name, spec, conversion in Formatter().parse(text):
        pieces[-1] += literal
        if name is None:
            continue
        if name not in PLACEHOLDERS or spec or conversion:
            known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            shown = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ValueError(f"unknown placeholder {{{shown}}}; known are {known}")
        pieces += [name, ""]
    return tuple(pieces)


@lru_cache(maxsize=4_096)  # templates in use: campaigns x locales; about 2 KB each
def _compile(template: Template) -> _Compiled:
    return _Compiled(*(_parse(getattr(template, name)) for name in _FIELDS))


# Length -------------------------------------------------------------------------------------


def _shorten(content: Content) -> Content:
    """Return the content cut to `MAX_BYTES`, least important parts first."""
    replace = msgspec.structs.replace
    body_bytes = min(_json_bytes(content.body), MAX_BYTES // 4)
    for link in ("image_url", "deep_link"):
        # Half a link leads nowhere: a link goes whole or not at all.
        if content_bytes(replace(content, body="")) + body_bytes > MAX_BYTES:
            content = replace(content, **{link: ""})
    room = MAX_BYTES - content_bytes(replace(content, body=""))
    content = replace(content, body=_cut(content.body, max(room, 0), _json_bytes))
    if content_bytes(content) > MAX_BYTES:
        room = MAX_BYTES - content_bytes(replace(content, title=""))
        content = replace(content, title=_cut(content.title, max(room, 0), _json_bytes))
    return content


def _json_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) - 2  # less the quotes


def _cut(text: str, room: int, size: Callable[[str], int]) -> str:
    """Return the longest start of `text` that with an ellipsis has at most the size `room`.

    >>> _cut("naïve", 4, lambda text: len(text.encode())), _cut("naïve", 6, _json_bytes)
    ('n…', 'naïve')
    """
    if size(text) <= room:
        return text
    room -= size(_ELLIPSIS)
    if room < 0:
        return ""
    end = bisect_right(range(1, len(text) + 1), room, key=lambda n: size(text[:n]))
    while 0 < end < len(text) and _is_joined(text[end - 1], text[end]):
        end -= 1
    return text[:end].rstrip() + _ELLIPSIS


def _is_joined(before: str, after: str) -> bool:
    """Say whether two code points belong to one character as it is seen."""
    return (
        unicodedata.combining(after) > 0
        or _JOINER in (before, after)
        or "\ufe00" <= after <= "\ufe0f"  # variation selectors
        or "\U0001f3fb" <= after <= "\U0001f3ff"  # skin tones
    )


@lru_cache(maxsize=4_096)  # campaigns
def collapse_key(campaign_id: str) -> str:
    """Return the key under which a newer push of a campaign takes an older one's place.

    >>> collapse_key("for-you-now"), collapse_key("für dich")
    ('for-you-now', 'ea4dfb55f17cc23ab85368d2e4364c78')
    """
    if _COLLAPSE_KEY.fullmatch(campaign_id):
        return campaign_id
    return xxhash.xxh3_128_hexdigest(campaign_id.encode())  # 32 hex digits
