"""A teacher with the whole vocabulary beside a student with a cut one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from kdlightning import (
    CausalLM,
    Classification,
    FrozenTeacher,
    MaskedLM,
    OfflineDistillation,
    TextClassification,
    cut_tokenizer,
    student_from_teacher,
    transformers_model,
)
from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.text.tokenizers import train_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXTS = [f"film {n} was {'fine' if n % 2 else 'dull'} , part {n % 5}" for n in range(24)]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    lines = "".join(f"{json.dumps({'text': text, 'label': n % 2})}\n" for n, text in enumerate(TEXTS))
    (tmp_path / "train.jsonl").write_text(lines)
    train_tokenizer([*TEXTS, "other words that nobody says"], 200).save_pretrained(tmp_path / "whole")
    return tmp_path


def data(folder: Path, tokenizer: str) -> TextClassification:
    return TextClassification(str(folder / "train.jsonl"), tokenizer=str(folder / tokenizer), batch_size=8)


def bert(words: int, head: str = "BertForSequenceClassification", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return transformers_model(architecture=head, model_type="bert", config={**SIZES, "vocab_size": words}).eval()


def whole_size(folder: Path) -> int:
    from kdlightning.text.tokenizers import load_tokenizer

    return len(load_tokenizer(str(folder / "whole")))


def small(folder: Path) -> list[int]:
    from kdlightning.text.tokenizers import load_tokenizer

    return cut_tokenizer(load_tokenizer(str(folder / "whole")), TEXTS, folder / "small")


def runner() -> L.Trainer:
    return L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )


def test_a_mapped_teacher_reads_the_same_text(reviews: Path) -> None:
    kept = small(reviews)
    teacher = bert(whole_size(reviews))
    ids = torch.randint(len(kept), (2, 6))
    for given in (str(reviews / "small"), kept):
        mapped = FrozenTeacher(teacher, token_map=given)(Batch({"input_ids": ids}, size=2), None)
        expected = teacher(input_ids=torch.tensor(kept)[ids]).logits
        assert torch.equal(mapped.logits, expected)
        own = Batch({"input_ids": ids}, size=2, teacher_inputs={"input_ids": ids + 1})
        assert torch.equal(FrozenTeacher(teacher, token_map=given)(own, None).logits, teacher(ids + 1).logits)


def test_a_masked_language_model_answers_about_the_students_words(reviews: Path) -> None:
    kept = small(reviews)
    network = bert(whole_size(reviews), "BertForMaskedLM")
    teacher = FrozenTeacher(network, token_map=kept)
    ids = torch.randint(len(kept), (2, 6))
    expected = network(input_ids=torch.tensor(kept)[ids]).logits[..., kept]
    teacher.prepare((), language=True, logits=True)
    for _ in range(2):
        answer = teacher(Batch({"input_ids": ids}, size=2), None)
        assert answer.head is not None
        assert answer.head.weight.shape[0] == len(kept)
        torch.testing.assert_close(answer.logits, expected, rtol=0, atol=1e-6)


def test_a_cut_student_learns_from_the_whole_teacher(reviews: Path) -> None:
    small(reviews)
    teacher = bert(whole_size(reviews))
    student = student_from_teacher(teacher, layers=1, vocabulary=str(reviews / "small"))
    module = OfflineDistillation(
        student, FrozenTeacher(teacher, token_map=str(reviews / "small")), task=Classification(2)
    )
    trainer = runner()
    trainer.fit(module, datamodule=data(reviews, "small"))
    same = student_from_teacher(teacher, vocabulary=str(reviews / "small"))
    module = OfflineDistillation(
        same, FrozenTeacher(teacher, token_map=str(reviews / "small")), task=Classification(2), optimizer=_still
    )
    trainer = runner()
    trainer.fit(module, datamodule=data(reviews, "small"))
    assert float(trainer.callback_metrics["val/agreement"]) == 1.0, "a whole copy agrees before it learns"


def _still(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def test_other_vocabularies_are_refused_with_the_way_out(reviews: Path) -> None:
    kept = small(reviews)
    size = whole_size(reviews)
    student, teacher = bert(len(kept)).train(), bert(size + 100, seed=1)
    with pytest.raises(ConfigurationError, match=r"the teacher's \d+: answers are compared position by position"):
        runner().fit(OfflineDistillation(student, teacher, task=Classification(2)), datamodule=data(reviews, "small"))
    agreeing = FrozenTeacher(teacher, token_map="same")
    runner().fit(OfflineDistillation(student, agreeing, task=Classification(2)), datamodule=data(reviews, "small"))
    short = FrozenTeacher(teacher, token_map=kept[:-1])
    with pytest.raises(ConfigurationError, match=rf"token_map has {len(kept) - 1} tokens"):
        runner().fit(OfflineDistillation(student, short, task=Classification(2)), datamodule=data(reviews, "small"))


def test_the_teachers_own_inputs_are_another_matter(reviews: Path) -> None:
    class Both(Classification):
        def batch(self, raw: Any) -> Batch:
            batch = super().batch(raw)
            batch.teacher_inputs = {**batch.inputs, "input_ids": batch.inputs["input_ids"] + 1}
            return batch

    student, teacher = bert(len(small(reviews))).train(), bert(whole_size(reviews) + 100)
    runner().fit(OfflineDistillation(student, teacher, task=Both(2)), datamodule=data(reviews, "small"))


def test_a_teacher_of_another_tokenizer_is_known_by_its_folder(reviews: Path, tmp_path: Path) -> None:
    size = whole_size(reviews)
    bert(size).save_pretrained(reviews / "whole")
    teacher = transformers_model(str(reviews / "whole"))
    student = bert(size, seed=1).train()
    own = OfflineDistillation(student, teacher, task=Classification(2))
    runner().fit(own, datamodule=data(reviews, "whole"))
    train_tokenizer([text[::-1] for text in TEXTS], 200).save_pretrained(reviews / "other")
    other = OfflineDistillation(student, transformers_model(str(reviews / "whole")), task=Classification(2))
    with pytest.raises(ConfigurationError, match="numbers '.*' otherwise than the teacher's in"):
        runner().fit(other, datamodule=data(reviews, "other"))


@pytest.mark.parametrize(("small", "large"), [(23, 32), (30522, 30528), (50257, 50304), (151936, 152064), (7, 7)])
def test_padded_embeddings_are_of_one_tokenizer(small: int, large: int) -> None:
    from kdlightning.modules.vocabularies import _only_padded

    assert _only_padded(small, large)
    assert not _only_padded(30522, 50265)
    assert not _only_padded(4000, 4100)


def test_maps_that_mean_nothing_are_refused(reviews: Path) -> None:
    teacher = bert(40)
    for given, sentence in ((str(reviews), r"no token_map\.json"), ([], "needs a number"), ([0, 40], "names token 40")):
        with pytest.raises(ConfigurationError, match=sentence):
            FrozenTeacher(teacher, token_map=given)
    with pytest.raises(ConfigurationError, match="mappings with input_ids"):
        FrozenTeacher(teacher, token_map=[0, 1])(Batch(torch.zeros(2, 3), size=2), None)
    assert MaskedLM.wants_hidden
    assert CausalLM.wants_hidden
