"""Tiny networks, data and a hand-written reading of a run's terms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdlightning import ConvNet


def network(width: int, seed: int, **options: Any) -> nn.Module:
    """A small CNN for 8×8 grey images and five classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConvNet(5, widths=(width, 2 * width), **options)


@pytest.fixture
def net() -> Callable[..., nn.Module]:
    return network


@pytest.fixture
def dense() -> Callable[..., nn.Module]:
    """A perceptron without batch norm: its output for a sample does not depend on the others."""

    def make(seed: int, width: int = 8, dropout: float = 0.0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 5)
            )

    return make


class CopyAtStart(L.Callback):
    """Keeps the networks that learn as they are when training begins: exits are built only then."""

    def __init__(self) -> None:
        self.networks: dict[str, nn.Module] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.networks = copy.deepcopy(pl_module.networks)


@pytest.fixture
def copy_at_start() -> CopyAtStart:
    return CopyAtStart()


@pytest.fixture
def samples() -> TensorDataset:
    """26 images of five classes."""
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(26, 1, 8, 8, generator=generator), torch.randint(5, (26,), generator=generator))


@pytest.fixture
def loader(samples: TensorDataset) -> Callable[..., DataLoader]:
    """Stock loaders in the data's order: batches of 8, 8, 8 and 2."""

    def make(batch_size: int = 8, **options: Any) -> DataLoader:
        return DataLoader(samples, batch_size, **options)

    return make


@pytest.fixture
def resumable_loader(samples: TensorDataset) -> Callable[..., Any]:
    """Our loaders: shuffled by epoch, with sample numbers."""
    from kdlightning.data.loader import ResumableLoader

    def make(batch_size: int = 8, shuffle: bool = True, **options: Any) -> Any:
        return ResumableLoader(samples, batch_size, shuffle, **({"seed": 3} | options))

    return make


class Noisy(Dataset):
    """Samples with noise from torch's generator, so that each view is another one; it tells its labels."""

    random_sources = ("torch",)

    def __init__(self, samples: TensorDataset, scale: float = 0.3) -> None:
        self.samples = samples
        self.scale = scale
        self.labels = samples.tensors[1]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        x, y = self.samples[number]
        return x + self.scale * torch.randn(x.shape, dtype=x.dtype), y


@pytest.fixture
def noisy_loader(samples: TensorDataset) -> Callable[..., Any]:
    """Our loaders of noisy samples: batches of 8, 8, 8 and 2; `views` and `partners` as for `IndexedViews`."""
    from kdlightning.data.loader import ResumableLoader
    from kdlightning.data.views import IndexedViews

    def make(shuffle: bool = True, **options: Any) -> Any:
        return ResumableLoader(IndexedViews(Noisy(samples), seed=3, **options), 8, shuffle, seed=3)

    return make


@pytest.fixture
def sgd() -> Callable[..., Any]:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    return make


@pytest.fixture
def weights_of() -> Callable[[nn.Module], list[Tensor]]:
    def read(module: nn.Module) -> list[Tensor]:
        return [p.detach().clone() for p in module.parameters()]

    return read


@pytest.fixture
def same_state() -> Callable[..., None]:
    """Asserts that two modules hold bit-for-bit the same parameters and buffers."""

    def check(first: nn.Module, second: nn.Module) -> None:
        ours, theirs = first.state_dict(), second.state_dict()
        assert ours.keys() == theirs.keys()
        different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        assert not different

    return check


@pytest.fixture
def language_model() -> Callable[..., nn.Module]:
    """A tiny causal language model of transformers, with random weights."""
    from kdlightning import transformers_model

    def make(seed: int, hidden: int = 16, vocabulary: int = 23, model_type: str = "llama", **config: Any) -> nn.Module:
        sizes = {
            "llama": {
                "hidden_size": hidden,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 64,
            },
            "gpt2": {
                "n_embd": hidden,
                "n_layer": 2,
                "n_head": 2,
                "n_positions": 64,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
                "resid_pdrop": 0.0,
            },
        }[model_type]
        ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return transformers_model(
                architecture="AutoModelForCausalLM",
                model_type=model_type,
                config={"vocab_size": vocabulary, "initializer_range": 0.3, **sizes, **ends, **config},
            )

    return make


@pytest.fixture
def texts() -> Callable[..., list[dict[str, Tensor]]]:
    """Samples of token numbers, padded on the right to one length; prompts of different lengths do not count."""

    def make(count: int = 8, length: int = 12, vocabulary: int = 23, seed: int = 5) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for number in range(count):
            real = int(torch.randint(5, length + 1, (1,), generator=generator))
            prompt = 1 + number % 4
            ids = torch.randint(3, vocabulary, (length,), generator=generator)
            attention = (torch.arange(length) < real).long()
            labels = ids.masked_fill((attention == 0) | (torch.arange(length) < prompt), -100)
            rows.append({"input_ids": ids * attention, "attention_mask": attention, "labels": labels})
        return rows

    return make
