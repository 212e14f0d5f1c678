"""Queries, keys and values: found in every family, and the attention that they make is the model's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from kdlightning.taps import TapError, TapReader
from kdlightning.taps.attention import attention_layers, heads_of
from kdlightning.taps.layers import layer_tap, number_of_layers

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {**SMALL, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, dict[str, Any]] = {
    "bert": TEXT,
    "roberta": TEXT,
    "electra": TEXT,
    "mpnet": TEXT,
    "deberta-v2": TEXT,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 60},
    "modernbert": {**TEXT, "cls_token_id": 1, "sep_token_id": 2},
    "llama": TEXT,
    "vit": {**SMALL, "image_size": 32, "patch_size": 8},
    "deit": {**SMALL, "image_size": 32, "patch_size": 8},
}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **MODELS[kind])
    return transformers.AutoModel.from_config(config).eval()


def inputs_of(kind: str) -> Any:
    if kind in ("vit", "deit"):
        return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 6, dtype=torch.long)
    return {"input_ids": torch.arange(12).reshape(2, 6) + 3, "attention_mask": mask}


def probabilities(taps: dict[str, Tensor], heads: int) -> Tensor:
    queries, keys = (taps[f"{kind}.1"].unflatten(2, (heads, -1)).transpose(1, 2) for kind in ("queries", "keys"))
    return (queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])).softmax(-1)


@pytest.mark.parametrize("kind", list(MODELS))
def test_all_families_give_their_projections(kind: str) -> None:
    model = build(kind)
    names = ["queries.1", "keys.1", "values.1", "queries.-1"]
    reader = TapReader(model, names)
    taps = reader(inputs_of(kind)).taps
    assert {tuple(tensor.shape) for tensor in taps.values()} == {tuple(taps["keys.1"].shape)}
    assert taps["queries.1"].shape[2] == 32
    assert torch.equal(taps["queries.1"], taps["queries.-1"])
    assert heads_of(model, names) == (4, 4, 4, 4)
    assert number_of_layers(model) == len(attention_layers(model)) == 2
    info = reader.probe(inputs_of(kind))["values.1"]
    assert (info.layout, info.prefix_tokens, info.grid) == ("channels_last", 0, None)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "vit"])
def test_the_scores_are_those_of_the_model(kind: str) -> None:
    """Formed from the taps of a model with fused attention, they are what its eager form makes."""
    model = build(kind)
    taps = TapReader(model, ["queries.1", "keys.1"])(inputs_of(kind)).taps
    expected = TapReader(model, ["attentions.1"])(inputs_of(kind)).taps["attentions.1"]
    torch.testing.assert_close(probabilities(taps, 4), expected)


def test_vision_transformer_of_timm_gives_thirds_of_its_fused_projection() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    taps = TapReader(model, ["queries.0", "keys.0", "values.0", "blocks.0.attn.qkv"])(images).taps
    joined = torch.cat([taps["queries.0"], taps["keys.0"], taps["values.0"]], dim=2)
    assert torch.equal(joined, taps["blocks.0.attn.qkv"])
    assert heads_of(model, ["queries.0", "blocks.0.attn.qkv", "blocks.0"]) == (3, 3, None)
    assert [layer_tap(model, "hidden_states", layer) for layer in (0, 1)] == ["blocks.0:input", "blocks.0"]


def test_what_has_no_attention_is_refused_in_a_sentence() -> None:
    with pytest.raises(TapError, match=r"Sequential has no self-attention layers of a known kind: name the module"):
        TapReader(nn.Sequential(nn.Linear(2, 2)), ["queries.0"])
    with pytest.raises(TapError, match=r"BertModel has queries.0 to queries.1"):
        TapReader(build("bert"), ["queries.2"])
    with pytest.raises(TapError, match=r"does not tell its layers"):
        number_of_layers(nn.Linear(2, 2))
