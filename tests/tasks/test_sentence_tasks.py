"""Tasks of embeddings and rerankers: what they make of groups, their losses and metrics against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from kdlightning import (
    KD,
    Batch,
    ConfigurationError,
    LoadedBatch,
    MarginMSE,
    ModelOutput,
    PassageRetrieval,
    Reranking,
    SentenceEmbedding,
    SentenceSimilarity,
)
from kdlightning.modules.memory import LogitMemory
from kdlightning.ranking import CorpusRanks

TASKS = (SentenceSimilarity, PassageRetrieval, Reranking)


def groups(samples: int = 3, texts: int = 2, labels: Tensor | None = None) -> dict[str, Tensor]:
    ids = torch.arange(samples * texts * 4).view(samples, texts, 4)
    raw = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return raw if labels is None else {**raw, "labels": labels}


def vectors(count: int, width: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    return torch.randn(count, width, generator=draw, dtype=torch.float64)


def cosine(one: Tensor, other: Tensor) -> float:
    product = sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))
    return product / (sum(a * a for a in one.tolist()) * sum(b * b for b in other.tolist())) ** 0.5


@pytest.mark.parametrize("task", [make() for make in TASKS])
def test_texts_stand_one_after_the_other(task: Any) -> None:
    index = torch.arange(3)
    raw = groups(3, 2, torch.tensor([0.0, 0.5, 1.0]))
    for given in (raw, LoadedBatch(raw, index, index)):
        batch: Any = task.batch(given)
        assert (batch.size, batch.group) == (3, 2)
        assert torch.equal(batch.inputs["input_ids"], raw["input_ids"].view(6, 4))
        assert task.batch(batch) is batch
    assert batch.index is index
    for wrong in ({"input_ids": torch.zeros(2, 4)}, {"input_ids": torch.zeros(2, 1, 4)}, torch.zeros(2, 3)):
        with pytest.raises(ConfigurationError, match="2 or more texts, tokens\\): use TextGroups"):
            task.batch(wrong)


def test_similarity_is_the_cosine_of_a_pair() -> None:
    scores, task = torch.tensor([0.1, 0.9, 0.4]), SentenceSimilarity()
    batch, answer = task.batch(groups(3, 2, scores)), vectors(6)
    cosines = [cosine(answer[2 * n], answer[2 * n + 1]) for n in range(3)]
    value = task.loss(ModelOutput(answer), batch)
    expected = sum((c - s) ** 2 for c, s in zip(cosines, scores.tolist(), strict=True)) / 3
    assert float(value) == pytest.approx(expected, rel=1e-6)
    metrics = task.metrics()
    task.update(metrics, ModelOutput(answer.detach()), batch)
    assert float(metrics["spearman"].compute()) == pytest.approx(
        spearmanr(cosines, scores.tolist()).statistic, abs=1e-6
    )
    rows = task.predict(ModelOutput(answer), batch)
    assert [row["prediction"] for row in rows] == pytest.approx(cosines)
    compared = task.comparison()
    assert task.comparable(ModelOutput(answer), ModelOutput(vectors(6, 7)))
    task.compare(compared, ModelOutput(answer), ModelOutput(vectors(6, 7)), batch)
    assert compared["mse_to_teacher"].compute() > 0
    with pytest.raises(ConfigurationError, match="wrap it by kdlightning.sentence_encoder"):
        task.loss(ModelOutput(hidden=torch.zeros(6, 4, 5)), batch)


def test_retrieval_is_cross_entropy_among_all_passages_of_the_batch() -> None:
    task = PassageRetrieval(scale=7.0)
    batch, answer = task.batch(groups(3, 4)), vectors(12)
    texts = answer.view(3, 4, 5)
    passages = [texts[n, place] for place in range(1, 4) for n in range(3)]
    total = 0.0
    for n in range(3):
        scores = torch.tensor([7 * cosine(texts[n, 0], passage) for passage in passages], dtype=torch.float64)
        total -= float(scores.log_softmax(0)[n]) / 3
    assert float(task.loss(ModelOutput(answer), batch)) == pytest.approx(total)
    ours, theirs, _ = task.rows(answer, vectors(12, 3), batch)
    assert ours.shape == theirs.shape == (3, 3)
    assert float(ours[1, 2]) == pytest.approx(7 * cosine(texts[1, 0], texts[1, 3]))
    assert MarginMSE()(ours, theirs) > 0
    assert KD(temperature=1.0)(ours, theirs) > 0
    metrics = task.metrics()
    task.update(metrics, ModelOutput(answer), batch)
    ranks = []
    for n in range(3):
        scores = [cosine(texts[n, 0], passage) for passage in passages]
        ranks.append(1 + sum(score > scores[n] for score in scores))
    assert float(metrics["mrr"].compute()) == pytest.approx(sum(1 / rank for rank in ranks) / 3)
    assert float(metrics["recall"].compute()) == 1
    assert [len(row["scores"]) for row in task.predict(ModelOutput(answer), batch)] == [3, 3, 3]
    for options, sentence in (
        ({"scale": 0}, "scale must be above 0"),
        ({"recall_at": 0}, "recall_at must be at least"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            PassageRetrieval(**options)


def test_ranks_are_of_the_whole_split_and_equal_scores_share_theirs() -> None:
    eye = torch.eye(4)
    for metric, expected in ((CorpusRanks(), (1 + 1 / 2) / 2), (CorpusRanks(1), 0.5)):
        metric.update(eye[:1], eye[:1], eye[3:])
        # The first one's passage comes closer to the second query than its own.
        metric.update(eye[:1], (eye[:1] + eye[1:2]) / 2**0.5, eye[2:3])
        assert float(metric.compute()) == pytest.approx(expected)
    collapsed = CorpusRanks()
    collapsed.update(*(torch.ones(10, 4) / 2 for _ in range(3)))
    assert float(collapsed.compute()) == pytest.approx(1 / 10.5)


def test_reranking_reads_one_score_a_pair() -> None:
    task, batch = Reranking(), Reranking().batch(groups(3, 3))
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.0]])
    for shape in ((9,), (9, 1)):
        output = ModelOutput(scores.reshape(shape))
        expected = -scores.log_softmax(1)[:, 0].mean()
        torch.testing.assert_close(task.loss(output, batch), expected)
        ours, theirs, _ = task.rows(output.logits, output.logits + 1, batch)
        assert MarginMSE()(ours, theirs) < 1e-12
        metrics = task.metrics()
        task.update(metrics, output, batch)
        assert float(metrics["mrr"].compute()) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
        assert float(metrics["acc"].compute()) == pytest.approx(1 / 3)
        compared = task.comparison()
        task.compare(compared, output, ModelOutput(-scores.reshape(shape)), batch)
        assert float(compared["agreement"].compute()) == pytest.approx(1 / 3)
        assert [row["prediction"] for row in task.predict(output, batch)] == [0, 1, 0]
    with pytest.raises(ConfigurationError, match=r"gives \(9, 2\) for 9 pairs: build it with num_labels: 1"):
        task.loss(ModelOutput(torch.zeros(9, 2)), batch)


def test_embeddings_are_compared_with_the_teacher_s() -> None:
    task, batch = SentenceEmbedding(), Batch(torch.zeros(6, 2))
    student, teacher = vectors(6), vectors(6) + 1
    compared = task.comparison()
    task.compare(compared, ModelOutput(student), ModelOutput(teacher), batch)
    expected = sum(cosine(a, b) for a, b in zip(student, teacher, strict=True)) / 6
    assert float(compared["cosine"].compute()) == pytest.approx(expected, rel=1e-5)
    assert 0 <= float(compared["cka"].compute()) <= 1
    narrow = task.comparison()
    task.compare(narrow, ModelOutput(student), ModelOutput(vectors(6, 3)), batch)
    assert not narrow["cosine"].update_called
    assert not task.has_loss


def test_several_answers_a_sample_are_not_kept_by_its_number() -> None:
    memory = LogitMemory()
    memory.add(torch.arange(2), torch.zeros(4, 3))
    memory.finish()
    assert memory.look_up(torch.arange(2)) is None
