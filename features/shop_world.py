"""`Shop`: a world of impressions and clicks whose click probability is known.

Items are shown to users over 30 days from 2026-01-01 UTC. Logit of a click:

    bias + user + category + device + quality of the item                        a linear model finds these
    + segment x category + town x category + device x category + daypart x category + age x price + segment x maker
                                                                                 crosses of features find these
    + interest: 2 or 3 categories of the user's own, and in each a favourite tag     histories tell of them
    + recency: weight_c * min(1, sum over the user's past clicks in category c of exp(-age / speed_c))

A segment is age group and gender together; what it likes, with the kind of town, decides which interests its people
have, and most of what a user is shown comes from the interests. Part of the items appears day by day, one category on
day 6 only, and some items are in the catalogue but never shown. Probabilities are rounded before they are compared with
a random number, so that the last bits of exp and log, which differ between machines, do not matter.

Shapes: U users, I items, C categories, E events, S sessions.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.random import Generator
from numpy.typing import NDArray

from features.world_tables import WorldTables

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

START = 1_767_225_600  # 2026-01-01 00:00:00 UTC
DAY = 86_400
FIRST_ITEM = 10_000
AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
GENDERS = ("female", "male")
DEVICES = ("phone", "desktop", "tablet")
NUM_CITIES, NUM_TOWN_KINDS, NUM_BRANDS, NUM_MAKERS, NUM_INTERESTS = 24, 3, 100, 8, 3
CATEGORIES = (
    "books", "comics", "music", "films", "games", "toys", "garden", "kitchen", "furniture", "lamps",
    "shoes", "shirts", "coats", "bags", "watches", "phones", "cameras", "bicycles", "camping", "drones",
)  # fmt: skip
NEW_CATEGORY, NEW_CATEGORY_DAY = len(CATEGORIES) - 1, 6
STYLES = ("classic", "modern", "budget")
OTHER_TAGS = ("gift", "sale", "local", "limited")
HOUR_WEIGHTS = np.array([2, 1, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 8, 7, 6, 6, 6, 7, 8, 9, 10, 10, 7, 4])
DAYPARTS = np.arange(24) // 6


@dataclass(frozen=True, kw_only=True)
class Shop:
    """Sizes of a world of impressions and clicks, and how strong (logits; standard deviations) each cause is."""

    num_users: int = 5_000
    num_items: int = 3_000
    num_events: int = 200_000
    num_days: int = 30
    bias: float = -3.2
    user: float = 0.2
    category: float = 0.25
    device: float = 0.2
    quality: float = 0.2
    segment_category: float = 1.0
    town_category: float = 0.3
    device_category: float = 0.55
    daypart_category: float = 0.4
    age_price: float = 0.15
    segment_maker: float = 0.15
    interest: float = 0.5
    favourite: float = 0.4
    recency: float = 1.4
    popularity_skew: float = 0.65
    shown_by_interest: float = 0.65

    def make(self, rng: Generator) -> WorldTables:
        """Tables from a generator."""
        tastes = _tastes(rng, self)
        people = _people(rng, self, tastes)
        catalogue = _catalogue(rng, self)
        visits = _visits(rng, self)
        shown = _shown(rng, self, people, catalogue, visits)
        logits = _lasting_logits(rng, self, tastes, people, catalogue, visits, shown)
        probability, click = _clicks(rng, self, visits, catalogue.category[shown], logits)
        return WorldTables(
            events=_event_table(visits, shown, probability, click),
            users=_user_table(people),
            items=_item_table(catalogue),
            triples=_triples(catalogue),
        )


@dataclass(frozen=True)
class _Tastes:
    """Logits by category, [rows, C] each."""

    segment: Floats
    town: Floats
    device: Floats
    daypart: Floats


@dataclass(frozen=True)
class _People:
    age: Ints  # [U]
    gender: Ints
    city: Ints
    interests: Ints  # [U, NUM_INTERESTS] categories; who has two has the first twice
    favourite: Ints  # [U, C] style

    @property
    def segment(self) -> Ints:
        return self.age * len(GENDERS) + self.gender


@dataclass(frozen=True)
class _Catalogue:
    category: Ints  # [I]
    brand: Ints
    style: Ints
    price: Floats
    other_tags: NDArray[np.bool_]  # [I, len(OTHER_TAGS)]
    popularity: Ints
    launched: Ints  # day
    shown: NDArray[np.bool_]


@dataclass(frozen=True)
class _Visits:
    """Impressions before it is known of what, by user and time, [E] each."""

    user: Ints
    time: Ints  # seconds since START
    device: Ints


def _tastes(rng: Generator, shop: Shop) -> _Tastes:
    return _Tastes(
        segment=_crossed(rng, len(AGES) * len(GENDERS), shop.segment_category),
        town=_crossed(rng, NUM_TOWN_KINDS, shop.town_category),
        device=_crossed(rng, len(DEVICES), shop.device_category),
        daypart=_crossed(rng, 4, shop.daypart_category),
    )


def _crossed(rng: Generator, num_rows: int, std: float, rank: int = 3) -> Floats:
    """Logits by row and category of the given rank and deviation, without an effect of the category alone."""
    product = rng.standard_normal((num_rows, rank)) @ rng.standard_normal((rank, len(CATEGORIES)))
    product -= product.mean(axis=0)
    scaled: Floats = np.round(std * product / product.std(), 4)
    return scaled


def _people(rng: Generator, shop: Shop, tastes: _Tastes) -> _People:
    size = shop.num_users
    age, gender = _whole(rng.random(size) * len(AGES)), _whole(rng.random(size) * len(GENDERS))
    city = _whole(rng.random(size) ** 1.7 * NUM_CITIES)
    likes = tastes.segment[age * len(GENDERS) + gender] / shop.segment_category
    likes += 0.5 * tastes.town[city % NUM_TOWN_KINDS] / shop.town_category
    race = np.round(-np.log(rng.random((size, len(CATEGORIES)))) / np.exp(1.5 * likes), 9)
    interests = np.argsort(race, axis=1, kind="stable")[:, :NUM_INTERESTS]
    only_two = rng.random(size) < 0.5
    interests[only_two, 2] = interests[only_two, 0]
    favourite = _whole(rng.random((size, len(CATEGORIES))) * len(STYLES))
    return _People(age, gender, city, interests, favourite)


def _catalogue(rng: Generator, shop: Shop) -> _Catalogue:
    size = shop.num_items
    category = _whole(rng.random(size) ** 1.3 * len(CATEGORIES))
    brand = (5 * category + _whole(rng.random(size) ** 1.5 * 12)) % NUM_BRANDS
    of_category = 0.6 * rng.standard_normal(len(CATEGORIES))
    log_price: Floats = 3 + of_category[category] + 0.5 * rng.standard_normal(size)
    rank = np.argsort(rng.random(size), kind="stable")
    popularity = np.round(1e6 * (rank + 20.0) ** -shop.popularity_skew).astype(np.int64)
    launched = np.where(rng.random(size) < 0.3, _whole(1 + rng.random(size) * (shop.num_days - 1)), 0)
    late = NEW_CATEGORY_DAY + _whole(rng.random(size) ** 3 * (shop.num_days - NEW_CATEGORY_DAY))
    launched = np.where(category == NEW_CATEGORY, late, launched)
    return _Catalogue(
        category=category,
        brand=brand,
        style=_whole(rng.random(size) * len(STYLES)),
        price=np.exp(log_price).round(2),
        other_tags=rng.random((size, len(OTHER_TAGS))) < 0.2,
        popularity=popularity,
        launched=launched,
        shown=rng.random(size) >= 0.02,
    )


def _visits(rng: Generator, shop: Shop) -> _Visits:
    """Sessions of 3 to 9 impressions a minute apart; few users have many; a fifth of the users comes later."""
    activity = (rng.random(shop.num_users) + 0.03) ** -0.6
    num_sessions = np.maximum(1, _whole(activity / activity.mean() * shop.num_events / shop.num_users / 5.5))
    first_day = np.where(rng.random(shop.num_users) < 0.2, rng.random(shop.num_users) * (shop.num_days - 2), 0)
    user = np.repeat(np.arange(shop.num_users), num_sessions)  # [S]
    day = _whole(first_day[user] + rng.random(len(user)) * (shop.num_days - first_day[user]))
    second = _draw(rng.random(len(user)), HOUR_WEIGHTS) * 3_600 + _whole(rng.random(len(user)) * 3_000)
    own_device = _draw(rng.random(shop.num_users), np.array([6, 3, 1]))
    other = rng.random(len(user)) < 0.3
    device = np.where(other, _whole(rng.random(len(user)) * len(DEVICES)), own_device[user])
    length = 3 + _whole(rng.random(len(user)) * 7)
    session = np.repeat(np.arange(len(user)), length)  # [E]
    minute = np.arange(len(session)) - np.repeat(np.cumsum(length) - length, length)
    time = (day * DAY + second)[session] + 60 * minute
    kept = np.argsort(rng.random(len(session)), kind="stable")[: shop.num_events]
    kept = kept[np.lexsort((kept, time[kept], user[session[kept]]))]
    return _Visits(user[session[kept]], time[kept], device[session[kept]])


def _shown(rng: Generator, shop: Shop, people: _People, catalogue: _Catalogue, visits: _Visits) -> Ints:
    """The item of each impression [E]: by popularity, of the whole catalogue or of one of the user's interests."""
    by_category = np.argsort(catalogue.category, kind="stable")
    total = np.cumsum((catalogue.popularity * catalogue.shown)[by_category])
    ends = np.searchsorted(catalogue.category[by_category], np.arange(len(CATEGORIES) + 1))
    bounds = np.concatenate([[0], total])[ends]  # [C + 1]
    items = np.zeros(len(visits.user), np.int64)
    todo = np.arange(len(items))
    while len(todo):
        category = people.interests[visits.user[todo], _whole(rng.random(len(todo)) * NUM_INTERESTS)]
        by_interest = rng.random(len(todo)) < shop.shown_by_interest
        low = np.where(by_interest, bounds[category], 0)
        high = np.where(by_interest, bounds[category + 1], total[-1])
        at = low + _whole(rng.random(len(todo)) * (high - low))
        items[todo] = by_category[np.minimum(np.searchsorted(total, at, side="right"), len(total) - 1)]
        todo = todo[catalogue.launched[items[todo]] * DAY > visits.time[todo]]
    return items


def _lasting_logits(
    rng: Generator,
    shop: Shop,
    tastes: _Tastes,
    people: _People,
    catalogue: _Catalogue,
    visits: _Visits,
    shown: Ints,
) -> Floats:
    """All of the logit but recency, [E]."""
    user, category, device = visits.user, catalogue.category[shown], visits.device
    price = np.log(catalogue.price)
    price = (price - price.mean()) / price.std()
    segment, age = people.segment[user], people.age[user]
    maker = catalogue.brand[shown] % NUM_MAKERS
    liked = (people.interests[user] == category[:, None]).any(axis=1)
    favourite = people.favourite[user, category] == catalogue.style[shown]
    logits: Floats = (
        shop.bias
        + shop.user * rng.standard_normal(shop.num_users)[user]
        + shop.category * rng.standard_normal(len(CATEGORIES))[category]
        + shop.device * rng.standard_normal(len(DEVICES))[device]
        + shop.quality * rng.standard_normal(shop.num_items)[shown]
        + tastes.segment[segment, category]
        + tastes.town[people.city[user] % NUM_TOWN_KINDS, category]
        + tastes.device[device, category]
        + tastes.daypart[DAYPARTS[visits.time % DAY // 3_600], category]
        + shop.age_price * rng.standard_normal(len(AGES))[age] * price[shown]
        + shop.segment_maker * rng.standard_normal((len(AGES) * len(GENDERS), NUM_MAKERS))[segment, maker]
        + liked * (shop.interest + shop.favourite * favourite)
    )
    return logits


def _clicks(rng: Generator, shop: Shop, visits: _Visits, category: Ints, logits: Floats) -> tuple[Floats, Ints]:
    """Probability and click of each event [E]: the k-th impressions of all users together, for rising k."""
    user, time = visits.user, visits.time
    speed = np.array([0.25, 1.0, 4.0])[np.arange(len(CATEGORIES)) % 3] * DAY
    weight = np.array([1.0, 0.8, 0.6])[np.arange(len(CATEGORIES)) % 3] * shop.recency
    recent = np.zeros((shop.num_users, len(CATEGORIES)))  # the decayed sum of clicks, as it was at `since`
    since = np.zeros_like(recent)
    draws = rng.random(len(user))
    probability, click = np.zeros(len(user)), np.zeros(len(user), np.int64)
    number = np.arange(len(user)) - np.searchsorted(user, user)
    by_number = np.argsort(number, kind="stable")
    for rows in np.split(by_number, np.cumsum(np.bincount(number))[:-1]):
        place = user[rows], category[rows]
        decayed = recent[place] * np.exp((since[place] - time[rows]) / speed[place[1]])
        logit = logits[rows] + weight[place[1]] * np.minimum(decayed, 1)
        probability[rows] = np.round(1 / (1 + np.exp(-logit)), 6)
        click[rows] = draws[rows] < probability[rows]
        recent[place], since[place] = decayed + click[rows], time[rows]
    return probability, click


def _event_table(visits: _Visits, shown: Ints, probability: Floats, click: Ints) -> pa.Table:
    order = np.lexsort((visits.user, visits.time))
    user, time, device = visits.user[order], visits.time[order], visits.device[order]
    return pa.table(
        {
            "user": _user_ids(user),
            "item": FIRST_ITEM + shown[order],
            "timestamp": START + time,
            "click": click[order],
            "probability": probability[order],
            "device": _named(DEVICES, device),
            "hour": time % DAY // 3_600,
        }
    )


def _user_table(people: _People) -> pa.Table:
    return pa.table(
        {
            "user": _user_ids(np.arange(len(people.age))),
            "age_group": _named(AGES, people.age),
            "gender": _named(GENDERS, people.gender),
            "city": [f"city {city:02d}" for city in people.city],
        }
    )


def _item_table(catalogue: _Catalogue) -> pa.Table:
    return pa.table(
        {
            "item": FIRST_ITEM + np.arange(len(catalogue.category)),
            "category": _named(CATEGORIES, catalogue.category),
            "brand": [_brand(brand) for brand in catalogue.brand],
            "price": catalogue.price,
            "tags": ["|".join(tags) for tags in _tags(catalogue)],
            "launched": START + DAY * catalogue.launched,
        }
    )


def _tags(catalogue: _Catalogue) -> list[list[str]]:
    """Of each item [I]: its style within its category, which matters, and others, which do not."""
    styles = zip(catalogue.category, catalogue.style, strict=True)
    others = [[tag for tag, has in zip(OTHER_TAGS, row, strict=True) if has] for row in catalogue.other_tags]
    named = [f"{STYLES[style]} {CATEGORIES[category]}" for category, style in styles]
    return [[style, *other] for style, other in zip(named, others, strict=True)]


def _triples(catalogue: _Catalogue) -> pa.Table:
    rows = [(f"brand:{_brand(brand)}", "belongs_to", f"maker:{brand % NUM_MAKERS}") for brand in range(NUM_BRANDS)]
    items = zip(catalogue.brand, catalogue.category, _tags(catalogue), strict=True)
    for number, (brand, category, tags) in enumerate(items):
        item = f"item:{FIRST_ITEM + number}"
        rows.append((item, "made_by", f"brand:{_brand(brand)}"))
        rows.append((item, "is_a", f"category:{CATEGORIES[category]}"))
        rows.extend((item, "tagged", f"tag:{tag}") for tag in tags)
    head, relation, tail = zip(*rows, strict=True)
    return pa.table({"head": head, "relation": relation, "tail": tail})


def _brand(number: int) -> str:
    return f"brand {number:02d}"


def _user_ids(users: Ints) -> pa.Array:
    return pa.array([f"u{user:05d}" for user in users])


def _named(names: tuple[str, ...], numbers: Ints) -> pa.Array:
    return pa.array(names).take(pa.array(numbers))


def _whole(numbers: Floats) -> Ints:
    return np.floor(numbers).astype(np.int64)


def _draw(uniforms: Floats, weights: Ints) -> Ints:
    """Indices drawn in proportion to integer weights."""
    totals = np.cumsum(weights)
    return np.searchsorted(totals, _whole(uniforms * totals[-1]), side="right").astype(np.int64)
