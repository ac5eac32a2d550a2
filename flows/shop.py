"""A made-up shop: what the simulated users of the demo look at, in English and Chinese.

Emits   `Item` messages, and for the simulation alone the latent vectors behind them.
Owns    the word lists. A title is made of a style and a noun, and both shape the item's latent
        vector: words carry signal, so that a model that reads titles can place a new item.

Twelve categories are directions in taste space. An item is its category's direction, moved by
its noun, by its style (shared by all categories) and by noise of its own.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from operators.messages import Item, LocalText

DIM: Final = 16  # of taste space: more than the 12 categories, so that they can lie apart
_DAY_MS: Final = 86_400_000

# English name, Chinese name, middle price, nouns as (English, Chinese).
_Noun = tuple[str, str]
CATEGORIES: Final[tuple[tuple[str, str, float, tuple[_Noun, ...]], ...]] = (
    ("shoes", "鞋靴", 80, (("running shoes", "跑鞋"), ("hiking boots", "登山靴"),
     ("sandals", "凉鞋"), ("loafers", "乐福鞋"), ("sneakers", "板鞋"), ("slippers", "拖鞋"))),
    ("coffee", "咖啡", 18, (("espresso beans", "意式咖啡豆"), ("filter coffee", "手冲咖啡"),
     ("moka pot", "摩卡壶"), ("cold brew kit", "冷萃套装"), ("drip bags", "挂耳咖啡"),
     ("coffee grinder", "磨豆机"))),
    ("books", "图书", 15, (("crime novel", "推理小说"), ("history book", "历史书"),
     ("picture book", "绘本"), ("cookbook", "食谱"), ("poetry collection", "诗集"),
     ("travel guide", "旅行指南"))),
    ("audio", "音响", 120, (("headphones", "头戴耳机"), ("earbuds", "无线耳机"),
     ("speaker", "音箱"), ("turntable", "黑胶唱机"), ("microphone", "麦克风"),
     ("radio", "收音机"))),
    ("skincare", "护肤", 30, (("face cream", "面霜"), ("sun lotion", "防晒霜"), ("serum", "精华液"),
     ("hand balm", "护手霜"), ("cleanser", "洁面乳"), ("sheet masks", "面膜"))),
    ("toys", "玩具", 25, (("building blocks", "积木"), ("puzzle", "拼图"), ("plush bear", "毛绒熊"),
     ("toy train", "玩具火车"), ("board game", "桌游"), ("kite", "风筝"))),
    ("kitchen", "厨具", 45, (("chef's knife", "厨师刀"), ("wok", "炒锅"), ("rice cooker", "电饭煲"),
     ("cutting board", "砧板"), ("kettle", "水壶"), ("bento box", "便当盒"))),
    ("garden", "园艺", 28, (("rose seeds", "玫瑰种子"), ("watering can", "洒水壶"),
     ("plant pot", "花盆"), ("garden shears", "园艺剪"), ("herb kit", "香草套装"),
     ("lantern", "庭院灯"))),
    ("camping", "露营", 95, (("tent", "帐篷"), ("sleeping bag", "睡袋"), ("gas stove", "炉具"),
     ("headlamp", "头灯"), ("folding chair", "折叠椅"), ("cool box", "保温箱"))),
    ("stationery", "文具", 12, (("fountain pen", "钢笔"), ("notebook", "笔记本"),
     ("brush set", "毛笔套装"), ("desk calendar", "台历"), ("ink bottle", "墨水"),
     ("sticker set", "贴纸"))),
    ("tea", "茶叶", 22, (("green tea", "绿茶"), ("oolong tea", "乌龙茶"), ("black tea", "红茶"),
     ("jasmine tea", "茉莉花茶"), ("teapot", "茶壶"), ("matcha", "抹茶"))),
    ("jewellery", "首饰", 150, (("silver ring", "银戒指"), ("pearl earrings", "珍珠耳环"),
     ("bracelet", "手链"), ("watch", "腕表"), ("necklace", "项链"), ("brooch", "胸针"))),
)  # fmt: skip
STYLES: Final[tuple[_Noun, ...]] = (
    ("classic", "经典"),
    ("minimalist", "极简"),
    ("colourful", "缤纷"),
    ("handmade", "手工"),
    ("travel-size", "便携"),
    ("premium", "高端"),
    ("everyday", "日常"),
    ("limited-edition", "限量"),
)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows of length 1, shape as given.

    >>> unit(np.array([[3.0, 4.0]])).tolist()
    [[0.6, 0.8]]
    """
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12))


class Shop:
    """The catalogue and what lies behind it; N items.

    Parameters
    ----------
    n_items
        N, at least 1. Items are dealt to the categories in turn.
    rng
        Decides everything drawn.
    start_ms
        Event time of the simulation's start. 4% of the items appear within the 3 days after it,
        20% within the 30 days before, the others are older.

    Attributes
    ----------
    vectors
        Latent taste vectors, float64, shape (N, DIM), of length 1.
    centers
        The categories' directions, shape (12, DIM), of length 1; `styles` likewise (8, DIM).
    category
        Index into `CATEGORIES`, shape (N,).
    quality
        How well an item is made, standard normal, shape (N,). Nobody sees it directly.
    created_ms
        When an item appears, shape (N,).
    neighbours
        The 10 nearest items of each, shape (N, 10), or fewer in a tiny shop.

    Examples
    --------
    >>> shop = Shop(24, np.random.default_rng(7), start_ms=1_770_000_000_000)
    >>> item = shop.message(0)
    >>> item.item_id, item.categories
    ('item-00000', ['shoes'])
    >>> sorted(item.locales)
    ['en', 'zh']
    """

    def __init__(self, n_items: int, rng: np.random.Generator, start_ms: int) -> None:
        if n_items < 1:
            raise ValueError(f"n_items must be at least 1, got {n_items}")
        n_categories = len(CATEGORIES)
        self.ids = [f"item-{i:05d}" for i in range(n_items)]
        self.category = np.arange(n_items) % n_categories
        self.centers = unit(np.linalg.qr(rng.standard_normal((DIM, DIM)))[0][:n_categories])
        self.styles = unit(rng.standard_normal((len(STYLES), DIM)))
        self._noun, self._style = self._words(n_items, rng)
        nouns = unit(rng.standard_normal((n_categories, 6, DIM)))
        self.vectors = unit(
            self.centers[self.category]
            + 0.5 * nouns[self.category, self._noun]
            + 0.6 * self.styles[self._style]
            + 0.3 * unit(rng.standard_normal((n_items, DIM)))
        )
        self.quality = rng.standard_normal(n_items)
        middle = np.array([price for _, _, price, _ in CATEGORIES])
        self.price = np.round(
            middle[self.category] * np.exp(0.35 * rng.standard_normal(n_items)), 2
        )
        self.created_ms = self._births(n_items, rng, start_ms)
        near = self.vectors @ self.vectors.T  # (N, N)
        np.fill_diagonal(near, -2.0)  # an item is not its own neighbour
        n_near = max(1, min(10, n_items - 1))
        self.neighbours = np.argsort(-near, axis=1, kind="stable")[:, :n_near]

    @staticmethod
    def _words(
        n_items: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Deal each category its 48 pairs of noun and style in random order, then again."""
        n_categories, n_styles = len(CATEGORIES), len(STYLES)
        decks = np.array([rng.permutation(6 * n_styles) for _ in range(n_categories)])
        index = np.arange(n_items)
        pair = decks[index % n_categories, index // n_categories % (6 * n_styles)]
        return pair // n_styles, pair % n_styles

    @staticmethod
    def _births(n_items: int, rng: np.random.Generator, start_ms: int) -> NDArray[np.int64]:
        """Return when each item appears, ms."""
        kind = rng.random(n_items)
        age_days = np.where(
            kind < 0.04,
            -3 * rng.random(n_items),
            np.where(kind < 0.24, 30 * rng.random(n_items), 60 + 300 * rng.random(n_items)),
        )
        return start_ms - (age_days * _DAY_MS).astype(np.int64)

    def freshness(self, now_ms: int) -> NDArray[np.float64]:
        """Return exp(-age / 7 days), shape (N,); 0 for an item that is still to come."""
        age_days = (now_ms - self.created_ms) / _DAY_MS
        return np.where(age_days >= 0, np.exp(-np.maximum(age_days, 0) / 7), 0.0)

    def words(self, index: int, locale: str) -> tuple[str, str]:
        """Return the noun and the category of an item: what a user types or says."""
        column = 1 if locale.startswith("zh") else 0
        english, chinese, _, nouns = CATEGORIES[int(self.category[index])]
        return nouns[int(self._noun[index])][column], (english, chinese)[column]

    def message(self, index: int) -> Item:
        """Return one item as it stands on `push.items.v1`."""
        category = CATEGORIES[int(self.category[index])]
        noun, style = category[3][int(self._noun[index])], STYLES[int(self._style[index])]
        series = index // (len(CATEGORIES) * 48)  # the decks were dealt this often before
        suffix = f" No. {series + 1}" if series else ""
        title = f"{style[0]} {noun[0]}{suffix}"
        title = title[0].upper() + title[1:]
        about = f"A {style[0]} choice in {category[0]}: {noun[0]}."
        zh = LocalText(
            title=f"{style[1]}{noun[1]}{suffix}",
            description=f"{category[1]}精选：{style[1]}{noun[1]}。",
        )
        item_id = self.ids[index]
        return Item(
            item_id=item_id,
            title=title,
            description=about,
            categories=[category[0]],
            tags=[style[0], noun[0]],
            price=float(self.price[index]),
            created_ms=int(self.created_ms[index]),
            deep_link=f"shop://item/{item_id}",
            locales={"en": LocalText(title=title, description=about), "zh": zh},
        )
