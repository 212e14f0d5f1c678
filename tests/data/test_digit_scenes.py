"""Made scenes: always the same, of disjoint digits, labelled where the ink is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlightning import ConfigurationError, DigitScenes
from kdlightning.data.digit_scenes import make_scenes


def test_scenes_are_the_same_for_a_seed() -> None:
    images, labels = torch.rand(5, 8, 8), torch.arange(5)
    first, again, other = (make_scenes(images, labels, 6, 20, 0.1, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (6, 1, 20, 20)
    assert first[1].shape == (6, 20, 20)
    assert torch.equal(first[1], make_scenes(images, labels, 6, 20, 0.5, 1)[1]), "noise changes no label"


def test_classes_lie_where_the_ink_of_their_digit_is() -> None:
    images, labels = torch.ones(1, 8, 8), torch.tensor([6])
    scenes, classes = make_scenes(images, labels, 40, 32, 0.0, 3)
    assert set(classes.unique().tolist()) == {0, 7, 255}
    assert float(scenes[:, 0][classes == 7].min()) > 0.4
    assert float(scenes[:, 0][classes == 255].min()) > 0.15
    # Scraps of half a digit are ink that counts as background.
    assert float(scenes[:, 0][classes == 0].max()) > 0.6
    share = (classes == 7).flatten(1).float().mean(1)
    assert float(share.min()) > 100 / 32**2 * 0.4, "each scene has a digit"
    assert float(share.max()) > 2.5 * float(share.min()), "some have several"


def test_module_has_three_parts_of_disjoint_digits() -> None:
    data = DigitScenes(scenes=30, eval_scenes=10, size=24, batch_size=8)
    assert [len(data.part(part)) for part in ("train", "val", "test", "predict")] == [30, 10, 10, 10]
    assert not data.validates_on_test
    assert data.num_classes == 11
    assert data.class_names[:2] == ["background", "0"]
    batch = next(iter(data.train_dataloader()))
    assert batch.data[0].shape == (8, *data.input_shape) == (8, 1, 24, 24)
    assert batch.data[1].shape == (8, 24, 24)
    assert batch.data[1].dtype == torch.int64
    again = next(iter(DigitScenes(scenes=30, eval_scenes=10, size=24, batch_size=8).train_dataloader()))
    assert torch.equal(batch.data[0], again.data[0])
    firsts = [data.part(part).inputs[0] for part in ("train", "val", "test")]
    assert not torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[1], firsts[2])


def test_normalised_scenes_are_about_standard() -> None:
    inputs = DigitScenes(scenes=200, eval_scenes=1).part("train").load(torch.arange(200), torch.zeros(200))[0]
    assert abs(float(inputs.mean())) < 0.15
    assert abs(float(inputs.std()) - 1) < 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 15}, "size must be at least 16"), ({"scenes": 0}, "at least 1"), ({"eval_scenes": 0}, "at least 1")],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DigitScenes(**options)
