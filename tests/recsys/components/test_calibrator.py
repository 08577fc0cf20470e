"""The calibrator of a bundle: read as it was written, for its own ranker alone, and no hindrance to who has none."""

import pytest
import torch

from features import storage
from recsys.bundle import KINDS, BundleError, BundleStore
from recsys.components import Roles, export_ranker, load_ranker
from recsys.config import ModelConfig
from recsys.evaluation.calibrators import Beta, Calibrator, Isotonic
from recsys.models.interface import Ranker
from tests.serving.shop import Shop

CALIBRATOR = Calibrator(curves={"click": Beta(0.5, 0.9, -0.1)}, shifts={"click": -1.5})


def exported(shop: Shop, calibrator: Calibrator | None, **options: object) -> Roles:
    model = shop.model("dcn", **options)
    assert isinstance(model, Ranker)
    section = ModelConfig(name="dcn", options=options)
    return export_ranker(shop.store, model=model, model_section=section, view=shop.view, calibrator=calibrator)


def published(shop: Shop, roles: Roles) -> str:
    return shop.store.publish(roles, config={}, optional=[role for role in roles if role == "calibrator"])


def test_calibrator_is_read_as_it_was_written(shop: Shop) -> None:
    part = load_ranker(shop.store.open(published(shop, exported(shop, CALIBRATOR))))
    assert part.calibrator is not None
    assert part.calibrator.record() == CALIBRATOR.record()
    logits = torch.linspace(-3, 3, 7)
    assert torch.equal(part.probabilities(logits), CALIBRATOR.probabilities(logits[:, None], ("click",)))


def test_ranker_is_one_component_with_and_without_a_calibrator(shop: Shop) -> None:
    plain, calibrated = exported(shop, None), exported(shop, CALIBRATOR)
    assert calibrated == plain | {"calibrator": calibrated["calibrator"]}
    part = load_ranker(shop.store.open(published(shop, plain)))
    assert part.calibrator is None
    logits = torch.linspace(-3, 3, 7)
    assert torch.equal(part.probabilities(logits), logits.sigmoid()[:, None])


def test_calibrator_of_another_ranker_is_refused(shop: Shop) -> None:
    other = exported(shop, CALIBRATOR, cross_layers=1)
    roles = exported(shop, None) | {"calibrator": other["calibrator"]}
    with pytest.raises(BundleError, match="the calibrator was fitted for another ranker"):
        load_ranker(shop.store.open(published(shop, roles)))


def test_damaged_calibrator_is_refused(shop: Shop) -> None:
    roles = exported(shop, None)
    damaged = shop.store.add_component(
        "calibrator",
        lambda folder: storage.write_json(folder / "calibrator.json", {"format": 7}),
        token=f"ranker:{roles['ranker']}",
    )
    with pytest.raises(BundleError, match=r"calibrator\.json is damaged or of another version"):
        load_ranker(shop.store.open(published(shop, roles | {"calibrator": damaged})))


def test_program_that_knows_no_calibrators_serves_the_model(shop: Shop) -> None:
    calibrator = Calibrator(curves={"click": Isotonic([0.0], [1.0])})
    bundle = published(shop, exported(shop, calibrator))
    older = BundleStore(shop.store.location, kinds={kind: KINDS[kind] for kind in KINDS if kind != "calibrator"})
    assert load_ranker(older.open(bundle)).calibrator is None
