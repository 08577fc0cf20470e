"""The pipeline as a whole: what it says of itself, its parts, threads, and what it does not import."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.errors import NotServedError
from serving.pipeline import Pipeline
from serving.queries import RetrieveQuery
from tests.serving.shop import Shop

ROOT = Path(__file__).resolve().parents[2]


def test_info_names_parts_inputs_and_components(shop: Shop, pipeline: Pipeline) -> None:
    info = pipeline.info
    assert info.bundle_id == pipeline.bundle_id
    assert info.components["retriever.items"] == info.components["ranker.items"]
    assert info.retrieval is not None
    assert info.ranking is not None
    assert (info.retrieval.model, info.retrieval.embedding_dim) == ("twotower", 64)
    assert info.retrieval.features[:4] == ("age", "gender", "user_id", "history")
    assert info.retrieval.attributes == ("category", "item_id", "price")
    assert (info.retrieval.catalogue.num_items, info.retrieval.catalogue.items_are_texts) == (41, False)
    assert info.ranking.tasks == ("click",)
    assert "hour" in info.ranking.features


def test_bundle_without_a_retriever_says_so(shop: Shop) -> None:
    pipeline = Pipeline.load(shop.bundle("dcn"))
    assert pipeline.info.retrieval is None
    with pytest.raises(NotServedError, match="holds no retriever"):
        pipeline.retrieve(RetrieveQuery(user=1, k=1))


def test_answers_do_not_depend_on_threads(pipeline: Pipeline) -> None:
    queries = [RetrieveQuery(user=n % 12, k=7, exclude_seen=True) for n in range(48)]
    alone = [pipeline.retrieve(query).items.tolist() for query in queries]
    with ThreadPoolExecutor(4) as threads:
        assert [answer.items.tolist() for answer in threads.map(pipeline.retrieve, queries)] == alone


ANSWER_ONCE = """
import sys
import serving.server, serving.client
from recsys.bundle import BundleStore
from serving.pipeline import Pipeline
from serving.queries import RetrieveQuery
pipeline = Pipeline.load(BundleStore(sys.argv[1]).open(sys.argv[2]))
print(len(pipeline.retrieve(RetrieveQuery(user=1, k=5))))
print(sorted({name.split(".")[0] for name in sys.modules} & {"torchrec", "fbgemm_gpu"}))
"""


def test_serving_loads_no_training_backend(shop: Shop, pipeline: Pipeline) -> None:
    command = [sys.executable, "-c", ANSWER_ONCE, shop.store.location, pipeline.bundle_id]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["5", "[]"]
