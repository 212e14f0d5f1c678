"""A network's classifier: the linear layer that turns its pooled features into logits."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from kdlightning.losses.base import LossContext

_NAMES = ("fc", "classifier", "head", "heads", "score", "lm_head")


def classifier_of(network: nn.Module) -> nn.Linear:
    """The linear layer that gives a network's logits.

    timm's `get_classifier()` says which; else it is the layer named fc, classifier, head, heads, score or lm_head (or
    the last linear one inside it), else the last linear layer of the network.

    Raises:
        ValueError: there is none.
    """
    name = type(network).__name__
    if hasattr(network, "get_classifier"):
        found: object = cast(Any, network).get_classifier()
        if isinstance(found, nn.Linear):
            return found
        if isinstance(found, nn.Identity):
            raise ValueError(f"{name} has no classifier: build it with num_classes above 0")
        kind = f"{len(found)} classifiers" if isinstance(found, tuple) else f"a {type(found).__name__} as classifier"
        raise ValueError(f"{name} has {kind}, and one linear layer is needed: use a model that ends in one")
    layer = named_classifier(network) or _last_linear(network)
    if layer is None:
        raise ValueError(f"{name} has no linear layer that could be its classifier: use a network that ends in one")
    return layer


def named_classifier(network: nn.Module) -> nn.Linear | None:
    """The classifier, where timm or a usual name tells it."""
    if hasattr(network, "get_classifier"):
        found: object = cast(Any, network).get_classifier()
        return found if isinstance(found, nn.Linear) else None
    parts = (getattr(network, name, None) for name in _NAMES)
    layers = (_last_linear(part) for part in parts if isinstance(part, nn.Module))
    return next((layer for layer in layers if layer is not None), None)


def teacher_classifier(context: LossContext) -> nn.Linear:
    """The classifier of a context's teacher.

    Raises:
        ValueError: the teacher is no single network, or has no linear classifier.
    """
    if context.teacher is None:
        raise ValueError("the teacher's classifier is read, and the teacher is no single network: use a FrozenTeacher")
    return classifier_of(context.teacher)


def parameters_of(layer: nn.Linear, like: Tensor, *, learns: bool = False) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a classifier as they are now, in the type and on the device of some features.

    Args:
        layer: the classifier.
        like: the features.
        learns: whether gradients flow into it.
    """
    weight, bias = ((None if part is None else part.to(like)) for part in (layer.weight, layer.bias))
    assert weight is not None
    if learns:
        return weight, bias
    return weight.detach(), None if bias is None else bias.detach()


def _last_linear(network: nn.Module) -> nn.Linear | None:
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else None
