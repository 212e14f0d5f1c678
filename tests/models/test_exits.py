"""Exits on maps, signals, tokens and vectors; parts that are built after a checkpoint was loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdlightning import ConfigurationError, Ensemble, ModelOutput
from kdlightning.models.exits import Exit, PooledClassifier
from kdlightning.models.parts import Parts

SHAPES = {
    "image": ((2, 4, 16, 16), (2, 8, 4, 4)),
    "image of uneven sides": ((2, 4, 7, 5), (2, 8, 3, 2)),
    "image as large": ((2, 4, 5, 5), (2, 8, 5, 5)),
    "image that is smaller": ((2, 4, 2, 2), (2, 8, 5, 3)),
    "signal": ((2, 4, 20), (2, 8, 5)),
    "patches to a vector": ((2, 16, 7, 7), (2, 16)),
    "tokens": ((2, 16, 11), (2, 16, 11)),
    "vector": ((2, 6), (2, 8)),
    "one channel": ((2, 1, 4), (2, 1, 2)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_an_exit_stands_beside_the_deepest_map(kind: str) -> None:
    shape, deepest = SHAPES[kind]
    network = Exit(shape, deepest, num_classes=5)
    inputs = torch.randn(shape)
    logits, features = network(inputs), network.features(inputs)
    assert tuple(features.shape) == deepest
    assert logits.shape == (2, 5)
    assert bool((features >= 0).all())
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_an_exit_takes_other_sizes_than_it_was_built_for() -> None:
    network = Exit((2, 4, 16, 16), (2, 8, 4, 4), 5)
    assert network.features(torch.randn(3, 4, 20, 24)).shape == (3, 8, 4, 4)


def test_kernels_are_the_ratio_of_the_sizes() -> None:
    layers = [layer for layer in Exit((2, 64, 32, 32), (2, 512, 4, 4), 100).modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride) for layer in layers] == [
        (64, 128, (1, 1), (1, 1)),
        (128, 128, (8, 8), (8, 8)),
        (128, 512, (1, 1), (1, 1)),
    ]


def test_signed_features() -> None:
    network = Exit((8, 4, 6), (8, 8, 6), 5, relu=False)
    assert bool((network.features(torch.randn(8, 4, 6)) < 0).any())


def test_the_answer_is_the_linear_layer_of_the_mean() -> None:
    network = Exit((2, 4, 8, 8), (2, 8, 2, 2), 5).eval()
    inputs = torch.randn(3, 4, 8, 8)
    expected = network.fc(network.features(inputs).mean((2, 3)))
    torch.testing.assert_close(network(inputs), expected)
    weak = PooledClassifier(4, 5)
    torch.testing.assert_close(weak(inputs), weak.fc(inputs.mean((2, 3))))


def test_a_map_cannot_be_made_of_a_vector() -> None:
    with pytest.raises(ConfigurationError, match="name a deepest tap with as many dimensions"):
        Exit((2, 4), (2, 8, 2, 2), 5)


@pytest.mark.parametrize(("shape", "deepest"), [((1, 6), (1, 8)), ((1, 4, 4), (1, 8, 1))])
def test_a_single_sample_cannot_be_normalised(shape: Any, deepest: Any) -> None:
    network = Exit(shape, deepest, 5)
    with pytest.raises(ConfigurationError, match="an exit normalises over the batch"):
        network(torch.randn(shape))
    assert network.eval()(torch.randn(shape)).shape == (1, 5)


def test_parts_that_are_built_later_have_the_checkpoints_weights() -> None:
    trained, later = Parts(), Parts()
    for name in ("first", "second"):
        trained[name] = nn.Linear(3, 2)
    later.load_state_dict(trained.state_dict())
    assert len(later) == 0
    for name in ("second", "first"):
        later[name] = nn.Linear(3, 2)
        assert torch.equal(later[name].weight, trained[name].weight)
    later["first"] = nn.Linear(3, 2)
    assert not torch.equal(later["first"].weight, trained["first"].weight), "they are given once"


def test_parts_of_another_shape_are_refused_in_a_sentence() -> None:
    trained, later = Parts(), Parts()
    trained["exit1"] = nn.Linear(3, 2)
    later.load_state_dict(trained.state_dict())
    with pytest.raises(ConfigurationError, match="the checkpoint's exit1: weight has shape"):
        later["exit1"] = nn.Linear(4, 2)


def test_parts_that_are_there_load_strictly() -> None:
    parts = Parts()
    parts["exit1"] = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="exit1"):
        parts.load_state_dict({})


def test_an_ensemble_answers_with_the_mean_probability() -> None:
    class Wrapped(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> Any:
            return ModelOutput(super().forward(inputs))

    members = [nn.Linear(4, 3), Wrapped(4, 3), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))]
    inputs = torch.randn(5, 4)
    answers = [members[0](inputs), members[1](inputs).logits, members[2](inputs)]
    expected = sum(answer.softmax(1) for answer in answers) / 3
    answer = Ensemble(members)(inputs)
    torch.testing.assert_close(answer.exp(), expected)
    torch.testing.assert_close(answer.softmax(1), expected)


def test_ensembles_that_cannot_agree_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="members is empty"):
        Ensemble([])
    with pytest.raises(ConfigurationError, match="differ in shape"):
        Ensemble([nn.Linear(4, 3), nn.Linear(4, 2)])(torch.randn(2, 4))
