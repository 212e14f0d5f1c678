"""Heads of masked language models, kept apart behind the layers that they have of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdlightning.taps import TapReader
from kdlightning.taps.native import HeadInputSource, TransformersSource, head_agrees

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
OTHERS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "distilbert": {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "modernbert": {
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "deberta-v2": SMALL,
    "electra": {**SMALL, "embedding_size": 8},
    "albert": {**SMALL, "embedding_size": 8},
}
INPUTS = {"input_ids": torch.arange(5, 19).view(2, 7), "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}


def build(kind: str, **options: Any) -> nn.Module:
    config = transformers.AutoConfig.for_model(kind, **{**OTHERS.get(kind, SMALL), **options})
    return transformers.AutoModelForMaskedLM.from_config(config).eval()


@pytest.mark.parametrize("kind", OTHERS)
def test_head_and_its_input_give_the_models_logits_and_gradients(kind: str) -> None:
    model = build(kind)
    reader = TapReader(model, ["hidden_states.1", "pre_logits"], language=True)
    assert isinstance(reader.source, HeadInputSource)
    output = reader(INPUTS)
    assert output._logits is None, "full logits are not computed"
    assert output.hidden is not None
    assert output.head is not None
    whole = model(**INPUTS, output_hidden_states=True)
    assert torch.allclose(output.logits, whole.logits, atol=1e-5)
    assert torch.equal(output.taps["hidden_states.1"], whole.hidden_states[1])
    assert output.taps["pre_logits"] is output.hidden
    assert head_agrees(model, INPUTS)
    gradients = []
    for logits in (output.logits, whole.logits):
        model.zero_grad()
        logits[0, 2].square().sum().backward()
        gradients.append({name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, ours in gradients[0].items():
        assert torch.allclose(ours, gradients[1][name], atol=1e-4), name


def test_the_head_is_left_as_it_was() -> None:
    model = build("bert")
    reader = TapReader(model, language=True)
    before = reader(INPUTS).logits
    assert not model.get_output_embeddings()._forward_pre_hooks  # type: ignore[operator]
    assert model(**INPUTS).logits.shape == (2, 7, 50)
    with pytest.raises(Exception):  # noqa: B017, PT011
        reader({"input_ids": torch.tensor([[99]])})
    assert not model.get_output_embeddings()._forward_pre_hooks  # type: ignore[operator]
    assert torch.equal(reader(INPUTS).logits, before)


def test_models_whose_head_is_no_module_that_is_called_give_their_logits() -> None:
    mobile = build("mobilebert", embedding_size=16, intra_bottleneck_size=8, true_hidden_size=8, hidden_size=24)
    unlike = build("deberta-v2", legacy=False)
    for model in (mobile, unlike):
        output = TapReader(model, ["hidden_states.0"], language=True)(INPUTS)
        assert output.hidden is None
        assert torch.equal(output.logits, model(**INPUTS).logits)
        assert "hidden_states.0" in output.taps


def test_a_causal_model_with_layers_before_its_head_is_read_too_and_others_as_before() -> None:
    config = transformers.AutoConfig.for_model("roberta", **SMALL, is_decoder=True)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    reader = TapReader(model, language=True)
    assert isinstance(reader.source, HeadInputSource)
    assert reader.source.options["use_cache"] is False
    assert torch.allclose(reader(INPUTS).logits, model(**INPUTS).logits, atol=1e-5)
    config = transformers.AutoConfig.for_model("gpt2", vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    plain = TapReader(transformers.AutoModelForCausalLM.from_config(config), language=True)
    assert type(plain.source) is TransformersSource
