"""Hidden states and embeddings of a transformer, layer by layer, through one learned map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdlightning.losses.base import FeatureLoss, LossContext, Shape
from kdlightning.losses.numerics import full_precision
from kdlightning.losses.token_mask import token_mask


@full_precision
def tinybert_hidden_loss(
    student: Tensor, teacher: Tensor, attention_mask: Tensor | None, *, count_padding: bool = False
) -> Tensor:
    """TinyBERT's hidden-state (or embedding) term of one layer: the mean of (H·W − Hᵗ)² over tokens and channels.

    Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, equations 8
    and 9; the mean over elements is that of their code, and they do not say what becomes of padding.

    Args:
        student: `(B, L, D)`, after the learned map.
        teacher: the same shape; no gradient flows into it.
        attention_mask: `(B, L)`, 1 where there is a token; None if there is no padding.
        count_padding: take the mean over all positions instead of the tokens, as the released code does.

    Returns:
        A scalar; float32 or better. Without any token 0.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher states must have one shape: {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    squares = (student - teacher.detach()).square()
    if attention_mask is None or count_padding:
        return squares.mean()
    mask = attention_mask.to(squares.dtype)
    return (squares * mask[:, :, None]).sum() / (squares.shape[2] * mask.sum()).clamp(min=1)


class TinyBERTHidden(FeatureLoss):
    """TinyBERT's terms on embeddings and hidden states, summed over the paired layers; see `tinybert_hidden_loss`.

    The student's states are mapped to the teacher's width by linear maps without bias, which are trained with it, also
    where the widths agree. `LayerKD` pairs the layers, and by default the embeddings, with each other. The
    weight of the paper is 1 for each layer.
    """

    joint = True
    spatial = "any"
    padding = "masked"
    with_embedding: ClassVar[bool] = True

    def __init__(self, maps: Literal["paper", "shared", "none"] = "paper", count_padding: bool = False) -> None:
        """
        Args:
            maps: "paper" has one map for the hidden states of all layers and one for the embeddings (W_h and W_e),
                "shared" a single one for all with a bias, as the released code does, "none" none.
            count_padding: divide by all positions, as the released code does.
        """
        super().__init__()
        if maps not in ("paper", "shared", "none"):
            raise ValueError(f"maps is paper, shared or none, not {maps!r}")
        self.maps, self.count_padding = maps, count_padding
        self.embeddings: tuple[bool, ...] = ()
        self.projections = nn.ModuleDict()

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """None: the loss has its own maps, which layers share."""
        return None

    def bind(self, context: LossContext) -> None:
        """Notes which pairs are embeddings."""
        self.embeddings = tuple(tap in ("hidden_states.0", "blocks.0:input") for tap in context.student_taps)

    def build(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        """Makes the maps."""
        if self.maps == "none":
            return
        widths = [(ours[1], theirs[1]) for ours, theirs in zip(student, teacher, strict=True)]
        kinds = [embedding and self.maps == "paper" for embedding in self.embeddings]
        for name, kind in (("hidden", False), ("embedding", True)):
            wanted = {width for width, own in zip(widths, kinds, strict=True) if own == kind}
            if len(wanted) > 1:
                raise ValueError("layers of different widths cannot share a map: give each its own callback")
            for width in wanted:
                self.projections[name] = nn.Linear(*width, bias=self.maps == "shared")

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], *, batch: Any = None, progress: float = 0.0
    ) -> Tensor:
        """The sum over the pairs, a scalar; states `(B, D, L)`, or maps `(B, D, H, W)`."""
        values = []
        for ours, theirs, embedding in zip(student, teacher, self.embeddings, strict=True):
            states, targets = (tensor.flatten(2).transpose(1, 2) for tensor in (ours, theirs))
            mask = token_mask(batch, states.shape[1])
            states = self._mapped(states, embedding)
            values.append(tinybert_hidden_loss(states, targets, mask, count_padding=self.count_padding))
        return torch.stack(values).sum()

    def _mapped(self, states: Tensor, embedding: bool) -> Tensor:
        if self.maps == "none":
            return states
        mapped: Tensor = self.projections["embedding" if embedding and self.maps == "paper" else "hidden"](states)
        return mapped
