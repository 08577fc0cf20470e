"""Which events are train, validation and test: the kinds of `SplitConfig`.

    published  as the source says; where it has no validation part, a share of each user's train examples is drawn:
               the latest where events have times, else seeded (of all train examples where there are no users)
    order      by the order of the raw rows: the last ones are test, those before them validation
    time       by global time: everything from one moment on is test, from an earlier one validation
    last       each user's last examples are test, the ones before them validation
    random     by row, seeded: exact shares of the examples
    user       by user, seeded: all rows of a user are in one split (those without a user are train). A user's split
               follows from the id alone and stays when others join, so that shares of users are met on average only
    day        all train: the log is that of one day (`days`)

Only examples are counted into shares. Other events (a view without a click, where examples are positive) follow the
same rule by their time or row number, so that a history is cut where its examples are. Splits by time and `last` are
point-in-time correct: no validation event is before a train event of all users, or of the same user. A split by user
is free of the user's own future too, but not of what others do later.

A random order is that of `mix64(row number, salt)`, the salt being the hash of purpose and seed: it depends on nothing
but the number of the row in the raw files. A user's place is mix64(hash of the id, salt). Shares are rounded half up.
"""

from typing import Any

import ibis
import ibis.expr.types as ir

from features.data_config import SplitConfig
from features.database import Database, hash64_column, mix64_column
from features.hashes import hash64
from features.log_columns import CODE, EXAMPLE, NUMBER, TIME
from features.logs import NoExamplesError
from features.source_files import SPLIT, SPLITS

TRAIN, VALIDATION, TEST = range(3)


class Splitter:
    """Assigns splits to the events of a log. user: the raw column of the user ("" if there is none).

    Raises ValueError naming what the kind of split needs and the log has not, or the split that came out empty.
    """

    def __init__(self, database: Database, config: SplitConfig, *, user: str) -> None:
        self._database, self._config, self._user = database, config, user

    def assign(self, events: ir.Table, name: str) -> ir.Table:
        """The events, which have the column `EXAMPLE`, with `CODE` (index into `SPLITS`), stored under a name.

        They keep their order. One code is decided per row; nothing but user, time and number is sorted for it.
        """
        self._check(events)
        if self._config.kind == "random":
            stored = self._database.store(name, events.mutate(**{CODE: self._random_codes(events)}))
        elif self._config.kind in ("order", "time"):
            key = events[TIME if self._config.kind == "time" else NUMBER]
            stored = self._database.store(name, events.mutate(**{CODE: self._late_codes(events, key)}))
        elif self._config.kind == "day":
            stored = self._database.store(name, events.mutate(**{CODE: ibis.literal(TRAIN, "int8")}))
        elif self._config.kind == "user":
            stored = self._database.store(name, events.mutate(**{CODE: self._user_codes(events)}))
        elif self._config.kind == "published" and not self._draws_validation(events):
            stored = self._database.store(name, events.mutate(**{CODE: _published_codes(events)}))
        else:
            stored = self._with_user_codes(events, name)
        self._check_counts(stored)
        return stored

    def _check(self, events: ir.Table) -> None:
        kind = self._config.kind
        if kind == "published" and SPLIT not in events.columns:
            raise ValueError(
                "split.kind is 'published', but the source has no published split; give data.files the roles "
                "train and test, or name the column in split.column"
            )
        if kind in ("time", "last") and TIME not in events.columns:
            raise ValueError(f"split.kind is {kind!r}, which needs `timestamp` in the schema")
        if kind in ("last", "user") and not self._user:
            raise ValueError(f"split.kind is {kind!r}, which needs `user` in the schema")

    def _draws_validation(self, events: ir.Table) -> bool:
        """Whether validation examples must be chosen among the train ones of a published split."""
        if not self._config.validation:
            return False
        given = events.filter((events[SPLIT] == SPLITS[VALIDATION]) & events[EXAMPLE])
        return not self._database.value(given.count())

    def _random_codes(self, events: ir.Table) -> Any:
        hashes = self._hashes(events, "rows")
        examples = events.filter(events[EXAMPLE]).select(key=hashes)
        num_test, num_validation = self._sizes(examples)
        test_end = self._nth(examples, num_test)
        validation_end = self._nth(examples, num_test + num_validation)
        return _codes(test=hashes < test_end, validation=hashes < validation_end)

    def _late_codes(self, events: ir.Table, key: Any) -> Any:
        """Test from one value of the key on, validation from an earlier one."""
        examples = events.filter(events[EXAMPLE]).select(key=key)
        num_test, num_validation = self._sizes(examples)
        num_examples = self._count(examples)
        never = ibis.literal(False)
        cut = num_examples - num_test
        test = key >= self._nth(examples, cut) if num_test else never
        start = cut - num_validation
        validation = key >= self._nth(examples, start) if num_validation else never
        return _codes(test=test, validation=validation)

    def _user_codes(self, events: ir.Table) -> Any:
        user: Any = events[self._user]
        hashed = hash64_column(user) if user.type().is_string() else user.cast("int64")
        place = mix64_column(hashed, hash64(f"users/{self._config.seed}", salt="splits"))
        test, validation = self._config.test_size, self._config.validation
        return _codes(test=place < quantile(test), validation=place < quantile(test + validation))

    def _sizes(self, examples: ir.Table) -> tuple[int, int]:
        """Test and validation examples."""
        count = self._count(examples)
        num_test, num_validation = _rounded(self._config.test_size * count), _rounded(self._config.validation * count)
        if num_test + num_validation >= count:
            raise ValueError(f"split: {count} examples leave none to train on")
        return num_test, num_validation

    def _nth(self, examples: ir.Table, place: int) -> int:
        """The key that stands at that place when keys are sorted."""
        return int(self._database.value(examples.order_by("key").limit(1, offset=place).key.max()))

    def _count(self, examples: ir.Table) -> int:
        return int(self._database.value(examples.count()))

    def _hashes(self, events: ir.Table, purpose: str) -> Any:
        return mix64_column(events[NUMBER], hash64(f"{purpose}/{self._config.seed}", salt="splits"))

    def _with_user_codes(self, events: ir.Table, name: str) -> ir.Table:
        """Codes decided within each user, then joined to the events in their order."""
        kept = [column for column in (NUMBER, EXAMPLE, SPLIT, TIME, self._user) if column in events.columns]
        narrow = events.select(*kept)
        codes = self._last_codes(narrow) if self._config.kind == "last" else self._drawn_codes(narrow)
        coded = self._database.store(f"{name}_codes", narrow.select(NUMBER, **{CODE: codes}))
        joined = events.join(coded, NUMBER, how="inner").order_by(NUMBER)
        return self._database.store(name, joined)

    def _last_codes(self, events: ir.Table) -> Any:
        mine = events[EXAMPLE].cast("int64")
        total = mine.sum().over(ibis.window(group_by=self._user))
        return _from_end(self._from_here(events, mine), total, self._config.test_size, self._config.validation)

    def _drawn_codes(self, events: ir.Table) -> Any:
        """Published, with validation examples drawn among each user's train examples."""
        published = _published_codes(events)
        drawable = events[EXAMPLE] & (published == TRAIN)
        user = [events[self._user]] if self._user else []
        groups = [drawable, *user]
        if TIME in events.columns:
            total = drawable.cast("int64").sum().over(ibis.window(group_by=[published == TRAIN, *user]))
            later = self._from_here(events, drawable.cast("int64"), published == TRAIN)
            drawn = _from_end(later, total, 0.0, self._config.validation) == VALIDATION
            return (drawn & (published == TRAIN)).ifelse(VALIDATION, published).cast("int8")
        total = drawable.cast("int64").sum().over(ibis.window(group_by=groups))
        rank = ibis.row_number().over(ibis.window(group_by=groups, order_by=self._hashes(events, "validation")))
        drawn = drawable & (rank < _capped(self._config.validation, total, total - 1))
        return drawn.ifelse(VALIDATION, published).cast("int8")

    def _from_here(self, events: ir.Table, counted: Any, *groups: Any) -> Any:
        """How many counted events of the same user stand at this one or after it."""
        order = [events[TIME].desc(), events[NUMBER].desc()]
        by = [*groups, *([events[self._user]] if self._user else [])]
        return counted.sum().over(ibis.window(group_by=by, order_by=order, preceding=None, following=0))

    def _check_counts(self, events: ir.Table) -> None:
        counted = events.filter(events[EXAMPLE]).group_by(CODE).aggregate(rows=ibis._.count())
        rows = {row[CODE]: row["rows"] for row in self._database.fetch(counted).to_pylist()}
        wanted = {TRAIN: True, VALIDATION: self._config.validation > 0, TEST: self._config.test_size > 0}
        for code, name in enumerate(SPLITS):
            if wanted[code] and not rows.get(code):
                if code == TRAIN:
                    raise NoExamplesError("split: no example is left to train on")
                raise ValueError(
                    f"split: no example is left for {name!r}, of {sum(rows.values())} examples; "
                    f"enlarge split.{name} or set it to 0"
                )


def _published_codes(events: ir.Table) -> Any:
    return events[SPLIT].cases(*((name, code) for code, name in enumerate(SPLITS))).cast("int8")


def _codes(*, test: Any, validation: Any) -> Any:
    return ibis.cases((test, TEST), (validation, VALIDATION), else_=TRAIN).cast("int8")


def _from_end(from_here: Any, total: Any, test: float, validation: float) -> Any:
    """Codes of a user's events, counted from the last example: one example at least stays in train."""
    num_test = _capped(test, total, total - 1)
    num_validation = _capped(validation, total, total - 1 - num_test)
    return _codes(
        test=(num_test > 0) & (from_here <= num_test),
        validation=(num_validation > 0) & (from_here <= num_test + num_validation),
    )


def _capped(size: float, total: Any, most: Any) -> Any:
    """A share of `total`, rounded half up, or a number; between 0 and `most`."""
    wanted = ibis.literal(int(size)) if size >= 1 else (total * size + 0.5).floor().cast("int64")
    return ibis.greatest(ibis.least(wanted, most), 0)


def quantile(share: float) -> int:
    """The int64 below which that share of all int64 lies."""
    return int(share * (1 << 64)) - (1 << 63)


def _rounded(number: float) -> int:
    return int(number + 0.5)
