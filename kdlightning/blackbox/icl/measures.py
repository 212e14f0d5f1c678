"""How predictions on many tasks are measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kdlightning.blackbox.base import Prediction
from kdlightning.errors import MissingExtraError


@dataclass(frozen=True)
class TaskPrediction(Prediction):
    """A prediction of one task among many.

    Attributes:
        task: the task's name.
        chosen: whether the student chose among the task's answers; else it wrote freely.
        votes: what it predicted with each draw of demonstrations.
    """

    task: str = ""
    chosen: bool = False
    votes: tuple[str, ...] = ()


def measures(predictions: Sequence[Prediction]) -> dict[str, float]:
    """`acc`, `most_frequent` and `macro_f1` over tasks with options, `exact_match` and `rouge_l` over the others.

    `most_frequent` is the accuracy of whoever knows of each task its most frequent right answer and nothing else.
    `acc`, `exact_match` and `rouge_l` are means over records. `macro_f1` is the mean over tasks of the unweighted mean
    F1 of the task's classes, those that occur as a gold answer or as a prediction.
    """
    ours = [each for each in predictions if isinstance(each, TaskPrediction)]
    chosen = [each for each in ours if each.chosen]
    written = [each for each in ours if not each.chosen]
    values: dict[str, float] = {}
    if chosen:
        tasks = sorted({each.task for each in chosen})
        scores = [macro_f1([each for each in chosen if each.task == task]) for task in tasks]
        common = sum(max(Counter(each.gold for each in chosen if each.task == task).values()) for task in tasks)
        values |= {"acc": _right(chosen), "most_frequent": common / len(chosen), "macro_f1": sum(scores) / len(scores)}
    if written:
        values |= {"exact_match": _right(written), "rouge_l": rouge_l(written)}
    return values


def macro_f1(predictions: Sequence[Prediction]) -> float:
    """The unweighted mean over classes of F1; a query without a prediction is wrong."""
    pairs = [(each.gold or "", each.prediction) for each in predictions]
    classes = sorted({name for pair in pairs for name in pair if name is not None})
    total = 0.0
    for name in classes:
        hits = sum(gold == name == said for gold, said in pairs)
        total += 2 * hits / sum((gold == name) + (said == name) for gold, said in pairs)
    return total / len(classes) if classes else 0.0


def rouge_l(predictions: Sequence[Prediction]) -> float:
    """The mean F-measure of the longest common subsequence of words, without stemming (Lin, 2004).

    Raises:
        MissingExtraError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingExtraError("rouge-score", "rouge", "ROUGE-L") from error
    scorer = RougeScorer(["rougeL"])
    scores = [scorer.score(each.gold or "", each.prediction or "")["rougeL"].fmeasure for each in predictions]
    return float(sum(scores)) / len(scores) if scores else 0.0


def _right(predictions: Sequence[Prediction]) -> float:
    return sum(each.correct for each in predictions) / len(predictions)
