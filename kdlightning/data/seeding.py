"""One mechanism for every seed: integers are mixed, and the result seeds the generators.

The (view, index) seed of a sample, the (epoch) seed of a permutation and the (rank, epoch, batch) seed of a training
step all come from `mix`, so that a run can be continued from any batch without any saved generator state.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor

RANDOM_SOURCES = ("torch", "python", "numpy")

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def mix(*integers: int) -> int:
    """One well spread integer out of several (splitmix64, chained).

    Args:
        *integers: any Python integers; their order counts.

    Returns:
        A number from 0 to 2**63 - 1, the same on every machine and Python (unlike `hash`).
    """
    state = 0
    for value in integers:
        state = ((state ^ (value & _MASK)) + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK
        state ^= state >> 31
    return state >> 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically; the mask makes it logical


def mix_tensors(*integers: int | Tensor) -> Tensor:
    """`mix` of many samples at once.

    Args:
        *integers: int64 tensors `(N,)`, and integers that are the same for all samples; at least one tensor.

    Returns:
        `(N,)` int64; element n equals `mix` of the n-th elements.
    """
    state: Any = 0
    shape = next(value.shape for value in integers if isinstance(value, Tensor))
    state = torch.zeros(shape, dtype=torch.int64)
    for value in integers:
        state = (state ^ (value if isinstance(value, Tensor) else _signed(value & _MASK))) + _signed(_GOLDEN)
        state = (state ^ _shift(state, 30)) * _signed(_FIRST)
        state = (state ^ _shift(state, 27)) * _signed(_SECOND)
        state = state ^ _shift(state, 31)
    return _shift(state, 1)


def default_seed() -> int:
    """The seed that `seed_everything` (or the command) has set for this run, 0 without one."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def seed_generators(seed: int, sources: Iterable[str] = RANDOM_SOURCES) -> None:
    """Seeds the global random generators, cheaply enough to do it for each sample or step.

    `torch.manual_seed` costs a hundred times as much, since it queues a call for devices that are not there yet.

    Args:
        seed: 0 to 2**63 - 1, as `mix` gives it.
        sources: which generators: `"torch"` (CPU, and CUDA once it is initialised), `"python"`, `"numpy"`.
    """
    for source in sources:
        if source == "torch":
            torch.default_generator.manual_seed(seed)
            if torch.cuda.is_initialized():
                for generator in torch.cuda.default_generators:
                    generator.manual_seed(seed)
        elif source == "python":
            random.seed(seed)
        elif source == "numpy":
            numpy.random.seed(seed & 0xFFFFFFFF)
        else:
            raise ValueError(f"unknown random source {source!r}; known: {', '.join(RANDOM_SOURCES)}")


@contextmanager
def restored_generators(sources: Iterable[str] = RANDOM_SOURCES) -> Iterator[None]:
    """Puts the CPU generators back where they were, whatever is drawn or seeded inside.

    Args:
        sources: which generators: `"torch"` (the CPU's), `"python"`, `"numpy"`.
    """
    states: dict[str, Any] = {}
    if "torch" in sources:
        states["torch"] = torch.default_generator.get_state()
    if "python" in sources:
        states["python"] = random.getstate()
    if "numpy" in sources:
        states["numpy"] = numpy.random.get_state()
    try:
        yield
    finally:
        if "torch" in states:
            torch.default_generator.set_state(states["torch"])
        if "python" in states:
            random.setstate(states["python"])
        if "numpy" in states:
            numpy.random.set_state(states["numpy"])
