"""Which units and heads matter, told from the weights alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdlightning.models.shrink.encoder import Encoder, layer_of, renamed

Weights = Mapping[str, Tensor]


def most(scores: Tensor, count: int) -> list[int]:
    """Numbers of the highest scores in ascending order; of equal ones the first."""
    return sorted(torch.argsort(scores, descending=True, stable=True)[:count].tolist())


def projections(encoder: Encoder, weights: Weights, layer: int) -> dict[str, Tensor]:
    """Weights of the attention of one layer: "query", "key", "value" `(heads' units, hidden)`, "output" transposed."""
    found = {}
    for name, axes in encoder.axes.items():
        word = next((axis for axis in axes if axis in ("query", "key", "value", "output")), None)
        if word is not None and len(axes) == 2:
            matrix = weights[renamed(name, layer)].double()
            found[word] = matrix.T if word == "output" else matrix
    return found


def head_scores(encoder: Encoder, weights: Weights, layer: int) -> Tensor:
    """How much each head can write `(heads,)`: the Frobenius norm of its output times its value matrix.

    ‖O_h V_h‖² = Σ (O_hᵀO_h)∘(V_h V_hᵀ), which is small: a head whose output or values are zero scores zero.
    """
    found = projections(encoder, weights, layer)
    value, output = (found[word].unflatten(0, (encoder.heads, -1)) for word in ("value", "output"))
    return ((output @ output.mT) * (value @ value.mT)).sum((1, 2)).clamp(min=0).sqrt()


def unit_scores_in_heads(encoder: Encoder, weights: Weights, layer: int) -> tuple[Tensor, Tensor]:
    """How much each unit inside the heads matters `(heads, units)`: ‖q‖·‖k‖ for scores, ‖v‖·‖o‖ for values."""
    norms = {word: matrix.norm(dim=1) for word, matrix in projections(encoder, weights, layer).items()}
    scores, values = norms["query"] * norms["key"], norms["value"] * norms["output"]
    return scores.view(encoder.heads, -1), values.view(encoder.heads, -1)


def inner_scores(encoder: Encoder, weights: Weights, layer: int) -> Tensor:
    """How much each feed-forward unit matters `(inner,)`: the norm of what it reads times that of what it writes."""
    reads, writes = torch.zeros(encoder.inner).double(), torch.zeros(encoder.inner).double()
    for name, axes in encoder.axes.items():
        if layer_of(name) is not None and "inner" in axes:
            square = weights[renamed(name, layer)].double().square()
            if axes[0] == "inner":
                reads += square.flatten(1).sum(1) if square.ndim > 1 else square
            else:
                writes += square.sum(0)
    return (reads * writes).sqrt()


def hidden_scores(encoder: Encoder, weights: Weights) -> Tensor:
    """How much each unit of the width matters `(hidden,)`.

    The size that it has after the normalisations, Σ (scale² + shift²) over all of them, times the square of the
    weights with which all layers and heads read it, Σ ‖W[:, unit]‖².
    """
    size, read = torch.zeros(encoder.hidden).double(), torch.zeros(encoder.hidden).double()
    for name, axes in encoder.axes.items():
        numbers = range(encoder.depth) if layer_of(name) is not None else (0,)
        for number in numbers:
            tensor = weights[renamed(name, number)].double()
            if axes == ("hidden",) and "norm" in name.lower():
                size += tensor.square()
            elif len(axes) == 2 and axes[1] == "hidden" and "embedding" not in name and axes[0] != "words":
                read += tensor.square().sum(0)
    return size * read
