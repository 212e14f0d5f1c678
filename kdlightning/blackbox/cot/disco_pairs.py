"""What DISCO writes: its counterfactuals, and the classifier's training, validation and test data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlightning.blackbox.base import Outcome, Problem

if TYPE_CHECKING:
    from kdlightning.blackbox.cot.disco import DISCO

FOLDERS = {"kept": "pairs", "all": "unfiltered_pairs", "shuffled": "shuffled_pairs"}
"""Where the data of a classifier are, by what it is trained on."""
Row = dict[str, Any]
Pair = tuple[Problem, Outcome]


def write_pairs(method: DISCO, folder: Path, problems: Sequence[Problem], outcomes: Sequence[Outcome]) -> list[Path]:
    """Writes everything that a classifier is trained on.

    `counterfactuals.jsonl` has the kept counterfactuals in the form of the paper's data: guid, both sentences, label,
    new_label, span_prev, gen_out, the new sentence (`new_premise`), score.

    `pairs/train.jsonl`, `dev.jsonl` and `test.jsonl` have a row for a pair's original and one for each of its
    counterfactuals: both sentences, label, kind ("original" or "counterfactual"), and `pair`, which original and
    counterfactuals share. In training an original stands once, before its counterfactuals; in the other two each pair
    has two rows of its own. All pairs of a premise are in the same of the three files; which one depends on the premise
    alone. Two more folders differ in training. `unfiltered_pairs/` has every answer of the teacher, without any filter.
    `shuffled_pairs/` has what can be made without a teacher: in the place of a kept counterfactual its original premise
    with the hypothesis of another record, under the same label, which is right for unrelated ("neutral") pairs alone.

    Returns:
        The files.
    """
    from kdlightning.blackbox.report import write_whole

    by_number = {problem.number: problem for problem in problems}
    written = [(by_number[outcome.record], outcome) for outcome in outcomes if "sentence" in outcome.texts]
    kept = [(problem, outcome) for problem, outcome in written if outcome.kept]
    files = {folder / "counterfactuals.jsonl": [_public(method, *each) for each in kept]}
    train = {
        "kept": list(_training(method, _of_part(method, kept, "train"))),
        "all": list(_training(method, _of_part(method, written, "train"))),
    }
    train["shuffled"] = list(_shuffled(train["kept"]))
    for what, name in FOLDERS.items():
        files[folder / name / "train.jsonl"] = train[what]
        for part in ("dev", "test"):
            files[folder / name / f"{part}.jsonl"] = list(_apart(method, _of_part(method, kept, part)))
    for path, lines in files.items():
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return list(files)


def _public(method: DISCO, problem: Problem, outcome: Outcome) -> Row:
    premise, hypothesis = method.sentences(problem)
    row: Row = {
        "guid": problem.question,
        "premise": premise,
        "hypothesis": hypothesis,
        "label": problem.gold,
        "new_label": outcome.texts["label"],
        "span_prev": outcome.texts["span"],
        "gen_out": outcome.texts["perturbation"],
        f"new_{method.perturbed}": outcome.texts["sentence"],
    }
    return row | ({"score": float(outcome.texts["score"])} if "score" in outcome.texts else {})


def _part(method: DISCO, problem: Problem) -> str:
    """Where a pair belongs: by its premise, which may occur with several hypotheses."""
    digest = hashlib.sha256(method.sentences(problem)[0].encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    return "test" if share < method.held_out else "dev" if share < 2 * method.held_out else "train"


def _of_part(method: DISCO, chosen: Sequence[Pair], part: str) -> list[Pair]:
    return [(problem, outcome) for problem, outcome in chosen if _part(method, problem) == part]


def _training(method: DISCO, chosen: Sequence[Pair]) -> Iterator[Row]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for problem, outcome in chosen:
        original = (*method.sentences(problem), str(problem.gold))
        group = groups.setdefault(original, [_row(method, len(groups), original, "original")])
        group.append(_counterfactual(method, group[0]["pair"], problem, outcome))
    for group in groups.values():
        yield from group


def _apart(method: DISCO, chosen: Sequence[Pair]) -> Iterator[Row]:
    for pair, (problem, outcome) in enumerate(chosen):
        yield _row(method, pair, (*method.sentences(problem), str(problem.gold)), "original")
        yield _counterfactual(method, pair, problem, outcome)


def _shuffled(rows: Sequence[Row]) -> Iterator[Row]:
    """The same originals; each counterfactual is its original with the hypothesis of one from half the file away."""
    originals = {row["pair"]: row for row in rows if row["kind"] == "original"}
    for row in rows:
        own, far = originals[row["pair"]], originals[(row["pair"] + len(originals) // 2) % len(originals)]
        if row["kind"] == "original":
            yield row
        elif far["premise"] != own["premise"]:
            yield row | {"premise": own["premise"], "hypothesis": far["hypothesis"]}


def _counterfactual(method: DISCO, pair: int, problem: Problem, outcome: Outcome) -> Row:
    texts: Mapping[str, str] = outcome.texts
    return _row(method, pair, (*method.changed(problem, texts["sentence"]), texts["label"]), "counterfactual")


def _row(method: DISCO, pair: int, original: tuple[str, ...], kind: str) -> Row:
    premise, hypothesis, label = original
    return {"pair": pair, "kind": kind, "premise": premise, "hypothesis": hypothesis, "label": label}
