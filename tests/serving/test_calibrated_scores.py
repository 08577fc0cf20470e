"""Score of a bundle with a calibrator: the calibrated probabilities of offline, in the order of the model's own."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys.components import export_ranker
from recsys.config import ModelConfig
from recsys.evaluation.calibrators import METHODS, Calibrator
from recsys.evaluation.ctr import ScoredRows
from recsys.models.interface import Ranker
from serving.pipeline import Pipeline
from serving.queries import ScoreQuery
from tests.serving.shop import NUM_ITEMS, NUM_USERS, Shop
from tests.serving.test_scoring import CONTEXT, offline


@pytest.mark.parametrize("method", METHODS)
def test_served_scores_are_the_offline_scores_calibrated(shop: Shop, method: str) -> None:
    model = shop.model("dcn")
    assert isinstance(model, Ranker)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(5000, generator=random) * 3
    labels = (torch.rand(5000, generator=random) < (logits / 2 - 1).sigmoid()).float()
    calibrator = Calibrator.fit(method, {"click": ScoredRows(labels=labels, logits=logits)}, {"click": math.log(0.1)})
    roles = export_ranker(
        shop.store, model=model, model_section=ModelConfig(name="dcn"), view=shop.view, calibrator=calibrator
    )
    pipeline = Pipeline.load(shop.store.open(shop.store.publish(roles, config={}, optional=["calibrator"])))
    items, hours = list(range(NUM_ITEMS)), [item % 5 for item in range(NUM_ITEMS)]
    for user in range(0, NUM_USERS, 4):
        columns = {"hour": pa.array(hours), "device": CONTEXT["device"]}
        answer = pipeline.score(ScoreQuery(user=user, items=items, columns=columns)).scores
        own = torch.from_numpy(offline(shop, user, items, hours))
        expected = calibrator.probabilities(own.double().logit()[:, None], ("click",))
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected.numpy(), rtol=0, atol=1e-5)
        assert float(np.abs(answer[:, 0] - own.numpy()).max()) > 0.01
        apart = np.diff(np.sort(own.numpy())) > 1e-5
        assert bool((np.diff(answer[own.argsort().numpy(), 0])[apart] > 0).all())
