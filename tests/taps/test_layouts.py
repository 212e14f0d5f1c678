"""Whatever a network calls its axes, losses get channels first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlightning.taps import TapError, TapReader, canonical_shape, channels_first, example_inputs, list_taps


def read(model: nn.Module, tap: str, inputs: Any, layout: Any = None) -> tuple[Tensor, Tensor]:
    """The raw tensor and its canonical form; the probe's shape must agree with it."""
    reader = TapReader(model.eval(), [tap])
    info = reader.probe(inputs)[tap]
    tensor = reader(inputs).taps[tap]
    given = channels_first(tensor, info, layout)
    assert canonical_shape(info, layout) == tuple(given.shape)
    return tensor, given


def test_patches_of_a_vision_transformer_are_folded_and_its_class_token_skipped(timm_net: Any) -> None:
    model = timm_net("vit_tiny_patch16_224")
    tokens, maps = read(model, "blocks.3", torch.randn(2, 1, 32, 32))
    assert tokens.shape == (2, 17, 192)
    assert maps.shape == (2, 192, 4, 4)
    assert torch.equal(maps[:, :, 1, 2], tokens[:, 1 + 1 * 4 + 2])


def test_grid_need_not_be_square(timm_net: Any) -> None:
    model = timm_net("vit_tiny_patch16_224", size=(16, 32), global_pool="avg", class_token=False)
    tokens, maps = read(model, "blocks.0", torch.randn(2, 1, 16, 32))
    assert tokens.shape == (2, 8, 192)
    assert maps.shape == (2, 192, 2, 4)
    assert torch.equal(maps[:, :, 1, 3], tokens[:, 7])


def test_registers_are_skipped_with_the_class_token(timm_net: Any) -> None:
    _, maps = read(timm_net("vit_tiny_patch16_224", reg_tokens=4), "blocks.0", torch.randn(2, 1, 32, 32))
    assert maps.shape == (2, 192, 4, 4)


def test_native_intermediates_are_maps_already(timm_net: Any) -> None:
    tensor, maps = read(timm_net("vit_tiny_patch16_224"), "intermediates.2", torch.randn(2, 1, 32, 32))
    assert torch.equal(tensor, maps)
    assert maps.shape == (2, 192, 4, 4)


def test_transformers_vision_model_is_folded_too() -> None:
    from kdlightning import transformers_model

    model = transformers_model(
        architecture="AutoModelForImageClassification",
        model_type="vit",
        config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 16,
            "patch_size": 4,
            "num_channels": 1,
        },
    )
    tokens, maps = read(model, "hidden_states.1", {"pixel_values": torch.randn(2, 1, 16, 16)})
    assert tokens.shape == (2, 17, 16)
    assert maps.shape == (2, 16, 4, 4)


def test_tokens_of_a_text_encoder_become_a_sequence(encoder: Any) -> None:
    tokens, sequence = read(encoder(), "hidden_states.1", {"input_ids": torch.randint(31, (2, 7))})
    assert torch.equal(sequence, tokens.transpose(1, 2))


def test_channels_last_maps_are_turned(timm_net: Any) -> None:
    model = timm_net("swin_tiny_patch4_window7_224", img_size=32, window_size=4, patch_size=4, embed_dim=8)
    raw, maps = read(model, "layers.0", torch.randn(2, 1, 32, 32))
    assert raw.shape == (2, 8, 8, 8)
    assert torch.equal(maps, raw.permute(0, 3, 1, 2))
    native, same = read(model, "intermediates.1", torch.randn(2, 1, 32, 32))
    assert torch.equal(native, same)


class Unknown(nn.Module):
    """A transformer of one's own: nobody can tell tokens from channels."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(x).mean(1))


def test_unknown_layout_must_be_said() -> None:
    x = torch.randn(2, 4, 6)
    with pytest.raises(TapError, match="say layout: channels_first or channels_last"):
        read(Unknown(), "block", x)
    tokens, turned = read(Unknown(), "block", x, "channels_last")
    assert torch.equal(turned, tokens.transpose(1, 2))
    tokens, kept = read(Unknown(), "block", x, "channels_first")
    assert torch.equal(tokens, kept)


def test_signals_are_channels_first() -> None:
    from kdlightning import ConvNet

    raw, given = read(ConvNet(3, widths=(4, 8), dimensions=1), "stages.1", torch.randn(2, 1, 20))
    assert torch.equal(raw, given)


def test_activations_of_a_network_of_1d_convolutions_are_channels_first() -> None:
    from kdlightning import ConvNet

    raw, given = read(ConvNet(3, widths=(4, 8), dimensions=1), "stages.0.2:input", torch.randn(2, 1, 20))
    assert torch.equal(raw, given)
    # Beside something that reads tokens, an activation may have either layout.
    mixed = nn.Sequential(nn.Conv1d(1, 6, 3, padding=1), nn.ReLU(), nn.LayerNorm(20), nn.Flatten(), nn.Linear(120, 3))
    with pytest.raises(TapError, match="say layout"):
        read(mixed, "1", torch.randn(2, 1, 20))


def test_listing_names_every_tap_with_its_shape(timm_net: Any) -> None:
    model = timm_net("resnet18")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    infos = {info.name: info for info in list_taps(model, torch.randn(2, 1, 32, 32))}
    assert infos["layer2"].shape == (2, 128, 4, 4)
    assert infos["intermediates.0"].shape[0] == 2
    assert infos["pre_logits"].shape == (2, 512)
    assert infos["logits"].shape == (2, 5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())


def test_made_up_inputs_fit_the_model(timm_net: Any, encoder: Any) -> None:
    for model in (timm_net("resnet18"), timm_net("vit_tiny_patch16_224"), encoder()):
        infos = list_taps(model, example_inputs(model))
        assert len(infos) > 5


def test_patches_before_the_class_token_joins_are_all_kept() -> None:
    from kdlightning import timm_model

    model = timm_model("test_vit", num_classes=3, options={"img_size": 32, "patch_size": 8})
    infos = TapReader(model, ["patch_embed", "blocks.0"]).probe(torch.randn(2, 3, 32, 32))
    assert infos["patch_embed"].layout == "channels_last"  # (B, 4, 4, width) here
    model = timm_model("vit_tiny_patch16_224", num_classes=3, options={"img_size": 32, "patch_size": 8})
    infos["patches"] = TapReader(model, ["patch_embed"]).probe(torch.randn(2, 3, 32, 32))["patch_embed"]
    assert (infos["patches"].prefix_tokens, infos["patches"].grid) == (0, (4, 4))
    assert (infos["blocks.0"].prefix_tokens, infos["blocks.0"].grid) == (1, (4, 4))
    assert {canonical_shape(info)[2:] for info in infos.values()} == {(4, 4)}


def test_clips_class_token_is_skipped() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **sizes))
    info = TapReader(model, ["hidden_states.1"]).probe({"pixel_values": torch.randn(2, 3, 32, 32)})["hidden_states.1"]
    assert (info.prefix_tokens, info.grid) == (1, (4, 4))
