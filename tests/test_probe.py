"""Probes of frozen embeddings: against scikit-learn, without a trace in the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlightning import ConfigurationError, ConvNet, Digits, knn_probe, linear_probe, transformers_model
from kdlightning.probe import embeddings


def loader(x: torch.Tensor, y: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=7)


def blobs(count: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(count) % 4
    return torch.eye(4)[labels] * 5 + spread * torch.randn(count, 4), labels


def test_probes_tell_separated_classes_and_not_noise() -> None:
    train, test = (loader(*blobs(count, 0.3)) for count in (80, 40))
    assert knn_probe(nn.Identity(), train, test) == linear_probe(nn.Identity(), train, test) == 1.0
    noise = [loader(torch.randn(count, 4), torch.arange(count) % 4) for count in (80, 40)]
    assert knn_probe(nn.Identity(), *noise) < 0.5
    assert linear_probe(nn.Identity(), *noise) < 0.5


def test_neighbours_vote_as_scikit_learns_do() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    (x, y), (z, w) = blobs(60, 3.0), blobs(30, 3.0)
    model = KNeighborsClassifier(
        5, metric="cosine", weights=lambda distance: torch.exp(torch.tensor((1 - distance) / 0.07)).numpy()
    )
    expected = model.fit(x.double().numpy(), y.numpy()).score(z.double().numpy(), w.numpy())
    assert knn_probe(nn.Identity(), loader(x, y), loader(z, w), neighbours=5) == pytest.approx(expected)


def test_a_network_is_left_as_it_was() -> None:
    net = ConvNet(10).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    data = Digits(train_limit=100, batch_size=50)
    vectors, labels = embeddings(net, data.train_dataloader())
    assert vectors.shape == (100, 10)
    assert labels.shape == (100,)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_models_without_a_head_give_their_mean_token() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    net = transformers_model(
        architecture="AutoModel", model_type="vit", config={**sizes, "image_size": 8, "patch_size": 4}
    )
    x = torch.randn(5, 3, 8, 8)
    vectors, _ = embeddings(net, loader(x, torch.zeros(5).long()))
    expected = net.eval()(x).last_hidden_state.mean(1)
    assert torch.allclose(vectors, expected, atol=1e-5)


@pytest.mark.parametrize(("data", "message"), [([torch.zeros(2, 3)], "yielded none"), ([], "needs samples")])
def test_missing_labels_and_samples_are_named(data: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        knn_probe(nn.Identity(), data, data)
