"""The label table of a decomposed backbone, whose rows come and go with their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.kind.gate import DROPPED
from genflow.kind.linear import parameter
from genflow.nn.embeddings import LabelTable


@final
class ClassRows(nn.Module):
    """A `LabelTable` in two parameters: a row for each class that was kept, and one that means "no class".

    They are apart so that the rows of new classes can be trained while all else is frozen. Rows of dropped classes are
    gone; labels keep their numbers.

    Shapes: y (B,) int64 in [0, num_classes] or None (no class) to (B, width); `rows` (kept, width), `no_class`
    (1, width).
    """

    def __init__(self, rows: Tensor, no_class: Tensor, class_to_tailor: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = len(class_to_tailor)
        self.rows = parameter(rows)
        self.no_class = parameter(no_class)
        kept = [c for c, tailor in enumerate(class_to_tailor) if tailor != DROPPED]
        places = torch.full((self.num_classes + 1,), len(kept) + 1)  # of dropped classes: beyond the last row
        places[kept] = torch.arange(len(kept))
        places[-1] = len(kept)
        self.places: Tensor
        self.register_buffer("places", places, persistent=False)  # (num_classes + 1,)

    @classmethod
    def split(cls, table: LabelTable, class_to_tailor: Sequence[int]) -> ClassRows:
        """Cut the table of a dense backbone; all its classes are there.

        Raises:
            ValueError: If the class map is of another number of classes.
        """
        if table.num_classes != len(class_to_tailor):
            raise ValueError(
                f"the backbone has labels for {table.num_classes} classes, and the class map names "
                f"{len(class_to_tailor)}: give each class its tailor, or -1"
            )
        kept = torch.tensor([c for c, tailor in enumerate(class_to_tailor) if tailor != DROPPED], dtype=torch.int64)
        rows = table.weight.index_select(0, kept.to(table.weight.device))
        return cls(rows, table.weight[-1:], class_to_tailor)

    def whole(self) -> LabelTable:
        """Return a plain table, of one class at least; classes that are not here get the row of "no class"."""
        places = self.places.clamp(max=len(self.rows))
        if not self.num_classes:  # a backbone that is built without classes would have no table
            places = places.expand(2)
        table = LabelTable(len(places) - 1, self.rows.shape[1])
        table.weight = nn.Parameter(self._table().detach().index_select(0, places))
        return table

    def forward(self, y: Tensor | None, batch: int) -> Tensor:
        if y is None:
            return self.no_class.expand(batch, -1)
        return F.embedding(self.places.index_select(0, y), self._table())  # (B, width)

    def _table(self) -> Tensor:
        return torch.cat([self.rows, self.no_class])  # (kept + 1, width)
