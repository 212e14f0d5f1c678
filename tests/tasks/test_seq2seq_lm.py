"""What encoder–decoders are trained on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.models import transformers_model
from kdlightning.taps import TapReader
from kdlightning.tasks import Seq2SeqLM

T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
T5 |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "dropout": 0.0}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32}
BART |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 1}

RAW = {
    "input_ids": torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    "labels": torch.tensor([[-100, -100, 9, 1], [10, 11, 1, -100]]),
    "fed_labels": torch.tensor([[3, 4, 9, 1], [10, 11, 1, -100]]),
}


@pytest.mark.parametrize(("kind", "config"), [("t5", T5), ("bart", BART)])
def test_the_loss_is_that_of_the_counted_tokens_after_all_fed_ones(kind: str, config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = transformers_model(
        architecture="AutoModelForSeq2SeqLM", model_type=kind, config={"vocab_size": 20, **config}
    ).double()
    model.eval()
    task = Seq2SeqLM()
    batch = task.batch(RAW)
    output = TapReader(model, language=task.wants_hidden)(batch.inputs)
    start, total = config["decoder_start_token_id"], torch.zeros((), dtype=torch.float64)
    for row, (prompt, fed, skip) in enumerate((([5, 6, 7, 1], [3, 4, 9, 1], 2), ([8, 1], [10, 11, 1], 0))):
        decoder = torch.tensor([[start, *fed[:-1]]])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0].detach()
        torch.testing.assert_close(output.logits[row, : len(fed)], logits, rtol=1e-5, atol=1e-6)
        total += functional.cross_entropy(logits[skip:], torch.tensor(fed[skip:]), reduction="sum")
    assert int(task.count(batch)) == 5
    assert task.loss(output, batch).detach().item() == pytest.approx(total.item(), rel=1e-6)
    metrics = task.metrics()
    task.update(metrics, output, batch)
    assert metrics["perplexity"].compute().item() == pytest.approx((total / 5).exp().item(), rel=1e-5)
    rows = task.predict(output.detach(), batch)
    assert [row["tokens"] for row in rows] == [2, 3]


def test_a_loaders_own_decoder_inputs_are_kept() -> None:
    own = {name: RAW[name] for name in ("input_ids", "labels")} | {"decoder_input_ids": torch.zeros(2, 4).long()}
    batch = Seq2SeqLM().batch(own)
    assert set(batch.inputs) == {"input_ids", "decoder_input_ids"}
    assert torch.equal(batch.mask, RAW["labels"] != -100)
    assert Seq2SeqLM().batch(batch) is batch


def test_other_batches_are_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match="Seq2SeqLM reads mappings with input_ids"):
        Seq2SeqLM().batch((torch.ones(2, 3), torch.ones(2)))
    with pytest.raises(ConfigurationError, match="Seq2SeqLM needs labels"):
        Seq2SeqLM().batch({"input_ids": torch.ones(2, 3)})
    own = Batch(inputs={}, target=torch.tensor([[1, -100]]))
    assert int(Seq2SeqLM().count(own)) == 1
