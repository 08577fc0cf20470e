import pytest

from recsys.models.options import RetrieverOptions
from recsys.models.twotower import TwoTower


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"loss": "bpr", "log_q": False}, "log_q has no effect on loss 'bpr'"),
        ({"loss": "bpr", "num_negatives": 0}, "loss 'bpr' needs num_negatives of at least 1, got 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"features": ("item",), "similarty": "dot"}, "similarty"),
    ],
)
def test_options_refuse_what_has_no_effect_or_no_meaning(values: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RetrieverOptions.model_validate(values)


@pytest.mark.parametrize("options", [RetrieverOptions(), RetrieverOptions(loss="in_batch", log_q=False)])
def test_options_survive_being_written_whole(options: RetrieverOptions) -> None:
    assert RetrieverOptions.model_validate(options.model_dump(mode="json")) == options


def test_two_tower_options_refuse_layers_of_a_sum() -> None:
    with pytest.raises(ValueError, match="layers have no effect on tower 'sum'"):
        TwoTower.Config.model_validate({"tower": "sum", "layers": [8]})
    with pytest.raises(ValueError, match="layers"):
        TwoTower.Config.model_validate({"layers": []})
