"""The shop, made once."""

import pytest

from tests.serving.shop import Shop, shop_schema


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The shop with numbers for ids."""
    return Shop(folder=tmp_path_factory.mktemp("shop"), schema=shop_schema())
