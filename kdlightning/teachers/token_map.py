"""A teacher whose student knows fewer words: numbers of tokens from one to the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdlightning.errors import ConfigurationError
from kdlightning.models.output import Head, ModelOutput
from kdlightning.text.smaller_vocabulary import read_token_map


def read_map(token_map: str | Sequence[int] | None) -> list[int] | None:
    """For each token of the student the teacher's; None where the numbers are the same.

    Raises:
        ConfigurationError: no map, or one with negative numbers.
    """
    if token_map is None or token_map in ("same", "None"):  # jsonargparse hands a nested null on as text
        return None
    found = read_token_map(token_map) if isinstance(token_map, str) else [int(number) for number in token_map]
    if not found or min(found) < 0:
        raise ConfigurationError("FrozenTeacher: token_map needs a number of the teacher's for each of the student's")
    return found


class FewerWords:
    """Inputs and answers of a teacher for a student with fewer words."""

    def __init__(self) -> None:
        self._head: tuple[Tensor, Head] | None = None

    def inputs(self, inputs: Any, words: Tensor) -> Any:
        """The same text in the teacher's numbers."""
        if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
            raise ConfigurationError("FrozenTeacher: token_map is for mappings with input_ids, and the batch has none")
        return {**inputs, "input_ids": words[inputs["input_ids"]]}

    def output(self, output: ModelOutput, words: Tensor) -> ModelOutput:
        """The same answer, of a language model about the student's words alone: their softmax is that among them."""
        if output.hidden is None or output.head is None:
            return output
        return ModelOutput(hidden=output.hidden, head=self._smaller(output.head, words), taps=output.taps)

    def _smaller(self, head: Head, words: Tensor) -> Head:
        # The weights are frozen: the rows are taken once for each device.
        if self._head is None or self._head[0] is not head.weight or self._head[1].weight.device != words.device:
            with torch.no_grad():
                bias = None if head.bias is None else head.bias[words]
                fewer = Head(head.weight[words], bias, head.softcap, head.logit_scale)
            self._head = (head.weight, fewer)
        return self._head[1]
