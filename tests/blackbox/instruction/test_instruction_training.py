"""From records to a trained student and its predictions, and a round of the loop by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from kdlightning.blackbox.base import KEPT
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.blackbox.instruction.hard_instructions import HardInstructions
from kdlightning.blackbox.instruction.instruction_following import EMPTY, InstructionFollowing
from kdlightning.blackbox.instruction.referee import NO_SCORES
from kdlightning.cli import main
from kdlightning.generation.transformers import TransformersGenerator
from kdlightning.models import transformers_model
from kdlightning.modules.black_box import BlackBoxDistillation

CONFIG = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def student() -> Any:
    torch.manual_seed(0)
    return transformers_model(architecture="AutoModelForCausalLM", model_type="llama", config=CONFIG)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def source(records: Any, place: Path, **options: Any) -> BlackBoxData:
    given = {
        "method": InstructionFollowing("input", teacher_tokens=16, inference_tokens=12, keep_cut=True),
        "question_field": "instruction",
        "gold_field": "output",
        "store": str(place / "text.sqlite"),
        "test_split": 4,
        "val_split": 4,
        "vocab_size": 300,
        "batch_size": 4,
        "progress": False,
    }
    return BlackBoxData(path=records, **{**given, **options})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_from_records_to_predictions(pool: Any, trainer: Any, tmp_path: Path) -> None:
    # A teacher that says the same every time is learned in a few steps.
    records = [{**record, "output": "Yes, of course."} for record in pool(28)]
    records[3]["output"] = "I'm sorry, but I can't help with that."
    data = source(records, tmp_path, recorded_fields={"response": "output"})
    module = BlackBoxDistillation(student(), optimizer=adam)
    run = trainer(max_epochs=12)
    run.fit(module, datamodule=data)
    (values,) = run.test(module, datamodule=data, verbose=False)
    report = lines(data.report)
    assert len(report) == 24
    assert sum(row["kept"] for row in report) == 23 + (3 not in {row["record"] for row in report})
    predictions = lines(tmp_path / "test_predictions.jsonl")
    assert [row["record"] for row in predictions] == [problem.number for problem in data.problems["test"]]
    assert values["test/rouge_l"] > 0.8
    assert {row["gold"] for row in predictions} <= {"Yes, of course.", records[3]["output"]}
    assert run.callback_metrics["test/rouge_l"] == values["test/rouge_l"]


def test_a_round_of_the_loop_with_models_that_know_nothing(pool: Any, trainer: Any, tmp_path: Path) -> None:
    """Untrained models play all roles: everything is dropped for its reason, and the next round learns the replay."""
    first = source(pool(24), tmp_path, recorded_fields={"response": "output"}, folder=str(tmp_path / "first"))
    first.prepare_data()
    first.setup("fit")
    players = [TransformersGenerator(student(), first.tokenizer, batch_size=32) for _ in range(3)]
    challenge = source(
        pool(24),
        tmp_path,
        method=HardInstructions(
            first.method, 1.0, 3, 3, student_tokens=8, referee_tokens=8, referee_retries=1, replay=12
        ),
        generator=players[0],
        referee=players[1],
        earlier_students={"student": players[2]},
        folder=str(tmp_path / "challenge"),
    )
    challenge.text.prepare()
    counts = json.loads((tmp_path / "challenge" / "pools.json").read_text())["outcomes"]
    assert sum(counts.values()) == 20
    # An untrained teacher may end before it has begun.
    assert set(counts) <= {KEPT, NO_SCORES, EMPTY}
    assert counts[KEPT] == 0
    assert counts[NO_SCORES] > 10
    second = source(
        str(tmp_path / "challenge" / "train_pool.jsonl"),
        tmp_path,
        test_path=str(tmp_path / "challenge" / "test_pool.jsonl"),
        generator=players[0],
        tokenizer=first.tokenizer,
        val_split=2,
        folder=str(tmp_path / "second"),
    )
    run = trainer(max_epochs=1)
    module = BlackBoxDistillation(student(), optimizer=adam)
    run.fit(module, datamodule=second)
    (values,) = run.test(module, datamodule=second, verbose=False)
    assert run.global_step == 3
    assert 0 <= values["test/rouge_l"] <= 1
    assert [p.question for p in second.problems["test"]] == [p.question for p in first.problems["test"]]


def test_generate_asks_a_configuration_for_its_round(pool: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    records = [{**r, "review": f"Assistant 1: {7 + n % 3}\nAssistant 2: 7"} for n, r in enumerate(pool(12))]
    records = [{**r, "new": f"Tell number {n} {n * n} things of kind {n + 40}"} for n, r in enumerate(records)]
    Path("pool.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    following = {"class_path": "kdlightning.InstructionFollowing", "init_args": {"input_field": "input"}}
    recorded = {
        "class_path": "kdlightning.RecordedGenerator",
        "init_args": {
            "records": "pool.jsonl",
            "prompt_field": "instruction",
            "answer_field": {"student": "input"},
        },
    }
    config = {
        "data": {
            "class_path": "kdlightning.BlackBoxData",
            "init_args": {
                "path": "pool.jsonl",
                "method": {
                    "class_path": "kdlightning.HardInstructions",
                    "init_args": {"following": following, "hard": 2, "easy": 2, "referee_retries": 0},
                },
                "question_field": "instruction",
                "gold_field": "output",
                "recorded_fields": {"response": "output", "review": "review", "new_hard": "new", "new_easy": "new"},
                "earlier_students": {"student": recorded},
                "store": "answers.sqlite",
                "folder": "round",
                "test_split": 2,
                "val_split": 0,
            },
        }
    }
    Path("round.yaml").write_text(yaml.safe_dump(config))
    assert main(["generate", "-c", "round.yaml"]) == 0
    assert "kept" in capsys.readouterr().out
    facts = json.loads(Path("round", "pools.json").read_text())
    # Whoever comes first is liked better in these records: no difference is left, and nothing is hard.
    assert facts["easy"] == facts["judged"] == 10
    assert facts["new"] == {"hard": 0, "easy": 2}
    assert len(lines(Path("round", "train_pool.jsonl"))) == 2
