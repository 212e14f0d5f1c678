"""Relational knowledge: how samples or layers relate to each other."""

from __future__ import annotations

from kdlightning.callbacks.knowledge import AdapterName, KnowledgeCallback, Pairs
from kdlightning.losses.base import RelationLoss
from kdlightning.schedules import Weight


class RelationKD(KnowledgeCallback[RelationLoss]):
    """Adds a relation term to any mode whose teacher gives taps.

    Relations between samples depend on which samples share a micro-batch: accumulation and DDP change them.

    Args:
        loss: the loss, for example `RKD()` or `SP()`.
        pairs: student tap to teacher tap, or a list of `{student, teacher, weight, layout}`.
        adapter: "auto" is what the loss prescribes (none, for most), "none", "linear" or "pooled".
        weight: number or schedule; None leaves it to the module's `weights` (1 by default).
        name: name of the term; the loss's in snake case by default. Two terms need two names.
    """

    def __init__(
        self,
        loss: RelationLoss,
        pairs: Pairs,
        adapter: AdapterName = "auto",
        weight: Weight | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(loss, pairs, adapter, weight, name)
