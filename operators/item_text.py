"""Item text as an encoder should read it: clean, and once for each language.

Reads   items as their owners sent them.
Emits   texts without markup, and a key that changes when what is encoded does.
Owns    what counts as markup, and which of an item's texts are encoded.

Feeds hold what was made for a web page: tags, entities, some of them escaped twice, line breaks,
invisible characters. To an encoder a tag is a word like any other.

A language is guessed from script and frequent short words, and "" is an honest answer: it only
keeps a text from being encoded twice, once as the item's own and once under its locale.
"""

import html
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

import xxhash

from models.text import item_text
from operators.messages import Item

MAX_TEXTS: Final = 4  # of one item: each costs as much as an item of its own

# What a person does not see, its content included; then any tag. "a < b" and "<3" are no tags.
_HIDDEN: Final = re.compile(
    r"<!--.*?-->|<(script|style|head|template)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL
)
_TAG: Final = re.compile(r"<[/!?]?([a-zA-Z][a-zA-Z0-9:-]*)\b[^<>]*>")
# Tags inside a word or a sentence: what stands on both sides belongs together.
_INLINE: Final = frozenset(
    "a abbr b bdi bdo big cite code del em font i ins kbd mark q s small span strike strong sub "
    "sup tt u var wbr".split()
)
# Format characters that join: emoji, and words of Persian and Indic scripts.
_JOINERS: Final = "\u200c\u200d"
_PASSES: Final = 3  # of unescaping; feeds escape twice, and a third look finds nothing more

_BY_SCRIPT: Final = (  # the first that is there decides: Japanese has Han too, and Korean some
    ("ja", re.compile("[\u3041-\u30ff\uff66-\uff9f]")),
    ("ko", re.compile("[\u1100-\u11ff\uac00-\ud7af]")),
    ("zh", re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("he", re.compile("[\u0590-\u05ff]")),
)
_SHORT_WORDS: Final = {
    "de": "der die das und mit für ist ein eine von zu den nicht auf aus im",
    "en": "the and with for is a of to your in on from this that are",
    "es": "el la los las y con para es un una de del en por su",
    "fr": "le la les et avec pour est un une de du des en dans sur au",
    "it": "il lo la gli e con per un una di del della in che da sono",
    "nl": "de het een en met voor van is op in uw niet zijn dat",
    "pt": "o a os as e com para um uma de do da em não por seu",
}
_LANGUAGE_OF: Final = {
    language: frozenset(words.split()) for language, words in _SHORT_WORDS.items()
}
_LATIN_WORD: Final = re.compile(r"[^\W\d_]+")
_LEAST_WORDS: Final = 3  # short words of one language that say anything
_READ_CHARS: Final = 2_000  # of a text, for the guess


def clean_text(text: str) -> str:
    r"""Return a text without markup, entities, invisible characters and repeated spaces, in NFC.

    Linear in the text but for unclosed comments, which are few in 4,096 characters.

    >>> clean_text("<p>Wire<b>less</b> &amp; light</p><br/>5 &lt; 6,&nbsp;<3")
    'Wireless & light 5 < 6, <3'
    >>> clean_text("&amp;lt;b&amp;gt;twice&amp;lt;/b&amp;gt;<script>x = 1</script> so\u00adft")
    'twice soft'
    """
    if "<" in text or "&" in text:
        text = _without_markup(text)
    if not text.isprintable():  # spaces other than " " are not printable either
        text = "".join(map(_seen, text))
    text = " ".join(text.split())
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _without_markup(text: str) -> str:
    for _ in range(_PASSES):
        before = text
        text = html.unescape(_TAG.sub(_gap, _HIDDEN.sub(" ", text)))
        if text == before:
            break
    return text


def _gap(tag: re.Match[str]) -> str:
    return "" if tag[1].lower() in _INLINE else " "


def _seen(character: str) -> str:
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category == "Cc":
        return " "  # a control character separates what it stands between
    return "" if category in ("Cf", "Cs", "Cn") and character not in _JOINERS else character


def guess_language(text: str) -> str:
    """Return the language of a text as ISO 639-1, "" where it does not say.

    A script that one language uses says it; else at least three short words of one language, and
    more than of any other, do.

    >>> [guess_language(t) for t in ("红色台灯", "赤いランプ", "the lamp for a desk and the wall")]
    ['zh', 'ja', 'en']
    >>> guess_language("Die Lampe für den Tisch"), guess_language("Lampe X200"), guess_language("")
    ('de', '', '')
    """
    text = text[:_READ_CHARS]
    for language, script in _BY_SCRIPT:
        if script.search(text):
            return language
    words = [word.casefold() for word in _LATIN_WORD.findall(text)]
    counts = {
        language: sum(word in short for word in words) for language, short in _LANGUAGE_OF.items()
    }
    most = max(counts.values())
    best = [language for language, count in counts.items() if count == most]
    return best[0] if most >= _LEAST_WORDS and len(best) == 1 else ""


def own_text(item: Item) -> str:
    """Return the one text that stands for an item in its own language, clean.

    About 10 µs. The student is trained on it, and `decide` hashes it.

    >>> own_text(Item(item_id="i1", title="<b>Lamp</b>", description="5&nbsp;W", tags=["warm"]))
    'Lamp warm 5 W'
    """
    return _joined(item, item.title, item.description)


def _joined(item: Item, title: str, description: str) -> str:
    kinds, tags = map(clean_text, item.categories), map(clean_text, item.tags)
    return item_text(clean_text(title), clean_text(description), kinds, tags)


def texts_of(item: Item) -> list[str]:
    """Return what of an item is encoded: its own text, and one in each further language.

    The item's vector is the direction of their mean. Locales come in the order of their names, at
    most `MAX_TEXTS` texts in all; one without a letter is left out.

    >>> from operators.messages import LocalText
    >>> lamp = Item(item_id="i1", title="<b>Lamp</b> for the desk and the wall", tags=["warm"],
    ...             locales={"en-GB": LocalText(title="Lamp"), "zh-CN": LocalText(title="台灯"),
    ...                      "zh-TW": LocalText(title="檯燈")})
    >>> texts_of(lamp)
    ['Lamp for the desk and the wall warm', '台灯 warm']
    """
    own = own_text(item)
    texts = [own] if own else []
    if not item.locales:
        return texts
    languages = {guess_language(f"{item.title} {item.description}")}
    for locale, local in sorted(item.locales.items()):
        language = locale.replace("_", "-").partition("-")[0].casefold()
        if language in languages or len(texts) == MAX_TEXTS:
            continue
        languages.add(language)
        text = _joined(item, local.title, local.description)
        if text and text not in texts:
            texts.append(text)
    return texts


def content_key(texts: Iterable[str], *vectors: list[float]) -> str:
    """Return a hash of what an item's vector is made of, 32 hex digits.

    >>> content_key(["a", "b"]) == content_key(["ab"]), content_key([], [0.5]) == content_key([])
    (False, False)
    """
    digest = xxhash.xxh3_128()
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    for vector in vectors:
        digest.update(f"{len(vector)}:{vector}".encode() if vector else b"-")
    return digest.hexdigest()
