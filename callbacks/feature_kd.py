"""Feature knowledge: hidden maps and vectors of single samples."""

from __future__ import annotations

from kdlightning.callbacks.knowledge import AdapterName, KnowledgeCallback, Pairs
from kdlightning.losses.base import FeatureLoss
from kdlightning.schedules import Weight


class FeatureKD(KnowledgeCallback[FeatureLoss]):
    """Adds a feature term to any mode whose teacher gives taps.

    Example:
        >>> from kdlightning.callbacks import FeatureKD
        >>> from kdlightning.losses import AttentionTransfer
        >>> FeatureKD(AttentionTransfer(), {"stages.0": "stages.0"}, weight=1000.0).name
        'attention_transfer'

    Args:
        loss: the loss, for example `FitNet()` or `AttentionTransfer()`.
        pairs: student tap to teacher tap, or a list of `{student, teacher, weight, layout}`; `kdlightning taps` prints
            the taps of a model.
        adapter: "auto" is what the loss prescribes, "none" leaves tensors as they are, "linear" maps the student's
            channels to the teacher's, "pooled" averages the student's map first, for a teacher's vector.
        weight: number or schedule; None leaves it to the module's `weights` (1 by default).
        name: name of the term; the loss's in snake case by default. Two terms need two names.
    """

    def __init__(
        self,
        loss: FeatureLoss,
        pairs: Pairs,
        adapter: AdapterName = "auto",
        weight: Weight | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(loss, pairs, adapter, weight, name)
