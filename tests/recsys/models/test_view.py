from features.prepared import View
from recsys.models.view import BatchLoader, DataView


def as_data(view: View) -> DataView:
    """The type checker holds the platform's view, and through it the loader, to what models ask."""
    return view


def test_the_platforms_view_has_what_models_ask() -> None:
    asked = [name for name in vars(DataView) if not name.startswith("_")]
    assert asked == ["num_items", "loader", "interactions", "user_batch", "item_batch"]
    assert all(hasattr(View, name) for name in asked)
    assert [name for name in vars(BatchLoader) if not name.startswith("_")] == ["num_batches", "epoch"]
