"""Entities in texts whose words are tagged B-…, I-… and O."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from kdlightning.errors import ConfigurationError


class EntityF1(Metric):
    """F1 over whole entities, all types together: right is one whose first word, last word and type are right.

    An entity goes from its first word over the I-… of its type to the last; it begins at B-…, and at an I-… whose type
    is not that of the word before, as CoNLL's own script `conlleval` and seqeval's default have it.

    Args:
        tags: the tags in the order of their numbers: `O`, `B-` and `I-` with a type.
    """

    full_state_update = False
    right: Tensor
    predicted: Tensor
    given: Tensor

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        types = sorted({tag[2:] for tag in tags if tag != "O"})
        for tag in tags:
            if tag != "O" and tag[:2] not in ("B-", "I-"):
                raise ConfigurationError(f"entities are tagged O, B-… and I-…, not {tag!r}: leave tags out")
        self.register_buffer("types", torch.tensor([-1 if tag == "O" else types.index(tag[2:]) for tag in tags]))
        self.register_buffer("begins", torch.tensor([tag.startswith("B-") for tag in tags]))
        for name in ("right", "predicted", "given"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, text: Tensor) -> None:
        """Adds words in their order: predicted and true tag numbers, and the number of the text, `(N,)` each."""
        if not len(target):
            return
        starts, ends, types = self._entities(prediction, text)
        true_starts, true_ends, true_types = self._entities(target, text)
        both = starts & true_starts & (ends == true_ends) & (types == true_types)
        self.right = self.right + both.sum()
        self.predicted = self.predicted + starts.sum()
        self.given = self.given + true_starts.sum()

    def compute(self) -> Tensor:
        """2·right / (predicted + given); 0 where there is no entity at all."""
        return 2 * self.right / (self.predicted + self.given).clamp(min=1)

    def _entities(self, tags: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether an entity begins at each word, where it would end (one behind its last word), and its type."""
        types, begins = self.types[tags], self.begins[tags]  # type: ignore[index]
        other = torch.ones_like(begins)
        other[1:] = (types[1:] != types[:-1]) | (text[1:] != text[:-1])
        starts = (types >= 0) & (begins | other)
        goes_on = (types >= 0) & ~starts
        places = torch.arange(1, len(tags) + 1, device=tags.device)
        # From the right, the nearest later word that does not go on with an entity.
        stops = torch.where(goes_on[1:].logical_not(), places[:-1], len(tags))
        ends = torch.cat([stops, places[-1:]]).flip(0).cummin(0).values.flip(0)
        return starts, ends, types
