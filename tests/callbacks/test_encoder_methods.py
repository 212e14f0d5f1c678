"""MiniLM, patient KD and progressive transfer in a run: updates by hand, frozen layers, resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdlightning import (
    Classification,
    ConfigurationError,
    CosineEmbedding,
    ForwardKL,
    LayerKD,
    MaskedLM,
    MiniLM,
    MiniLMRelation,
    MobileBERTTransfer,
    OfflineDistillation,
    PatientKD,
    ProgressiveKD,
    Unlabelled,
    student_from_teacher,
    timm_model,
)
from kdlightning.data.loader import ResumableLoader
from kdlightning.losses import minilm_loss, minilm_relation_loss, patient_kd_loss
from kdlightning.text.sequences import TokenSequences

pytestmark = pytest.mark.filterwarnings("ignore:.*(exists and is not empty|Checkpoint directory)")
WORDS = 30


def encoder(width: int, layers: int, heads: int, kind: str = "bert", seed: int = 0) -> nn.Module:
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        max_position_embeddings=20,
        num_labels=3,
        pad_token_id=0,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForSequenceClassification.from_config(config)


def vit(width: int, layers: int, heads: int, seed: int = 0) -> nn.Module:
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": width, "depth": layers, "num_heads": heads}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm_model("vit_tiny_patch16_224", num_classes=3, in_chans=1, options=sizes)


def texts(batch_size: int = 8) -> ResumableLoader:
    ids = [[1 + (7 * number + place) % (WORDS - 1) for place in range(2 + number % 6)] for number in range(16)]
    return ResumableLoader(TokenSequences({"input_ids": ids}, torch.arange(16) % 3), batch_size, shuffle=True, seed=3)


def images() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader([(torch.randn(1, 8, 8, generator=generator), number % 3) for number in range(8)], batch_size=8)


def fit(student: nn.Module, teacher: nn.Module, callback: Any, loader: Any, tmp_path: Path, **options: Any) -> Any:
    given = {"max_steps": 1, "enable_checkpointing": False, "logger": False} | options
    resume = given.pop("resume", None)
    task, optimizer = given.pop("task", Classification(3)), given.pop("optimizer", torch.optim.SGD)
    module = OfflineDistillation(
        student,
        teacher,
        task=task,
        response=None,
        optimizer=lambda parameters: optimizer(parameters, lr=0.05),
        weights={"task": 0.0} if task.has_loss else None,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[callback, *given.pop("more", [])],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **given,
    )
    trainer.fit(module, loader, ckpt_path=resume)
    return module


def projections(model: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
    """Queries, keys and values of the last layer, read by hand."""
    kept: dict[str, Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in ("query", "key", "value", "qkv"):
            hooks.append(module.register_forward_hook(lambda m, i, out, last=last: kept.update({last: out})))
    model(**inputs) if isinstance(inputs, dict) else model(inputs)
    for hook in hooks:
        hook.remove()
    return kept["qkv"].chunk(3, dim=-1) if "qkv" in kept else (kept["query"], kept["key"], kept["value"])


def first_batch(loader: Any) -> tuple[Any, Tensor | None]:
    raw = next(iter(loader))
    raw = getattr(raw, "data", raw)
    if isinstance(raw, dict):
        inputs = {name: raw[name] for name in ("input_ids", "attention_mask")}
        return inputs, inputs["attention_mask"]
    return raw[0], None


PAIRS = {
    "bert": (lambda: encoder(16, 1, 2), lambda: encoder(24, 3, 4, seed=1), texts),
    "roberta": (lambda: encoder(8, 2, 1, "roberta"), lambda: encoder(16, 3, 4, "roberta", seed=1), texts),
    "vit": (lambda: vit(16, 1, 2), lambda: vit(24, 2, 3, seed=1), images),
}


@pytest.mark.parametrize("pair", list(PAIRS))
def test_a_step_of_minilms_relations_is_the_step_by_hand(pair: str, tmp_path: Path) -> None:
    """Networks of other widths, depths and numbers of heads; texts are padded."""
    make, make_teacher, make_loader = PAIRS[pair]
    student, by_hand, teacher = make(), make(), make_teacher().eval()
    fit(student, teacher, LayerKD(MiniLMRelation(relation_heads=8)), make_loader(), tmp_path)
    inputs, mask = first_batch(make_loader())
    assert mask is None or mask.min() == 0
    with torch.no_grad():
        theirs = projections(teacher, inputs)
    minilm_relation_loss(projections(by_hand.train(), inputs), theirs, mask, relation_heads=8).backward()
    start = copy.deepcopy(by_hand.state_dict())
    torch.optim.SGD(by_hand.parameters(), lr=0.05).step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(value, start[name]) for name, value in by_hand.state_dict().items())


def test_a_step_of_minilms_attention_is_the_step_by_hand(tmp_path: Path) -> None:
    student, by_hand, teacher = encoder(16, 1, 4), encoder(16, 1, 4), encoder(24, 3, 4, seed=1).eval()
    fit(student, teacher, LayerKD(MiniLM()), texts(), tmp_path)
    inputs, mask = first_batch(texts())
    minilm_loss(projections(by_hand.train(), inputs), projections(teacher, inputs), mask, heads=4).backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.05).step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_a_step_of_patient_kd_is_the_step_by_hand(tmp_path: Path) -> None:
    student, by_hand, teacher = encoder(16, 2, 2), encoder(16, 2, 2), encoder(16, 4, 4, seed=1).eval()
    fit(student, teacher, LayerKD(PatientKD()), texts(), tmp_path)
    inputs, _ = first_batch(texts())
    ours, theirs = (net(**inputs, output_hidden_states=True).hidden_states for net in (by_hand.train(), teacher))
    (100 * patient_kd_loss(ours[1][:, 0], theirs[2][:, 0])).backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.05).step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_an_encoder_without_head_learns_from_text_without_labels(tmp_path: Path) -> None:
    student, teacher = encoder(16, 1, 2).bert, encoder(24, 2, 4, seed=1).bert
    start = copy.deepcopy(student.state_dict())
    fit(student, teacher, LayerKD(MiniLMRelation(relation_heads=4)), texts(), tmp_path, task=Unlabelled())
    moved = {name for name, value in student.state_dict().items() if not torch.equal(value, start[name])}
    assert any("query" in name for name in moved)
    assert not any("pooler" in name for name in moved)


def test_a_step_of_distilberts_triple_loss_is_the_step_by_hand(tmp_path: Path) -> None:
    """A student of every other layer; 2·masked words + 5·T²·KL at every token + 1·cosine of the last states."""
    config = encoder(16, 2, 2).config
    with torch.random.fork_rng():
        torch.manual_seed(2)
        teacher = transformers.AutoModelForMaskedLM.from_config(config)
    student, by_hand = (student_from_teacher(teacher, layers=1, layer_choice="skip") for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, WORDS, (6, 7), generator=generator)
    mask = (torch.arange(7) < torch.tensor([[7], [4], [6], [2], [5], [7]])).long()
    labels = ids.where((torch.rand(6, 7, generator=generator) < 0.4) & mask.bool(), -100)
    texts = [{"input_ids": i, "attention_mask": m, "labels": y} for i, m, y in zip(ids, mask, labels, strict=True)]
    module = OfflineDistillation(
        student,
        teacher,
        task=MaskedLM(distill_on="all"),
        response=ForwardKL(temperature=2.0),
        weights={"task": 2.0, "forward_kl": 20.0},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    )
    pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        callbacks=[LayerKD(CosineEmbedding(), layers="final")],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(texts, 6))
    given = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
    ours, theirs = by_hand.train()(**given), teacher.eval()(**given)
    words = nn.functional.cross_entropy(ours.logits.flatten(0, 1), labels.flatten())
    q, p = ((answer.logits[mask == 1] / 2).log_softmax(-1) for answer in (ours, theirs))
    states, targets = (answer.hidden_states[-1][mask == 1] for answer in (ours, theirs))
    cosine = nn.functional.cosine_embedding_loss(states, targets.detach(), torch.ones(len(states)))
    divergence = 4 * (p.exp() * (p - q)).sum(-1).mean()
    (2 * words + 5 * divergence + cosine).backward()
    torch.optim.SGD([p for p in by_hand.parameters() if p.grad is not None], lr=0.05).step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: LayerKD(MiniLM()), "student has 2 attention heads and the teacher 4.*MiniLMRelation"),
        (lambda: LayerKD(MiniLMRelation(relation_heads=5)), "relation_heads=5 does not divide the width 16"),
        (lambda: ProgressiveKD(MobileBERTTransfer()), "student has 2 attention heads and the teacher 4"),
        (lambda: ProgressiveKD(PatientKD()), "loss must be MobileBERTTransfer"),
        (lambda: ProgressiveKD(MobileBERTTransfer(), layers={2: 2, 1: 1}), "name the student's layers from the lowest"),
    ],
)
def test_what_does_not_fit_is_one_sentence(callback: Any, message: str, tmp_path: Path) -> None:
    heads = 4 if "lowest" in message else 2
    with pytest.raises(ConfigurationError, match=message):
        fit(encoder(16, 2, heads), encoder(24, 2, 4, seed=1), callback(), texts(), tmp_path)


def test_patient_kd_reads_the_class_token_of_vision_transformers(tmp_path: Path) -> None:
    student, by_hand, teacher = vit(16, 2, 2), vit(16, 2, 2), vit(16, 4, 2, seed=1).eval()
    fit(student, teacher, LayerKD(PatientKD()), images(), tmp_path)
    inputs, _ = first_batch(images())
    kept = []
    for block in (by_hand.train().blocks[0], teacher.blocks[1]):
        block.register_forward_hook(lambda module, args, output: kept.append(output[:, 0]))
    by_hand(inputs), teacher(inputs)
    (100 * patient_kd_loss(*kept)).backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.05).step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-4, atol=1e-6)


class Watch(pl.Callback):
    """The student's weights after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.weights.append(copy.deepcopy(pl_module.student.state_dict()))


def parts_that_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    kinds = {"embeddings": "embeddings", "layer.0.": "first", "layer.1.": "second", "blocks.0.": "first"}
    kinds |= {"blocks.1.": "second", "pos_embed": "embeddings", "patch_embed": "embeddings"}
    return {kind for name in moved for part, kind in kinds.items() if part in name}


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_layers_learn_one_after_the_other(kind: str, tmp_path: Path) -> None:
    """Adam's memory of the first stage moves nothing in the second."""
    text = kind == "bert"
    student, teacher = (encoder(16, 2, 2), encoder(16, 4, 2, seed=1)) if text else (vit(16, 2, 2), vit(24, 4, 2))
    watch, start = Watch(), copy.deepcopy(student.state_dict())
    options = {"max_steps": 6, "more": [watch], "optimizer": torch.optim.AdamW}
    callback = ProgressiveKD(MobileBERTTransfer(until=2 / 3))
    fit(student, teacher, callback, texts() if text else images(), tmp_path, **options)
    moments = [start, *watch.weights]
    moved = [parts_that_moved(*steps) for steps in zip(moments, moments[1:], strict=False)]
    assert moved[:2] == [{"embeddings", "first"}] * 2
    assert moved[2:4] == [{"second"}] * 2
    assert moved[4:] == [{"embeddings", "first", "second"}] * 2


def test_without_freezing_lower_layers_learn_on(tmp_path: Path) -> None:
    watch, student = Watch(), encoder(16, 2, 2)
    callback = ProgressiveKD(MobileBERTTransfer(), freeze=False)
    fit(student, encoder(16, 2, 2, seed=1), callback, texts(), tmp_path, max_steps=4, more=[watch])
    assert parts_that_moved(watch.weights[1], watch.weights[3]) == {"embeddings", "first", "second"}


def test_a_resumed_run_ends_where_the_undisturbed_one_ends(tmp_path: Path) -> None:
    def run(resume: Path | None = None) -> dict[str, Tensor]:
        student, teacher = encoder(16, 2, 2), encoder(24, 4, 2, seed=1)
        saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"optimizer": torch.optim.AdamW, "more": [saved], "enable_checkpointing": True, "max_steps": 6}
        torch.manual_seed(5)
        callback = ProgressiveKD(MobileBERTTransfer())
        return fit(student, teacher, callback, texts(), tmp_path, resume=resume, **options).state_dict()

    whole = run()
    resumed = run(tmp_path / "step=4.ckpt")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
