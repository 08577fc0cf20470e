"""The shop and its bundles, made once."""

import pytest

from serving.pipeline import Pipeline
from tests.serving.shop import Shop, shop_schema


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop with numbers for ids."""
    return Shop(folder=tmp_path_factory.mktemp("shop"), schema=shop_schema())


@pytest.fixture(scope="session")
def pipeline(shop: Shop) -> Pipeline:
    """A two-tower model and DCN-V2."""
    return Pipeline.load(shop.bundle("twotower", "dcn"))
