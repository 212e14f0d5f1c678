"""Which layer is a network's classifier."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kdlightning import ConvNet, timm_model, transformers_model
from kdlightning.losses import LossContext
from kdlightning.losses.heads import classifier_of, named_classifier, parameters_of, teacher_classifier


class Parts(nn.Module):
    """A network of named parts."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def bert(model_type: str) -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return transformers_model(model_type=model_type, config={**sizes, "vocab_size": 31, "num_labels": 3})


@pytest.mark.parametrize(
    ("network", "path"),
    [
        (lambda: ConvNet(5), "fc"),
        (lambda: timm_model("test_resnet", num_classes=5), "fc"),
        (lambda: timm_model("test_vit", num_classes=5), "head"),
        (lambda: timm_model("test_convnext", num_classes=5), "head.fc"),
        (lambda: timm_model("test_efficientnet", num_classes=5), "classifier"),
        (lambda: bert("bert"), "classifier"),
        (lambda: bert("roberta"), "classifier.out_proj"),
        (lambda: Parts(classifier=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))), "classifier.2"),
        (lambda: Parts(heads=nn.Sequential(nn.Linear(4, 3)), other=nn.Linear(4, 3)), "heads.0"),
        (lambda: Parts(classifier=nn.Identity(), head=nn.Linear(4, 3)), "head"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.Identity()), "2"),
    ],
)
def test_the_classifier_is_found(network: Any, path: str) -> None:
    model = network()
    assert classifier_of(model) is model.get_submodule(path)


def test_only_a_usual_name_counts_where_the_last_layer_may_be_anything() -> None:
    assert named_classifier(nn.Sequential(nn.Linear(4, 3))) is None
    assert named_classifier(Parts(squeeze=nn.Linear(4, 3))) is None
    model = timm_model("test_resnet", num_classes=5)
    assert named_classifier(model) is model.fc
    assert named_classifier(timm_model("test_resnet", num_classes=0)) is None


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 1)), "Sequential has no linear layer that could be its classifier"),
        (lambda: timm_model("test_resnet", num_classes=0), "ResNet has no classifier: build it with num_classes"),
        (lambda: timm_model("deit_tiny_distilled_patch16_224"), "has 2 classifiers, and one linear layer is needed"),
        (
            lambda: type("Conv", (nn.Module,), {"get_classifier": lambda self: nn.Conv2d(1, 2, 1)})(),
            "Conv has a Conv2d as classifier",
        ),
    ],
)
def test_what_has_no_linear_classifier_is_refused(network: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        classifier_of(network())


def test_the_teacher_must_be_one_network() -> None:
    teacher = ConvNet(5)
    assert teacher_classifier(LossContext(student=ConvNet(5), teacher=teacher)) is teacher.fc
    with pytest.raises(ValueError, match="the teacher is no single network: use a FrozenTeacher"):
        teacher_classifier(LossContext(student=ConvNet(5), teacher=None))


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_follow_the_features_and_learn_only_if_asked(bias: bool) -> None:
    layer, features = nn.Linear(3, 2, bias=bias), torch.zeros(1, 3, dtype=torch.float64)
    for learns in (True, False):
        weight, given = parameters_of(layer, features, learns=learns)
        assert weight.dtype == torch.float64
        assert weight.requires_grad == learns
        assert (given is not None) == bias
        if given is not None:
            assert given.requires_grad == learns
    layer.weight.data.fill_(7)
    assert float(parameters_of(layer, features)[0][0, 0]) == 7


def test_other_objects_named_like_a_classifier_do_not_count() -> None:
    network = Parts(body=nn.Linear(2, 2))
    network.fc = SimpleNamespace()  # type: ignore[assignment]
    assert classifier_of(network) is network.body
