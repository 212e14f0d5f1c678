"""Seeds are well spread integers, and seeding leaves no trace where it must not."""

from __future__ import annotations

import random

import numpy
import pytest
import torch

from kdlightning.data.seeding import default_seed, mix, mix_tensors, restored_generators, seed_generators


def test_mix_depends_on_every_integer_and_their_order() -> None:
    seeds = {mix(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    assert len(seeds) == 12**3
    assert mix(1, 2) != mix(2, 1)
    assert mix(0) != mix(0, 0)


def test_mix_is_the_same_everywhere() -> None:
    assert mix(0) == 0xE220A8397B1DCDAF >> 1  # the first number of splitmix64 from state 0
    assert all(0 <= mix(-5, n) < 2**63 for n in range(100))


def test_mix_of_tensors_is_mix_of_their_elements() -> None:
    index, view = torch.arange(50), torch.arange(50) * 7919 % 13
    expected = [mix(3, v, i, -1) for v, i in zip(view.tolist(), index.tolist(), strict=True)]
    assert mix_tensors(3, view, index, -1).tolist() == expected


def test_bits_of_mix_are_balanced() -> None:
    bits = (mix_tensors(torch.arange(4096))[:, None] >> torch.arange(63)) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.05


def test_seeding_repeats_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), float(numpy.random.rand())

    with restored_generators():
        seed_generators(mix(4))
        first = draw()
        seed_generators(mix(4))
        assert draw() == first
        seed_generators(mix(5))
        assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_generators_are_put_back() -> None:
    before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    with restored_generators():
        seed_generators(1)
        torch.rand(3), random.random(), numpy.random.rand()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert numpy.random.get_state()[1].tolist() == before[2]


def test_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown random source 'jax'"):
        seed_generators(1, ["jax"])


def test_default_seed_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert default_seed() == 17
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert default_seed() == 0
