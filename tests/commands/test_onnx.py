"""ONNX students answer as their checkpoints do, for any batch and length; so do students that were cut out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlightning import load_student
from kdlightning.errors import ConfigurationError, MissingExtraError
from kdlightning.export.onnx import OnnxModel, write_onnx
from kdlightning.latency import onnx_latency, torch_latency

BERT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_labels": 3,
}
TEXTS = [f"film {n} was {'fine' if n % 2 else 'dull'} , part {n % 5}" for n in range(24)]


def checkpoint_of(model: Any, folder: Path, **more: Any) -> Path:
    """A checkpoint as a run leaves it."""
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {f"student.{k}": v for k, v in model.state_dict().items()}, **more}, path)
    return path


@pytest.fixture
def shrunk_run(tmp_path: Path, config: Any) -> Path:
    """A configuration: a student cut out of a teacher whose file and vocabulary lie in the test's folder."""
    from kdlightning import transformers_model
    from kdlightning.text.tokenizers import train_tokenizer

    (tmp_path / "reviews").mkdir()
    for part in ("train", "dev", "test"):
        lines = "".join(f"{json.dumps({'text': text, 'label': n % 2})}\n" for n, text in enumerate(TEXTS))
        (tmp_path / "reviews" / f"{part}.jsonl").write_text(lines)
    train_tokenizer([*TEXTS, "words that nobody says"], 200).save_pretrained(tmp_path / "whole")
    network = {"model_type": "bert", "config": {**BERT, "vocab_size": 250, "num_labels": 2}}
    torch.save(transformers_model(**network).state_dict(), tmp_path / "teacher.pt")
    teacher = {"class_path": "kdlightning.transformers_model", "init_args": network}
    student = {
        "class_path": "kdlightning.student_from_teacher",
        "init_args": {
            "teacher": teacher,
            "checkpoint": "teacher.pt",
            "budget": {"latency_ms": 1000.0, "layers": [1], "file": "sizes.json"},
            "vocabulary": {"tokenizer": "whole", "texts": ["reviews/train.jsonl"], "folder": "small"},
        },
    }
    frozen = {"model": teacher, "checkpoint": "teacher.pt", "token_map": "small"}
    path = config(
        student=student,
        classes=2,
        mode="OfflineDistillation",
        model={"teacher": {"class_path": "FrozenTeacher", "init_args": frozen}},
        trainer={"max_epochs": 1},
    )
    import yaml

    content = yaml.safe_load(path.read_text())
    content["data"] = {
        "class_path": "TextClassification",
        "init_args": {"path": "reviews", "tokenizer": "small", "batch_size": 8},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_cut_student_is_trained_exported_and_loaded_without_its_teacher(command: Any, shrunk_run: Path) -> None:
    outcome = command("fit", "-c", shrunk_run)
    assert outcome.code == 0, outcome.err
    run = Path("runs/tiny/seed0/version_0")
    assert json.loads((run / "result.json").read_text())["student"]["latency_ms"] > 0
    more = command("fit", "-c", shrunk_run, "--trainer.max_epochs=2", "--ckpt_path", "last")
    assert more.code == 0, more.err
    Path("teacher.pt").unlink()
    Path("small/token_map.json").unlink()
    Path("sizes.json").unlink()
    student = load_student(run / "checkpoints" / "last.ckpt")
    assert student.config.num_hidden_layers == 1
    outcome = command("export", run, "--output", "plain")
    assert outcome.code == 0, outcome.err
    outcome = command("export", run, "--format", "onnx", "--output", "onnx")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert 'load it with: onnxruntime.InferenceSession("onnx/model.onnx")' in outcome.out
    assert "one sample (median of 32, one thread)" in outcome.out
    import onnxruntime
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained("onnx")
    session = onnxruntime.InferenceSession("onnx/model.onnx")
    model = transformers.BertForSequenceClassification.from_pretrained("plain").eval()
    for texts in (["film 3 was fine"], ["film 3 was fine", "dull , part 2 . film", "film"]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        names = [entry.name for entry in session.get_inputs()]
        theirs = session.run(None, {name: inputs[name].numpy() for name in names})[0]
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(theirs), model(**inputs).logits, rtol=0, atol=1e-4)


def test_timm_models_and_networks_of_our_own(tmp_path: Path) -> None:
    from kdlightning import ConvNet, timm_model

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "num_heads": 2, "depth": 1}
    vit = timm_model("vit_tiny_patch16_224", num_classes=4, options=sizes)
    for model, inputs in (
        (vit, torch.rand(2, 3, 16, 16)),
        (ConvNet(5, widths=[4], dimensions=1), torch.rand(2, 1, 40)),
    ):
        difference, took = write_onnx(model, tmp_path / "model.onnx", inputs)
        assert difference < 1e-4
        assert took > 0
        onnx = OnnxModel(tmp_path / "model.onnx")
        many = torch.rand(5, *inputs.shape[1:])
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(onnx.run(onnx.arrays({"input": many}))), model.eval()(many), rtol=0, atol=1e-4
            )
    found = onnx_latency(tmp_path / "model.onnx", {"input": torch.rand(1, 1, 40)}, repeats=3, warm_up=1)
    assert found.milliseconds > 0
    assert found.passes == 3


def test_eight_bit_weights_are_smaller_and_say_by_how_much_answers_change(command: Any, tmp_path: Path) -> None:
    from kdlightning import transformers_model

    spec = {"class_path": "kdlightning.transformers_model", "init_args": {"model_type": "bert", "config": BERT}}
    spec["init_args"]["config"] = BERT | {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 1}
    model = transformers_model(**spec["init_args"])
    checkpoint_of(model, tmp_path / "run", hyper_parameters={"student": spec})
    outcome = command("export", "run", "--format", "onnx", "--quantize", "int8", "--output", "out")
    assert outcome.code == 0, outcome.err
    assert "its answers differ by" in outcome.out
    mark = json.loads(Path("out/kdlightning_export.json").read_text())
    assert mark["quantize"] == "int8"
    assert 0 < mark["difference"] < 0.1
    weights = sum(p.numel() for p in model.bert.encoder.parameters())
    whole = sum(p.numel() for p in model.parameters())
    assert Path("out/model.onnx").stat().st_size < 4 * whole - 2 * weights + 200_000
    assert sorted(path.name for path in Path("out").iterdir()) == ["kdlightning_export.json", "model.onnx"]
    assert "--quantize int4" in command("export", "run", "--format", "onnx", "--quantize", "int4").sentence
    assert "for --format onnx" in command("export", "run", "--quantize", "int8").sentence


def test_what_cannot_be_translated_or_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdlightning import ConvNet
    from kdlightning.export import export_student

    shape = {"shape": [1, 8, 8], "dtype": "float32"}
    model = ConvNet(3, widths=[4])
    checkpoint = checkpoint_of(model, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(OnnxModel, "run", lambda self, arrays: (1 + next(iter(arrays.values())))[:, 0, 0, :3])
        with pytest.raises(ConfigurationError, match="onnxruntime answers differently"):
            export_student(checkpoint, tmp_path / "out", format="onnx", student=model, inputs=shape)
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", _no_translation)
        with pytest.raises(ConfigurationError, match="cannot translate ConvNet: no such operator"):
            export_student(checkpoint, tmp_path / "out", format="onnx", student=model, inputs=shape)
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"kdlightning\[onnx\]"):
        export_student(checkpoint, tmp_path / "out", format="onnx", student=model, inputs=shape)


def _no_translation(*arguments: Any, **options: Any) -> None:
    raise RuntimeError("\n  no such operator\nand more")


def test_latency_is_the_median_of_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from kdlightning import ConvNet

    clock = iter([0.0, *(t for n in range(5) for t in (10.0 * n, 10.0 * n, 10.0 * n + (50 if n == 0 else n)))])
    monkeypatch.setattr("kdlightning.latency.time.perf_counter", lambda: next(clock))
    model = ConvNet(3, widths=[4]).eval()
    found = torch_latency(model, torch.rand(1, 1, 8, 8), repeats=4, warm_up=1, threads=1)
    assert (found.milliseconds, found.passes, found.threads) == (2500.0, 4, 1)
    monkeypatch.undo()
    once = torch_latency(model, torch.rand(1, 1, 8, 8), seconds=0.0)
    assert once.passes == 1
