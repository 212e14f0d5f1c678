"""How good frozen embeddings are for classification: the two usual probes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kdlightning.errors import ConfigurationError
from kdlightning.metrics import vote
from kdlightning.taps import TapReader
from kdlightning.taps.reader import untouched
from kdlightning.tasks.unlabelled import Unlabelled, embedding


@torch.no_grad()
def embeddings(model: nn.Module, loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Embeddings `(N, D)` of a loader's samples, and their labels `(N,)`, on the CPU.

    Args:
        model: the network, used in evaluation mode on the device where it is; see `Unlabelled` for what its embedding
            is.
        loader: yields what a task reads, with labels: `(x, y)`, mappings with `labels`, batches of our DataModules.

    Raises:
        ConfigurationError: the loader yields no labels, or none at all.
    """
    task, reader = Unlabelled(), TapReader(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found: list[tuple[Tensor, Tensor]] = []
    with untouched(model):
        for raw in loader:
            batch = task.batch(raw)
            labels = getattr(batch, "labels", None)
            if labels is None:
                raise ConfigurationError("a probe needs labels, and the loader yielded none")
            batch = replace(batch, inputs=_moved(batch.inputs, device))
            found.append((embedding(reader(batch.inputs), batch).float().cpu(), labels.cpu()))
    if not found:
        raise ConfigurationError("a probe needs samples, and the loader yielded none")
    vectors, classes = zip(*found, strict=True)
    return torch.cat(vectors), torch.cat(classes)


def knn_probe(model: nn.Module, train: Iterable[Any], test: Iterable[Any], *, neighbours: int = 20) -> float:
    """Accuracy on `test` by a weighted vote of the nearest neighbours in `train`; nothing is trained.

    The protocol of DINO: cosine similarity s, votes exp(s / 0.07).

    Args:
        model: the network; see `embeddings`.
        train: loader of the neighbours, best without augmentation.
        test: loader of the samples to classify.
        neighbours: how many vote.
    """
    (bank, known), (vectors, classes) = (embeddings(model, loader) for loader in (train, test))
    bank, vectors = normalize(bank), normalize(vectors)
    guesses = torch.cat([vote(part, bank, known, neighbours) for part in vectors.split(1024)])
    return float((guesses == classes).float().mean())


def linear_probe(model: nn.Module, train: Iterable[Any], test: Iterable[Any], *, strength: float = 1.0) -> float:
    """Accuracy on `test` of a linear classifier that scikit-learn fits on the frozen embeddings of `train`.

    A multinomial logistic regression on standardised embeddings. The network is not trained, and its mode and buffers
    stay as they are.

    Args:
        model: the network; see `embeddings`.
        train: loader that the classifier is fitted on, best without augmentation.
        test: loader that it is scored on.
        strength: C of scikit-learn, the inverse of the L2 penalty.

    Example:
        >>> from kdlightning import Digits, linear_probe
        >>> data = Digits(train_limit=200)
        >>> student = torch.nn.Flatten()  # the pixels themselves
        >>> linear_probe(student, data.train_dataloader(), data.test_dataloader()) > 0.7
        True
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (bank, known), (vectors, classes) = (embeddings(model, loader) for loader in (train, test))
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    classifier.fit(bank.numpy(), known.numpy())
    return float(classifier.score(vectors.numpy(), classes.numpy()))


def _moved(inputs: Any, device: torch.device) -> Any:
    from lightning.fabric.utilities.apply_func import move_data_to_device

    return move_data_to_device(inputs, device)
