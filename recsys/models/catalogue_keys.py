"""What a server keeps of a catalogue for models that search long histories: the attention key of every item.

An event of a history is an item of the catalogue, and what attention reads of it (its id, its category) is a function
of the item. So one row a catalogue item, read by its position, stands in the place of a lookup for each sequence, of
whatever a compressed table makes of ids, and of projections. What is no function of the item (an action, an age) is not
in here.

Shapes: n items of the catalogue, N events, W width of a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from features.batch import Batch, Jagged
from features.entities import EntityTable
from recsys.embedding.precision import Precision, pack, read_rows
from recsys.models.interface import Ranker

ITEMS_AT_ONCE = 65536


@dataclass(frozen=True, kw_only=True)
class CatalogueKeys:
    """rows: [n, W] floats, or packed ones [n, bytes]. width: W.

    The rows are as precise as the tables that they were read from: int8 if all of those are served in int8. Packed
    again side by side, a value is off by at most (max - min of the key) / 510 more.
    Memory: n `row_bytes(W, precision)`, beside the tables.
    """

    rows: Tensor
    precision: Precision
    width: int

    @staticmethod
    @torch.no_grad()
    def of(model: Ranker, items: EntityTable) -> dict[str, "CatalogueKeys"]:
        """The keys that a model can use, by sequence group: it reads the catalogue as one history of all its items."""
        sources = {sequence: source for group in model.schema.sequences for sequence, source in group.of.items()}
        known = {sequence: source for sequence, source in sources.items() if source in items.features.features}
        packed: dict[str, list[Tensor]] = {}
        about: dict[str, tuple[Precision, int]] = {}
        for chunk in torch.arange(len(items)).split(ITEMS_AT_ONCE) if known else ():
            found = model.event_keys(_events(items.gather(chunk, list(known.values())), known).to(model.device))
            for group, keys in found.items():
                rows = pack(keys.vectors, keys.precision, f"attention keys of {group!r}")
                packed.setdefault(group, []).append(rows)
                about[group] = (keys.precision, keys.vectors.shape[1])
        return {
            group: CatalogueKeys(rows=torch.cat(rows), precision=about[group][0], width=about[group][1])
            for group, rows in packed.items()
        }

    def read(self, positions: Tensor) -> Tensor:
        """Catalogue positions [N] -> keys [N, W] float32."""
        return read_rows(self.rows, positions, self.precision, self.width)


def _events(items: Batch, sources: Mapping[str, str]) -> Batch:
    """One history of all these items."""
    offsets = torch.tensor([0, len(items)])
    return Batch(features={name: Jagged(values=items.ids(source), offsets=offsets) for name, source in sources.items()})
