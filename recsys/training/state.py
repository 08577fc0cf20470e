"""What a checkpoint holds of a model and its optimizers, by name.

The names are the same in every backend and at any number of ranks:

model.<name>                    parameters and buffers of the dense part, and model.<...>.stores.<store>
tables.<...>.optimizer.<store>  state of a store's optimizer
dense.<number>.<name>.<state>   state of a dense optimizer for a parameter; number: of the last phase that it serves
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from recsys.embedding.collection import EmbeddingCollection
from recsys.embedding.table import EmbeddingTable
from recsys.phases import Phase
from recsys.training.checkpoint import Checkpoints

MODEL, TABLES, DENSE = "model.", "tables.", "dense."


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The live tensors of the model: parameters, buffers and the stores of its collections."""
    return {MODEL + name: tensor for name, tensor in model.state_dict().items()}


def table_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The live optimizer state of the stores of every collection in the model."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, EmbeddingCollection):
            state = module.state().items()
            found |= {f"{TABLES}{prefix}.{key}": tensor for key, tensor in state if key.startswith("optimizer.")}
    return found


def dense_tensors(model: nn.Module, phases: Sequence[Phase]) -> dict[str, Tensor]:
    """The state of the phases' optimizers, by parameter name; numbers as 0-dim tensors."""
    found: dict[str, Tensor] = {}
    for name, parameter, optimizer in _optimized(model, phases):
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{DENSE}{name}.{key}"] = torch.as_tensor(value)
    return found


def load_model(model: nn.Module, checkpoints: Checkpoints, tag: str) -> None:
    """Overwrite the model with the weights saved under a tag; ValueError names what does not fit."""
    checkpoints.load(tag, into=model_tensors(model), prefix=MODEL)


def load_training(
    model: nn.Module, phases: Sequence[Phase], checkpoints: Checkpoints, tag: str, grown: Collection[str] = ()
) -> None:
    """Overwrite the model and the state of all its optimizers; grown: tensors of tables that keep the rows beyond."""
    checkpoints.load(tag, into=model_tensors(model), prefix=MODEL, grown=grown)
    checkpoints.load(tag, into=table_tensors(model), prefix=TABLES, grown=grown)
    _load_dense(model, phases, checkpoints.load(tag, prefix=DENSE))


def restart(model: nn.Module, fresh: nn.Module, phases: Sequence[Phase]) -> None:
    """Give `model` the weights of `fresh`, a new one of the same config, and let every optimizer forget.

    Buffers of tables stay: what a search found is kept for the training that follows it.
    """
    kept = {
        f"{MODEL}{prefix}.{name}"
        for prefix, table in model.named_modules()
        if isinstance(table, EmbeddingTable)
        for name, _ in table.named_buffers()
    }
    initial = model_tensors(fresh) | table_tensors(fresh)
    with torch.no_grad():
        for name, tensor in (model_tensors(model) | table_tensors(model)).items():
            if name not in kept:
                tensor.copy_(initial[name])
    for phase in phases:
        for optimizer in phase.optimizers:
            optimizer.state.clear()


def _load_dense(model: nn.Module, phases: Sequence[Phase], saved: Mapping[str, Tensor]) -> None:
    """A parameter without saved state has taken no step; saved state without a parameter is another model's."""
    unknown = set(saved)
    for name, parameter, optimizer in _optimized(model, phases):
        start = f"{DENSE}{name}."
        state = {key.removeprefix(start): tensor for key, tensor in saved.items() if key.startswith(start)}
        unknown -= {start + key for key in state}
        if state:
            optimizer.state[parameter] = {key: _placed(tensor, parameter) for key, tensor in state.items()}
    if unknown:
        raise ValueError(f"the checkpoint holds optimizer state {sorted(unknown)[0]!r}, which this model has not")


def _placed(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """State of a parameter's shape lies where the parameter does; step counts stay on the CPU, as torch keeps them."""
    return tensor.to(parameter.device) if tensor.dim() else tensor


def _optimized(
    model: nn.Module, phases: Sequence[Phase]
) -> list[tuple[str, nn.Parameter, torch.optim.Optimizer]]:  # fmt: skip
    """Every optimized parameter with its name in the model, after the number of its optimizer."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    distinct = {
        id(optimizer): (number, optimizer) for number, phase in enumerate(phases) for optimizer in phase.optimizers
    }
    found = []
    for number, optimizer in distinct.values():
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            found.append((f"{number}.{names[id(parameter)]}", parameter, optimizer))
    return found
