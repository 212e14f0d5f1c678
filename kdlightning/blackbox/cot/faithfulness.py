"""Whether a student's answer follows from its rationale: what it concludes from one that it is fed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdlightning.blackbox.base import Prediction

# Words that say nothing of any question, for what stands in place of a rationale's own.
_TEXT = """
about above across again almost along among apart around away back before behind below beside between beyond both
chapter corner distance double during early eight either empty enough even evening every far few fifth forward four
further general half hardly inside instead iron jacket kettle ladder lamp later least left level likely linen little
local loud many marble margin meanwhile middle minute more morning most near needle never next nine north number
often once only opposite other outside over pencil perhaps plain plate present quarter quickly quiet rather ribbon
round seldom several seven silver simple since sixth slate slow small soon south spoon square still string sudden
table ten third thread three through tin together toward twelve twice under until upon usual velvet very west whole
wide window within wool yellow yet zinc
"""
_FILLING = _TEXT.split()


@dataclass(frozen=True)
class FaithfulPrediction(Prediction):
    """A prediction, and what the student concluded from rationales that it was fed.

    Attributes:
        fed: whether the conclusion was the gold answer, by what was fed: "perturbed" (its own rationale with words
            replaced), and where the record has a rationale "oracle" and "perturbed_oracle".
    """

    fed: Mapping[str, bool] = field(default_factory=dict)


def perturbed(rationale: str, share: float, question: str, seed: int) -> str:
    """A rationale of which a share of the words, rounded down, is replaced by words of a fixed list.

    Args:
        rationale: the rationale.
        share: of its words, 0 to 1.
        question: the question; it and the seed choose places and words.
        seed: of the draw.
    """
    words = rationale.split()
    draw = random.Random(f"{seed}:perturbed:{question}")
    for place in draw.sample(range(len(words)), int(len(words) * share)):
        words[place] = draw.choice(_FILLING)
    return " ".join(words)


def fed_rationales(own: str, oracle: str | None, share: float, question: str, seed: int) -> dict[str, str]:
    """What a student is fed, by the names of `FaithfulPrediction.fed`.

    Args:
        own: the student's rationale.
        oracle: that of the record; None if it has none.
        share: of words that are replaced.
        question: the question.
        seed: of the replacing words.
    """
    fed = {"perturbed": perturbed(own, share, question, seed)}
    if oracle is not None:
        fed["oracle"] = " ".join(oracle.split())
        fed["perturbed_oracle"] = perturbed(oracle, share, question, seed)
    return fed


def faithfulness_metrics(predictions: Sequence[Prediction]) -> dict[str, float]:
    """`acc`; `NAME_acc` for all that was fed; `drop` and `oracle_drop`, what replacing words cost.

    Each is over the records that it is known of: `oracle_…` over those that have a rationale.
    """
    if not predictions:
        return {}
    values = {"acc": sum(each.correct for each in predictions) / len(predictions)}
    fed = [each.fed for each in predictions if isinstance(each, FaithfulPrediction)]
    for name in dict.fromkeys(name for each in fed for name in each):
        known = [each[name] for each in fed if name in each]
        values[f"{name}_acc"] = sum(known) / len(known)
    if "perturbed_acc" in values:
        values["drop"] = values["acc"] - values["perturbed_acc"]
    if "oracle_acc" in values:
        values["oracle_drop"] = values["oracle_acc"] - values["perturbed_oracle_acc"]
    return values
