"""LoRA adapters are trained, kept in checkpoints, and merged by export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from kdlightning.callbacks import LatestCheckpoint
from kdlightning.errors import ConfigurationError
from kdlightning.export import export_student
from kdlightning.generation.base import Request, Sampling
from kdlightning.generation.transformers import TransformersGenerator
from kdlightning.models import transformers_model
from kdlightning.modules import DistillModule, load_student
from kdlightning.tasks import CausalLM, Seq2SeqLM
from kdlightning.text.tokenizers import train_tokenizer

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    },
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
}
KINDS = {"llama": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM"}


def options(kind: str, **lora: Any) -> dict[str, Any]:
    config = {"vocab_size": 280, **SIZES[kind]}
    return {"architecture": KINDS[kind], "model_type": kind, "config": config, "peft": {"r": 4, **lora}}


def make(kind: str, seed: int = 0, **lora: Any) -> Any:
    torch.manual_seed(seed)
    return transformers_model(**options(kind, **lora))


def rows() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    return [{"input_ids": torch.randint(2, 280, (6,)), "labels": torch.randint(2, 280, (6,))} for _ in range(8)]


def logits(model: Any, kind: str) -> torch.Tensor:
    inputs = {"input_ids": torch.arange(2, 12).view(2, 5)}
    inputs |= {"decoder_input_ids": torch.arange(4, 10).view(2, 3)} if kind == "t5" else {}
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_only_adapters_are_trained_and_the_export_is_plain(trainer: Any, tmp_path: Path, kind: str) -> None:
    import transformers

    student = make(kind)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    task = CausalLM() if kind == "llama" else Seq2SeqLM()
    module = DistillModule(student, task=task, optimizer=lambda p: torch.optim.SGD(p, lr=10.0))
    run = trainer(max_epochs=3, callbacks=[LatestCheckpoint(dirpath=str(tmp_path / "checkpoints"))])
    run.fit(module, DataLoader(rows(), 2))
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert sum(p.numel() for group in run.optimizers[0].param_groups for p in group["params"]) == sum(
        before[name].numel() for name in changed
    )

    checkpoint, expected = tmp_path / "checkpoints" / "last.ckpt", logits(student, kind)
    assert torch.equal(logits(load_student(checkpoint, make(kind, seed=5)), kind), expected)
    inputs = {"named": {name: {"shape": [4], "dtype": "int64"} for name in ("input_ids", "decoder_input_ids")}}
    if kind == "llama":
        del inputs["named"]["decoder_input_ids"]
    done = export_student(checkpoint, tmp_path / "out", student=make(kind, seed=5), inputs=inputs)
    assert done.format == "transformers"
    alone = getattr(transformers, KINDS[kind]).from_pretrained(done.folder)
    assert type(alone).__module__.startswith("transformers.")
    torch.testing.assert_close(logits(alone, kind), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(make(kind), kind), expected, atol=1e-2)


def test_a_checkpoint_of_the_command_line_is_loaded_without_more(tmp_path: Path) -> None:
    student = make("llama", seed=3)
    spec = {"class_path": "kdlightning.transformers_model", "init_args": options("llama")}
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"student": spec}}, tmp_path / "last.ckpt")
    assert torch.equal(logits(load_student(tmp_path / "last.ckpt"), "llama"), logits(student, "llama"))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_student_with_adapters_writes_what_the_merged_one_writes(kind: str) -> None:
    tokenizer = train_tokenizer(["one and two"], 280, "bpe")
    student = make(kind, init_lora_weights=False)
    requests = [Request(text, sampling=Sampling(6)) for text in ("one", "two and")]
    written = [a.texts for a in TransformersGenerator(student, tokenizer).generate(requests)]
    merged = student.merge_and_unload()
    assert [a.texts for a in TransformersGenerator(merged, tokenizer).generate(requests)] == written


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        ({"rank": 4}, "LoraConfig has no option 'rank'; did you mean"),
        ({"target_modules": ["nowhere"]}, "peft: .*nowhere.* not found"),
        ({"r": 0}, "peft: .*r.*positive"),
    ],
)
def test_wrong_options_are_one_sentence(lora: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        make("llama", **lora)
    assert "\n" not in str(caught.value)
