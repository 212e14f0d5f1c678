"""Feature and relation knowledge of transformers, layer by layer."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import nn

from kdlightning.callbacks.knowledge import KnowledgeCallback
from kdlightning.errors import ConfigurationError
from kdlightning.losses.base import LossContext, Shape, TapLoss
from kdlightning.modules.knowledge import TapPair
from kdlightning.modules.layer_pairs import LayerPairs
from kdlightning.schedules import Weight
from kdlightning.taps.names import Layout


class LayerKD(KnowledgeCallback[TapLoss]):
    """A term on the layers of two transformers, which pairs their taps by itself.

    What is paired of each layer, the loss says: hidden states for `TinyBERTHidden`, queries and keys for
    `TinyBERTAttention`, and so on; any `FeatureLoss` that takes tokens can be used. Works with encoders and causal
    language models of transformers and with vision transformers of timm. To choose the taps one by one, use `FeatureKD`
    or `RelationKD`.

    Example:
        >>> from kdlightning.callbacks import LayerKD
        >>> from kdlightning.losses import TinyBERTHidden
        >>> LayerKD(TinyBERTHidden(), layers={1: 4, 2: 8, 3: 12}).name
        'tiny_bert_hidden'

    Args:
        loss: the loss.
        layers: with M layers in the student and N in the teacher, counted from 1: "uniform" pairs layer i with the one
            nearest to i·N/M, "last" with i+N-M, "skip" is "uniform" without the last layer, "final" pairs the last
            layers alone; a list has the teacher's layer for each of the student's, a mapping student's to teacher's.
            -1 is the last layer. None is what the loss prescribes.
        embedding: whether to pair the embeddings too, of losses on hidden states; None is what the loss prescribes.
        weight: number or schedule; None leaves it to the module's `weights` (1 by default).
        name: name of the term; the loss's in snake case by default. Two terms need two names.
    """

    def __init__(
        self,
        loss: TapLoss,
        layers: str | list[int] | dict[int, int] | None = None,
        embedding: bool | None = None,
        weight: Weight | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(loss, [TapPair("", "")], "auto", weight, name)
        with_embedding = loss.with_embedding if embedding is None else embedding
        if with_embedding and tuple(loss.layers) != ("hidden_states",):
            raise ConfigurationError(f"LayerKD: embedding is for losses on hidden states, not {type(loss).__name__}")
        owner = f"LayerKD({self.name})"
        which = loss.layer_map if layers is None else layers
        # Losses of tokens see the class tokens of vision transformers too; those of maps see patches alone.
        layout: Layout | None = "tokens" if loss.padding == "masked" else None
        self.layers = LayerPairs(which, loss.layers, with_embedding, owner, layout)

    @property
    def state_key(self) -> str:
        """Tells two callbacks of one class apart."""
        return f"LayerKD[{self.name}:{type(self.loss).__name__}({self.layers.layers})]"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Declares the term."""
        self.declare(pl_module, stage, self.layers)

    def build(self, student: list[Shape], teacher: list[Shape], context: LossContext) -> nn.Module:
        """The networks of the term, from the shapes of the taps that were found."""
        pairs = zip(context.student_taps, context.teacher_taps, strict=True)
        self.pairs = [TapPair(ours, theirs) for ours, theirs in pairs]
        return super().build(student, teacher, context)
