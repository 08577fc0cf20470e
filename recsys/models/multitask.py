"""Rankers for several labels at once: a shared bottom, and experts mixed by a gate for each label.

Both read all inputs side by side and end in one tower per label; they differ in what the towers read. What each label's
loss counts is `label_weights` of every ranker's options. With one label they are an MLP, of use as a baseline alone.

Shapes: B rows, W width of all inputs together, E experts, H width of an expert's output, T labels.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from features.batch import Batch
from features.encoder import Encoder
from recsys.embedding.collection import EmbeddingCollection
from recsys.models.interface import Ranker
from recsys.models.layers import MLP, Regular, check_pooled, input_columns, input_width
from recsys.models.options import DeepOptions


class TowerOptions(DeepOptions):
    """tower: widths of each label's own layers, () for a linear one. The other settings are those of all layers."""

    hidden: tuple[int, ...] = Field(default=(256, 128), min_length=1)
    tower: tuple[int, ...] = (32,)

    def mlp(self, width: int, widths: Sequence[int], name: str, last_linear: bool = False) -> MLP:
        """Layers with these settings; name: what tells them from others in the model."""
        regular = Regular(batch_norm=self.batch_norm, dropout=self.dropout, name=name)
        return MLP(width, widths, last_linear, self.activation, regular)


class Towers(Ranker):
    """logit_t = tower_t(shared_t(x)), x all inputs side by side; a subclass says what `shared_t` is."""

    several_labels = True

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: TowerOptions) -> None:
        super().__init__(encoder, collection, config)
        check_pooled(self.inputs)
        self.width = input_width(collection, self.inputs)

    def _make_towers(self, width: int, config: TowerOptions) -> None:
        """One per label over [B, width]."""
        widths = (*config.tower, 1)
        self.towers = nn.ModuleList(
            config.mlp(width, widths, f"tower.{name}", last_linear=True) for name in self.labels
        )

    @abstractmethod
    def shared(self, x: Tensor, batch: Batch) -> list[Tensor]:
        """All inputs [B, W] of a batch -> what each label's tower reads."""

    def logits(self, batch: Batch) -> Tensor:
        """[B], or [B, T] with several labels."""
        x = torch.cat(input_columns(self.vectors(batch), batch, self.inputs), dim=1)  # [B, W]
        read = self.shared(x, batch)
        found = [tower(part, batch) for tower, part in zip(self.towers, read, strict=True)]
        return torch.cat(found, dim=1).squeeze(1)


class SharedBottom(Towers):
    """Every tower reads the same MLP of the inputs (Caruana 1997): shared_t(x) = mlp(x).

    Labels that disagree pull one representation in two directions; `MMoE` is the answer to that.
    """

    class Config(TowerOptions):
        """hidden: widths of the bottom."""

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: Config) -> None:
        super().__init__(encoder, collection, config)
        self.bottom = config.mlp(self.width, config.hidden, "bottom")
        self._make_towers(self.bottom.width_out, config)

    def shared(self, x: Tensor, batch: Batch) -> list[Tensor]:
        """The bottom, once for all."""
        return [self.bottom(x, batch)] * len(self.labels)


class MMoE(Towers):
    """Multi-gate mixture of experts (Ma et al. 2018): shared_t(x) = sum_e g_te(x) expert_e(x).

    The gates g_t = softmax(G_t x) over the experts are linear and without bias, as in the paper. Parameters beyond the
    towers': E experts of `hidden`, and T * E * W of gates.
    """

    class Config(TowerOptions):
        """num_experts: E (one would be a shared bottom). hidden: widths of each expert."""

        num_experts: int = Field(default=4, ge=2)

    def __init__(self, encoder: Encoder, collection: EmbeddingCollection, config: Config) -> None:
        super().__init__(encoder, collection, config)
        self.experts = nn.ModuleList(
            config.mlp(self.width, config.hidden, f"expert.{number}") for number in range(config.num_experts)
        )
        self.gates = nn.ModuleList(nn.Linear(self.width, config.num_experts, bias=False) for _ in self.labels)
        self._make_towers(config.hidden[-1], config)

    def shared(self, x: Tensor, batch: Batch) -> list[Tensor]:
        """For each label its own mixture of the experts."""
        experts = torch.stack([expert(x, batch) for expert in self.experts], dim=1)  # [B, E, H]
        return [torch.einsum("be,beh->bh", gate(x).softmax(dim=1), experts) for gate in self.gates]
