"""Every family of timm teaches and learns: response, a map from the middle, and relations of the last vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlightning import RKD, Classification, FeatureKD, FitNet, OfflineDistillation, RelationKD, timm_model
from kdlightning.taps import TapError, TapReader, canonical_shape, list_taps
from kdlightning.taps.names import native_names

# Names, and options that make a small network of the family.
FAMILIES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_vit": {"img_size": 64},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_nfnet": {},
    "test_byobnet": {},
    "test_mambaout": {},
    "test_coatnet": {"img_size": 64},
    "test_maxvit": {"img_size": 64},
    "test_vit_relpos": {"img_size": 64},
    "mobilenetv3_small_050": {},
    "regnetx_002": {},
    "ghostnet_050": {},
    "densenet121": {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "starnet_s050": {},
    "cs3darknet_focus_s": {},
    "xcit_nano_12_p8_224": {"img_size": 64, "depth": 3},
    "pvt_v2_b0": {},
    "edgenext_xx_small": {},
    "mobilevit_xxs": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 1, 1)},
    "mixer_s32_224": {"img_size": 64},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 3},
    "cait_xxs24_224": {"img_size": 64, "depth": 3},
    "levit_128s": {"img_size": 64},
    "efficientformerv2_s0": {"img_size": 64},
    "efficientvim_m1": {},
}
# It adds up the logits of several classifiers.
SEVERAL_HEADS = {"efficientvim_m1": "heads.3:input"}
CLASSES = 5


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm_model(name, num_classes=CLASSES, options=FAMILIES[name])


def middle(model: nn.Module) -> str:
    count = sum(name.startswith("intermediates.") for name in native_names(model))
    return f"intermediates.{max(count - 2, 0)}"


@pytest.fixture(scope="module")
def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(8, 3, 64, 64, generator=generator), torch.arange(8) % CLASSES)
    return DataLoader(data, 4)


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("name", FAMILIES)
def test_family_teaches_and_learns(name: str, role: str, loader: DataLoader, trainer: Any) -> None:
    taken, partner = network(name), network("test_resnet")
    student, teacher = (taken, partner) if role == "student" else (partner, taken)
    last = {taken: SEVERAL_HEADS.get(name, "pre_logits"), partner: "pre_logits"}
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    start = {key: value.clone() for key, value in student.named_parameters()}
    module = OfflineDistillation(student, teacher, task=Classification(CLASSES))
    runner = trainer(
        callbacks=[
            FeatureKD(FitNet(relu=False), {middle(student): middle(teacher)}),
            RelationKD(RKD(), {last[student]: last[teacher]}),
        ]
    )
    runner.fit(module, loader)
    found = runner.callback_metrics
    parts = {name: float(found[f"train/loss_{name}"]) for name in ("task", "kd", "fit_net", "rkd")}
    assert all(0 <= value < 1e4 for value in parts.values()), parts
    assert parts["fit_net"] > 0
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    moved = [key for key, value in student.named_parameters() if not torch.equal(start[key], value)]
    assert len(moved) > len(start) / 2


@pytest.mark.parametrize("name", FAMILIES)
def test_intermediates_are_maps_and_the_last_tap_feeds_the_classifier(name: str) -> None:
    model = network(name).eval()
    last = SEVERAL_HEADS.get(name, "pre_logits")
    reader = TapReader(model, [middle(model), last])
    inputs = torch.randn(2, 3, 64, 64)
    infos = reader.probe(inputs)
    assert len(canonical_shape(infos[middle(model)])) == 4
    assert infos[last].shape[0] == 2
    listed = {info.name for info in list_taps(model, inputs)}
    assert {middle(model), "logits"} <= listed
    assert ("pre_logits" in listed) == (last == "pre_logits")
    with torch.no_grad():
        assert torch.allclose(reader(inputs).logits, model(inputs), atol=1e-4)


def test_families_are_many() -> None:
    modules = {type(network(name)).__module__ for name in FAMILIES}
    assert len(modules) >= 20, modules


def test_several_classifiers_have_no_one_input() -> None:
    with pytest.raises(TapError, match=r"has 4 classifier layers; write its path, for example heads.3:input"):
        TapReader(network("efficientvim_m1"), ["pre_logits"])
