"""What a model takes is what its tensors take."""

import pytest
from torch import nn

from recsys.model_bytes import served_bytes, table_sizes
from recsys.run import Run, build_model
from tests.recsys.test_run_start import Project


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Project(tmp_path_factory.mktemp("bytes")).parent("dense")


def test_served_bytes_are_rows_and_dense_parameters(run: Run) -> None:
    model = run.model()
    assert isinstance(model, nn.Module)
    tensors = model.state_dict()
    dense = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith("collection."))
    rows = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("collection."))
    found = served_bytes(model)
    assert found["dense_bytes"] == dense
    assert 0 < found["table_bytes"] - rows < 4096, "a file's header"


def test_table_sizes_are_weights_and_states_while_training(run: Run) -> None:
    """Rows of 4 floats need no padding, and row-wise Adagrad keeps one float a row."""
    model = build_model(run.config, run.prepared.encoder)
    assert isinstance(model, nn.Module)
    rows = sum(len(tensor) for name, tensor in model.state_dict().items() if "stores." in name)
    assert table_sizes(model) == {"training": rows * 16, "optimizer": rows * 4} == dict(run.state.sizes)


def test_models_without_tables_take_nothing_of_them(run: Run) -> None:
    assert table_sizes(None) == {}
    assert served_bytes(Project(run.folder / "p").parent("popularity").model()) == {}
