"""Answers that are computed no further than somebody asks."""

from __future__ import annotations

import pytest
import torch

from kdlightning import ConfigurationError, Head, ModelOutput


def test_logits_are_computed_once_and_when_asked_for() -> None:
    calls = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.ones(2, 3)

    output = ModelOutput(compute)
    assert output.has_logits
    assert calls == []
    assert output.logits is output.logits
    assert calls == [1]


def test_logits_of_a_language_model_come_from_hidden_states_and_head() -> None:
    hidden, weight, bias = torch.randn(2, 4, 3), torch.randn(5, 3), torch.randn(5)
    output = ModelOutput(hidden=hidden, head=Head(weight, bias, softcap=3.0, logit_scale=2.0))
    expected = 3 * torch.tanh(2 * (hidden @ weight.T + bias) / 3)
    assert torch.allclose(output.logits, expected)


def test_a_network_without_logits_is_named() -> None:
    assert not ModelOutput().has_logits
    with pytest.raises(ConfigurationError, match="gave no logits"):
        _ = ModelOutput().logits


def test_a_detached_answer_is_outside_the_graph_and_still_lazy() -> None:
    weight = torch.randn(5, 3, requires_grad=True)
    hidden = torch.randn(2, 3, requires_grad=True)
    output = ModelOutput(hidden=hidden * 1, head=Head(weight), taps={"a": hidden * 2}, exits=[hidden * 3])
    other = output.detach()
    assert other._logits is None
    tensors = [other.logits, other.hidden, other.taps["a"], *other.exits]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert output.logits.requires_grad
    lazy = ModelOutput(lambda: hidden * 1).detach()
    assert not lazy.logits.requires_grad
