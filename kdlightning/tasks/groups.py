"""Samples that are several texts each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.losses.numerics import widened
from kdlightning.models.output import ModelOutput
from kdlightning.tasks.base import Task


@dataclass
class Groups(Batch):
    """A batch of B samples of `group` texts each; the inputs hold all B·`group` texts, those of a sample together.

    Attributes:
        group: texts of a sample.
    """

    group: int = 1


class GroupTask(Task):
    """Base of tasks whose samples are several texts.

    Batches are mappings of `(B, G, T)` inputs (`input_ids`, `attention_mask`, …) and perhaps `labels` `(B,)`, as
    `TextGroups` gives them. A network sees `(B·G, T)`. Of its B·G answers terms on taps compare each; responses see
    what `rows` makes of them.
    """

    least: ClassVar[int] = 2
    """Fewest texts of a sample."""

    def batch(self, raw: Any) -> Batch:
        """The batch with its texts one after the other."""
        batch = super().batch(raw)
        if isinstance(batch, Groups):
            return batch
        name = type(self).__name__
        texts = batch.inputs.get("input_ids") if isinstance(batch.inputs, Mapping) else None
        if not isinstance(texts, Tensor) or texts.ndim != 3 or texts.shape[1] < self.least:
            raise ConfigurationError(
                f"{name} reads mappings with input_ids (samples, {self.least} or more texts, tokens): use TextGroups"
            )
        inputs = {key: value.flatten(0, 1) for key, value in batch.inputs.items()}
        kept = {each.name: getattr(batch, each.name) for each in fields(batch)}
        return self.read(Groups(**{**kept, "inputs": inputs, "group": texts.shape[1]}))

    def read(self, batch: Groups) -> Groups:
        """What a subclass changes about a batch."""
        return batch


def texts_of(batch: Batch) -> int:
    """How many texts each of a batch's samples has."""
    return getattr(batch, "group", 1)


def grouped_embeddings(output: ModelOutput, batch: Batch) -> Tensor:
    """Unit embeddings `(B, G, D)` of the texts of each sample.

    Raises:
        ConfigurationError: the network did not answer with a vector for each text.
    """
    vectors = widened(output.logits) if output.has_logits else None
    if vectors is None or vectors.ndim != 2:
        raise ConfigurationError(
            "this task needs a vector for each text, and a network gave none: wrap it by kdlightning.sentence_encoder"
        )
    return torch.nn.functional.normalize(vectors, dim=1).unflatten(0, (-1, texts_of(batch)))
