from __future__ import annotations

import pytest
import torch
from torch import nn

from kdlightning.losses import FeatureLoss, FitNet, ForwardKL, RelationLoss, channel_adapter, term_name


def test_names_are_snake_case() -> None:
    class DKDWithCRD(nn.Module):
        pass

    names = [term_name(cls) for cls in (FitNet, ForwardKL, DKDWithCRD)]
    assert names == ["fit_net", "forward_kl", "dkd_with_crd"]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 4)])
def test_the_default_adapter_maps_channels_only(shape: tuple[int, ...]) -> None:
    wider = (2, 7, *(2 * size for size in shape[2:]))
    adapter = FeatureLoss().adapter(shape, wider)
    assert adapter is not None
    assert adapter(torch.randn(shape)).shape == (2, 7, *shape[2:])
    assert channel_adapter(shape, shape) is None
    assert RelationLoss().adapter(shape, wider) is None
