"""`kdlightning generate`: what it asks, says and leaves, and what it refuses."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdlightning.blackbox.base import Outcome, Problem, Round, Rounds
from kdlightning.blackbox.cot.fine_tune_cot import FineTuneCoT
from kdlightning.generation.base import Answer, Completion, Origin, Request, TextGenerator
from kdlightning.generation.store import CompletionStore

HERE = __name__
STORE = Path("store.sqlite")
REPORT = Path("store.FineTuneCoT/report.jsonl")


class Sums(TextGenerator):
    """Answers sums, notes what it is asked, and fails, stops or breaks where it is told to."""

    identity = "sums"
    asked: list[str] = []
    failing = ""
    breaking: BaseException | None = None
    price_per_million_input = 10.0

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        answers = []
        for request in requests:
            if self.breaking is not None and len(self.asked) >= 5:
                raise self.breaking
            self.asked.append(request.text)
            if self.failing and self.failing in request.text:
                answers.append(Answer.refused(request, f"the server refuses {self.failing}"))
            else:
                assert request.origin is not None
                first = request.origin.about.split()[0]
                answers.append(Answer(request, {n: Completion(f" {first}") for n in request.numbers}))
        return answers


class Referee(TextGenerator):
    """Says yes."""

    identity = "referee"

    def generate(self, requests: Sequence[Request]) -> list[Answer]:
        return [Answer(request, {n: Completion("yes") for n in request.numbers}) for request in requests]


class Judged(FineTuneCoT):
    """Asks a referee about each answer that is kept."""

    def collect(self, problems: Sequence[Problem]) -> Rounds[list[Outcome]]:
        outcomes = yield from super().collect(problems)
        kept = [outcome for outcome in outcomes if outcome.kept]
        requests = [Request(f"Is {o.texts['rationale']} right?", origin=Origin("judge")) for o in kept]
        answers = yield Round("Judgements", requests, role="referee")
        assert [answer.texts for answer in answers] == [["yes"]] * len(kept)
        return outcomes


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("asked", []), ("failing", ""), ("breaking", None)):
        monkeypatch.setattr(Sums, name, value)


Config = Callable[..., Path]


@pytest.fixture
def text(tmp_path: Path) -> Config:
    """Writes a configuration without a model: twenty sums, every fifth with another answer than the teacher's."""

    def write(**changes: Any) -> Path:
        records = [{"question": f"{n} apples?", "answer": n + (n % 5 == 4)} for n in range(20)]
        (tmp_path / "sums.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
        options = {
            "path": "sums.jsonl",
            "method": {"class_path": "kdlightning.FineTuneCoT"},
            "generator": {"class_path": f"{HERE}.Sums"},
            "store": str(STORE),
            "vocab_size": 300,
            "test_split": 0,
            "val_split": 4,
            "batch_size": 4,
            **changes,
        }
        path = tmp_path / "text.yaml"
        path.write_text(yaml.safe_dump({"data": {"class_path": "kdlightning.BlackBoxData", "init_args": options}}))
        return path

    return write


def numbers(out: str) -> dict[str, list[int]]:
    """The lines of the table that hold numbers, by what they begin with."""
    found = re.findall(r"^( *\S.*?) {2,}((?:[\d,]+ *)+)$", out, re.MULTILINE)
    return {name: [int(cell.replace(",", "")) for cell in cells.split()] for name, cells in found}


def stored() -> list[tuple[str, int, str]]:
    with CompletionStore(STORE) as store:
        return list(store.rows())


def test_a_table_that_adds_up_and_a_second_run_that_asks_nothing(command, text: Config) -> None:
    outcome = command("generate", "-c", text(), "--result", "out/result.json")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in REPORT.read_text().splitlines()]
    counts = Counter(row["reason"] for row in rows)
    assert len(Sums.asked) == 40
    assert sum(counts.values()) == 20
    table = numbers(outcome.out)
    assert table["Rationales"] == [20, 0, 0]
    assert table["Answers"] == [20, 0, 0]
    assert table["all"] == [40, 0, 0]
    assert table["answers"] == [20]
    assert table["  kept"] == [counts["kept"]] == [16]
    assert table["  dropped: the teacher's answer is wrong"] == [4]
    assert f"report: {REPORT}" in outcome.out
    assert "spent:  40 requests" in outcome.out
    result = json.loads(Path("out/result.json").read_text())
    assert result["answers"] == counts
    assert result["rounds"]["Answers"] == {"asked": 20, "stored": 0, "failed": 0}
    assert (result["report"], result["store"], result["failed"]) == (str(REPORT), str(STORE), 0)
    Sums.asked.clear()
    again = command("generate", "-c", text())
    assert again.code == 0
    assert Sums.asked == []
    assert numbers(again.out)["all"] == [0, 40, 0]
    assert numbers(again.out)["  kept"] == [16]


def test_failed_requests_are_listed_and_asked_again(command, text: Config) -> None:
    Sums.failing = "13 apples"
    outcome = command("generate", "-c", text())
    assert outcome.code == 1
    assert outcome.err == ""
    assert numbers(outcome.out)["Rationales"] == [20, 0, 1]
    assert numbers(outcome.out)["  dropped: the teacher did not answer"] == [1]
    assert "sample 0: the server refuses 13 apples\n" in outcome.out
    assert '"Q: 13 apples?' in outcome.out
    assert command("generate", "-c", text(), "--allow_failed").code == 0
    Sums.failing = ""
    Sums.asked.clear()
    outcome = command("generate", "-c", text())
    assert outcome.code == 0
    assert len(Sums.asked) == 2
    assert all("13 apples" in prompt for prompt in Sums.asked)
    assert numbers(outcome.out)["all"] == [2, 38, 0]
    assert "did not answer" not in outcome.out


def test_a_dry_run_asks_and_writes_nothing(command, text: Config) -> None:
    path = text()
    before = sorted(Path().iterdir())
    outcome = command("generate", "-c", path, "--dry-run")
    assert outcome.code == 0
    assert outcome.out.startswith("Rationales: 20 requests for 20 answers (0 from the store): about ")
    assert "at most $0.00" in outcome.out
    assert Sums.asked == []
    assert sorted(Path().iterdir()) == before
    Sums.failing = "13 apples"
    command("generate", "-c", path)
    Sums.asked.clear()
    assert "Rationales: 1 request for 1 answer (19 from the store)" in command("generate", "-c", path, "--dry-run").out
    Sums.failing = ""
    command("generate", "-c", path)
    Sums.asked.clear()
    assert command("generate", "-c", path, "--dry-run").out == "nothing to ask: store.sqlite has all answers\n"
    assert Sums.asked == []


def test_a_dry_run_looks_behind_complete_rounds(command, text: Config) -> None:
    Sums.failing = "Therefore"
    assert command("generate", "-c", text()).code == 1
    outcome = command("generate", "-c", text(), "--dry-run")
    assert outcome.out.startswith("Answers: 20 requests for 20 answers (0 from the store)")


@pytest.mark.parametrize("limit", ["--max_requests=7", "--max_tokens=200", "--max_money=0.001"])
def test_a_budget_ends_the_run_and_the_same_command_goes_on(limit: str, command, text: Config) -> None:
    outcome = command("generate", "-c", text(), limit)
    assert outcome.code == 1
    name = limit.split("=")[0].removeprefix("--max_")
    assert f"no report yet: the budget of {name} ends before the next request" in outcome.out
    assert 0 < len(Sums.asked) < 20
    assert numbers(outcome.out)["Rationales"] == [len(Sums.asked), 0, 0]
    assert len(stored()) == len(Sums.asked)
    assert not REPORT.exists()
    assert command("generate", "-c", text()).code == 0
    assert len(Sums.asked) == len(set(Sums.asked)) == 40


def test_fit_goes_on_from_the_same_store(command, text: Config) -> None:
    Sums.failing = "13 apples"
    assert command("generate", "-c", text()).code == 1
    Sums.failing, report = "", REPORT.read_text()
    student = {
        "class_path": "kdlightning.transformers_model",
        "init_args": {
            "architecture": "AutoModelForCausalLM",
            "model_type": "llama",
            "config": {"vocab_size": 300, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
            | {"num_attention_heads": 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1},
        },
    }
    model = {"class_path": "kdlightning.BlackBoxDistillation", "init_args": {"student": student}}
    trainer = {"max_epochs": 1, "limit_val_batches": 1, "accelerator": "cpu"}
    Path("student.yaml").write_text(yaml.safe_dump({"model": model, "trainer": trainer}))
    Sums.asked.clear()
    outcome = command("fit", "-c", text(), "-c", "student.yaml", "--name", "student")
    assert outcome.code == 0, outcome.err
    assert len(Sums.asked) == 2, "the two requests about the apples that were refused"
    assert REPORT.read_text() != report
    Sums.asked.clear()
    outcome = command("generate", "-c", text(), "-c", "student.yaml")
    assert outcome.code == 0, outcome.err
    assert Sums.asked == []


def test_further_roles_are_asked_too(command, text: Config) -> None:
    path = text(method={"class_path": f"{HERE}.Judged"}, referee={"class_path": f"{HERE}.Referee"})
    outcome = command("generate", "-c", path)
    assert outcome.code == 0, outcome.err
    assert numbers(outcome.out)["Judgements"] == [16, 0, 0]
    assert numbers(outcome.out)["all"] == [56, 0, 0]
    outcome = command("generate", "-c", text(method={"class_path": f"{HERE}.Judged"}))
    assert outcome.code == 2
    assert "nobody plays the 'referee'" in outcome.sentence


def test_an_interrupted_run_says_that_it_goes_on(command, text: Config) -> None:
    Sums.breaking = KeyboardInterrupt()
    outcome = command("generate", "-c", text())
    assert outcome.code == 130
    assert outcome.sentence == "interrupted; every answer so far is stored, the same command goes on"
    assert len(stored()) == 5
    Sums.breaking = None
    assert command("generate", "-c", text()).code == 0
    assert len(Sums.asked) == len(set(Sums.asked)) == 40


# -- stores that cannot be used ----------------------------------------------------------------------------------------


def test_a_damaged_store_is_one_sentence_and_left_alone(command, text: Config) -> None:
    path = text()
    STORE.write_bytes(b"no database at all" * 100)
    outcome = command("generate", "-c", path)
    assert outcome.code == 2
    assert "store.sqlite is damaged or no SQLite file" in outcome.sentence
    assert STORE.read_bytes() == b"no database at all" * 100
    assert Sums.asked == []


def test_a_store_damaged_in_its_middle_is_one_sentence(command, text: Config) -> None:
    path = text()
    assert command("generate", "-c", path).code == 0
    with sqlite3.connect(STORE) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray(STORE.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    STORE.write_bytes(content)
    outcome = command("generate", "-c", path)
    assert outcome.code == 2
    assert "is damaged" in outcome.sentence


def test_a_locked_store_is_one_sentence(command, text: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    path = text()
    Sums.breaking = KeyboardInterrupt()
    command("generate", "-c", path)
    Sums.breaking, before = None, stored()
    monkeypatch.setitem(CompletionStore.__init__.__kwdefaults__, "timeout", 0.05)
    holder = sqlite3.connect(STORE, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    outcome = command("generate", "-c", path)
    assert outcome.code == 2
    assert "store.sqlite is locked by another process" in outcome.sentence
    holder.execute("ROLLBACK")
    holder.close()
    assert set(before) <= set(stored())
    assert command("generate", "-c", path).code == 0


def test_a_full_disk_is_one_sentence_and_loses_nothing(command, text: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    path, prepare = text(), CompletionStore._prepare

    def small(store: CompletionStore) -> None:
        prepare(store)
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")

    with monkeypatch.context() as patched:
        patched.setattr(CompletionStore, "_prepare", small)
        outcome = command("generate", "-c", path)
    assert outcome.code == 2
    assert outcome.sentence == (
        "store: no space left for store.sqlite; make room and start again, nothing stored is lost"
    )
    kept = stored()
    assert 0 < len(kept) == len(Sums.asked) - 1, "the last answer found no room"
    again = len(Sums.asked)
    assert command("generate", "-c", path).code == 0
    assert len(Sums.asked) - again == 40 - len(kept)
    assert set(kept) <= set(stored())


# -- wrong input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "generate needs a configuration"),
        (["-c", "nowhere"], "no configuration 'nowhere'"),
        (["-c", "text.yaml", "--max_reqests=3"], "has no option --max_reqests; did you mean --max_requests"),
        (["-c", "text.yaml", "--max_requests=0"], "--max_requests 0: give a number above 0"),
        (["-c", "text.yaml", "--max_money=nan"], "--max_money nan: give a number above 0"),
        (["-c", "text.yaml", "--max_tokens=many"], "--max_tokens: invalid int value: 'many'"),
        (["-c", "text.yaml", "--then=test"], "has no option --then"),
        (["-c", "text.yaml", "--data.nope=1"], "nope"),
        (["-c", "text.yaml", "--data.generator=Nobody"], "Nobody"),
        (["-c", "supervised/digits"], "needs data that ask a teacher (BlackBoxData), not Digits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_sentence(arguments: list[str], said: str, command, text: Config) -> None:
    text()
    outcome = command("generate", *arguments)
    assert outcome.code == 2
    assert said in outcome.sentence
    assert not STORE.exists()
    assert Sums.asked == []


def test_what_was_kept_is_counted_by_its_source(command, text: Config) -> None:
    method = {"class_path": "kdlightning.MTCoT", "init_args": {"kind": "number", "source": "cot"}}
    table = numbers(command("generate", "-c", text(method=method)).out)
    assert table["  kept"] == table["    chain of thought"] == [16]
