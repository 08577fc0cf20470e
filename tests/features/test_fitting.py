"""What SQL learns equals what `Encoder.fit` learns from the same rows in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.catalogue import Catalogue
from features.database import Database
from features.encoder import Encoder
from features.fitting import Fitter
from features.spec import FeatureSchema, parse_schema

ID = {"table": "ids"}
FEATURES: dict[str, Any] = {
    "user": ID,
    "age": {"kind": "dense", "entity": "user", "missing": 0.0, "transforms": [{"kind": "standardise"}]},
    "group": ID | {"entity": "user", "column": "age", "transforms": [{"kind": "bucketise", "num_buckets": 3}]},
    "city": ID | {"entity": "user", "min_count": 30},
    "item": ID,
    "liked": ID | {"kind": "id_list", "vocabulary": "item", "max_length": 2},
    "scored": ID | {"kind": "id_score_list"},
    "price": {"kind": "dense", "transforms": [{"kind": "log1p"}, {"kind": "standardise"}]},
    "band": ID | {"column": "price", "transforms": [{"kind": "log1p"}, {"kind": "bucketise", "num_buckets": 8}]},
    "fixed": ID | {"column": "price", "transforms": [{"kind": "bucketise", "boundaries": [1.0, 2.0]}]},
    "hashed": {"table": "ids", "hashed": True, "column": "device"},
}


def schema_of(**changed: Any) -> FeatureSchema:
    features = {name: spec | changed.get(name, {}) for name, spec in FEATURES.items()}
    return parse_schema({"name": "t", "user": "user", "features": features}, where="test")


NUM_ROWS, NUM_USERS = 2000, 40


def users() -> pa.Table:
    rng = np.random.default_rng(1)
    ages = [None if age < 20 else float(age) for age in rng.integers(10, 60, NUM_USERS)]
    cities = [None if user % 9 == 0 else f"city {rng.integers(0, 12)}" for user in range(NUM_USERS)]
    return pa.table({"user": np.arange(NUM_USERS), "age": ages, "city": cities})


def rows() -> pa.Table:
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 50, rng.integers(0, 4)).tolist()[-2:] for _ in range(NUM_ROWS)]
    scored = [[{"id": f"s{one}", "score": 1.0} for one in some] for some in lists]
    prices = [None if place % 50 == 0 else round(float(p), 2) for place, p in enumerate(rng.exponential(3.0, NUM_ROWS))]
    return pa.table(
        {
            "user": rng.integers(0, NUM_USERS, NUM_ROWS), "item": rng.integers(0, 30, NUM_ROWS), "liked": lists,
            "scored": scored, "price": prices, "device": rng.integers(0, 3, NUM_ROWS),
        }
    )  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database.open(tmp_path) as opened:
        yield opened


def fitted(database: Database, schema: FeatureSchema, train: pa.Table, listed: pa.Table | None = None) -> Encoder:
    stored = database.store_arrow("train", train)
    people = database.store_arrow("users", users() if listed is None else listed)
    seen = stored.select("user").distinct()
    catalogue = Catalogue(entity="user", id_column="user", listed=people, seen=seen)
    return Fitter(database, schema, stored, {"user": catalogue}).fit()


def test_fitting_equals_the_encoder_of_a_frame(database: Database) -> None:
    schema = schema_of(price={"missing": 0.0})
    frame, joined = rows(), users().take(rows()["user"])
    for name in ("age", "city"):
        frame = frame.append_column(name, joined[name])
    expected = Encoder.fit(schema, frame)
    found = fitted(database, schema, rows())
    for name, vocabulary in expected.vocabularies.items():
        assert found.vocabularies[name].content_hash == vocabulary.content_hash, name
    for name, statistic in expected.statistics.items():
        assert found.statistics[name].counts == statistic.counts, name
        assert found.statistics[name].mean == pytest.approx(statistic.mean, rel=1e-12)
        assert found.statistics[name].std == pytest.approx(statistic.std, rel=1e-12)
        assert found.statistics[name].boundaries == pytest.approx(statistic.boundaries, rel=1e-12)


def test_a_constant_column_has_no_deviation(database: Database) -> None:
    train = rows().set_column(4, "price", pa.array([0.1] * NUM_ROWS))
    assert fitted(database, schema_of(), train).statistics["price"].std == 0.0


def test_a_column_of_nulls_teaches_nothing(database: Database) -> None:
    train = rows().set_column(4, "price", pa.nulls(NUM_ROWS, pa.float64()))
    statistic = fitted(database, schema_of(price={"missing": 0.0}), train).statistics
    assert (statistic["price"].mean, statistic["price"].std) == (0.0, 1.0)
    assert statistic["band"].boundaries == ()


def test_unknown_users_are_no_id_of_their_own(database: Database) -> None:
    train = rows().set_column(0, "user", pa.array([None, *range(NUM_USERS)] * 50, pa.int64())[:NUM_ROWS])
    encoder = fitted(database, schema_of(), train)
    assert encoder.vocabularies["user"].null_index is None
    assert encoder.vocabularies["city"].null_index is not None


def test_refusing_vocabularies_know_the_whole_catalogue(database: Database) -> None:
    listed = pa.concat_tables([users(), pa.table({"user": [77], "age": [30.0], "city": ["far"]})])
    schema = schema_of(user={"unseen": "refuse"}, city={"unseen": "refuse", "min_count": 1, "missing": "refuse"})
    train = rows().filter(pa.compute.greater(rows()["user"], 3))
    encoder = fitted(database, schema, train, listed)
    ids, cities = encoder.vocabularies["user"], encoder.vocabularies["city"]
    assert ids.raw_ids.tolist() == sorted({*train["user"].to_pylist(), *range(NUM_USERS), 77})
    assert ids.counts[-1] == ids.counts[0] == 0
    assert ids.counts.sum() == len(train)
    assert "far" in cities.raw_ids


def test_rare_ids_cannot_be_refused(database: Database) -> None:
    schema = schema_of(city={"unseen": "refuse", "min_count": 5})
    with pytest.raises(ValueError, match="vocabulary 'city': min_count = 5 makes rare ids unseen"):
        fitted(database, schema, rows())


def test_fitting_names_the_feature_that_cannot_be_transformed(database: Database) -> None:
    train = rows().set_column(4, "price", pa.array([-3.0] * NUM_ROWS))
    with pytest.raises(ValueError, match=r"feature 'price': log1p takes numbers of at least 0, got -3\.0"):
        fitted(database, schema_of(), train)
