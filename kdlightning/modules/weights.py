"""How much each term counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kdlightning.errors import ConfigurationError, nearest
from kdlightning.modules.knowledge import TermSpec
from kdlightning.schedules import Weight


def merge_weights(
    defaults: Mapping[str, Weight],
    specs: Iterable[TermSpec],
    given: Mapping[str, Weight],
    *,
    own_terms: bool,
) -> dict[str, Weight]:
    """Weights by term name.

    Args:
        defaults: what the paper says, by term name.
        specs: terms that callbacks declared.
        given: what the user says; merged over the rest.
        own_terms: True if `distill_terms` is overridden, so that further names may turn up in the first step.

    Raises:
        ConfigurationError: a name that no term has, or one whose weight a callback sets as well.
    """
    weights: dict[str, Weight] = dict(defaults)
    owners = {}
    for spec in specs:
        weights[spec.name] = spec.defaults.get(spec.name, 1.0) if spec.weight is None else spec.weight
        if spec.weight is not None:
            owners[spec.name] = spec.owner
    for name, weight in given.items():
        if name in owners:
            raise ConfigurationError(f"the weight of {name!r} is set twice: in weights and by {owners[name]}; keep one")
        if name not in weights and not own_terms:
            raise ConfigurationError(f"weights: no term is named {name!r}{nearest(name, weights)}")
        weights[name] = weight
    return weights
