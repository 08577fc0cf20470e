"""How many bytes a model takes: what it serves, and what its tables hold while they train."""

import torch
from safetensors.torch import save

from recsys import distributed
from recsys.models.interface import ClosedForm, Ranker, Recommender, Retriever


def served_bytes(model: Ranker | Recommender | ClosedForm) -> dict[str, int]:
    """Bytes on disk of a model's served tables, written as safetensors, and of its dense parameters; {} without any."""
    if not isinstance(model, Ranker | Retriever):
        return {}
    tables = {name: tensor.contiguous() for name, tensor in model.collection.freeze().state_dict().items()}
    dense = sum(tensor.nbytes for name, tensor in model.state_dict().items() if not name.startswith("collection."))
    return {"table_bytes": len(save(tables)), "dense_bytes": dense}


def table_sizes(model: Ranker | Recommender | None) -> dict[str, int]:
    """Bytes of tables in training, over all ranks."""
    if not isinstance(model, Ranker | Retriever):
        return {}
    sizes = {"training": model.collection.training_bytes(), "optimizer": model.collection.optimizer_bytes()}
    summed = distributed.all_reduce_sum(torch.tensor(list(sizes.values()), dtype=torch.float64)).tolist()
    return {name: int(total) for name, total in zip(sizes, summed, strict=True)}
