"""A classifier as a referee of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from kdlightning.blackbox.base import collect, problems_from
from kdlightning.blackbox.cot.disco import DISCO
from kdlightning.errors import ConfigurationError
from kdlightning.generation.base import Request
from kdlightning.generation.engine import Engine
from kdlightning.generation.pair_scorer import PairScorer
from kdlightning.generation.recorded import RecordedGenerator
from kdlightning.text.tokenizers import train_tokenizer

OLD, NEW = ("a man sleeps", "he rests"), ("a man runs far away", "he rests")
NAMES = ["entailment", "neutral", "contradiction"]


def question(old: tuple[str, str] = OLD, new: tuple[str, str] = NEW, label: str = "neutral") -> Request:
    return Request(json.dumps({"old": old, "new": new, "label": label}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    tokenizer = train_tokenizer([" ".join(OLD), " ".join(NEW)], 60)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            initializer_range=1.0, num_labels=3, id2label=dict(enumerate(NAMES)),
        )  # fmt: skip
        made.append(str(tmp_path_factory.mktemp("classifier")))
        BertForSequenceClassification(config).save_pretrained(made[-1])
        tokenizer.save_pretrained(made[-1])
    return made


def probability(folder: str, pair: tuple[str, str], label: str) -> float:
    from transformers import AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(*pair, return_tensors="pt")
    with torch.no_grad():
        logits = BertForSequenceClassification.from_pretrained(folder).eval()(**inputs).logits
    return float(logits.softmax(dim=1)[0, NAMES.index(label)])


def test_the_score_is_how_much_more_probable_the_label_has_become(folders: list[str]) -> None:
    scorer = PairScorer(folders[0])
    requests = [question(), question(NEW, OLD, "entailment"), question(OLD, OLD), question(label="Neutral")]
    scores = [float(answer.completions[0].text) for answer in scorer.generate(requests)]
    gain = probability(folders[0], NEW, "neutral") - probability(folders[0], OLD, "neutral")
    loss = probability(folders[0], OLD, "entailment") - probability(folders[0], NEW, "entailment")
    assert abs(gain) > 0.01
    assert scores == pytest.approx([gain, loss, 0.0, gain], abs=2e-6)


def test_it_reads_the_questions_of_disco(folders: list[str]) -> None:
    record = {
        "guid": "0", "premise": "a man sleeps", "hypothesis": "he rests", "label": "entailment",
        "new_label": "neutral", "span": "sleeps", "said": "runs far away",
    }  # fmt: skip
    method = DISCO(demonstrations=0, threshold=-1.0)
    teacher = RecordedGenerator([record], "guid", {"perturbation": "said"})
    others = {"referee": PairScorer(folders[0])}
    found = problems_from([record], method, "guid", "label")
    (outcome,), _ = collect(method, found, teacher, others=others, progress=False)
    gain = probability(folders[0], NEW, "neutral") - probability(folders[0], OLD, "neutral")
    assert outcome.kept
    assert float(outcome.texts["score"]) == pytest.approx(gain, abs=2e-6)


def test_several_models_are_weighted_by_the_softmax_of_their_scores(folders: list[str]) -> None:
    alone = [float(PairScorer(folder).generate([question()])[0].completions[0].text) for folder in folders]
    (together,) = PairScorer(folders).generate([question()])
    weights = torch.tensor(alone).softmax(dim=0)
    assert float(together.completions[0].text) == pytest.approx(float((weights * torch.tensor(alone)).sum()), abs=2e-6)


def test_what_is_no_question_is_a_failure(folders: list[str]) -> None:
    texts = [
        "hello",
        "[1]",
        '{"old": 1, "new": 2, "label": "neutral"}',
        '{"old": ["a"], "new": ["a", "b"], "label": "x"}',
    ]
    result = Engine(PairScorer(folders[0]), progress=False).run([*map(Request, texts), question()])
    assert [failure.reason for failure in result.failures] == ["the prompt is no question about pairs"] * 4
    assert result.answers[4].completions


def test_identity_tells_weights_and_labels_apart(folders: list[str]) -> None:
    first = PairScorer(folders[0]).identity
    assert first == PairScorer(folders[0]).identity
    others = [
        PairScorer(folders[1]), PairScorer(folders), PairScorer(folders[0], label_names=NAMES[::-1]),
        PairScorer(folders[0], max_length=9),
    ]  # fmt: skip
    assert len({first, *(other.identity for other in others)}) == 5


def test_an_exported_folder_takes_names_and_tokenizer_from_elsewhere(folders: list[str], tmp_path: Path) -> None:
    BertForSequenceClassification.from_pretrained(folders[0], id2label={0: "A", 1: "B", 2: "C"}).save_pretrained(
        tmp_path
    )
    scorer = PairScorer(str(tmp_path), tokenizer=folders[0], label_names=NAMES)
    assert scorer.generate([question()])[0].texts == PairScorer(folders[0]).generate([question()])[0].texts


def test_bad_input_is_named(folders: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no label 'netural'; did you mean neutral"):
        PairScorer(folders[0]).generate([question(label="netural")])
    with pytest.raises(ConfigurationError, match="label_names has 2 names"):
        PairScorer(folders[0], label_names=["a", "b"]).generate([question()])
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        PairScorer(str(tmp_path)).generate([question()])
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        PairScorer(folders[0], batch_size=0)
    with pytest.raises(ConfigurationError, match="models is empty"):
        PairScorer([])
