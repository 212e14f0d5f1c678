"""Does learning to reason work? Students of a local teacher's reasoning, on made questions with exact answers.

    python benchmarks/symbolic.py                          # all tasks and methods; finished runs are skipped
    python benchmarks/symbolic.py --tasks last_letters --methods answer_only fine_tune_cot
    python benchmarks/symbolic.py --table                  # only the table, from the finished runs

For each task (last letters of four names, five coin flips, sums of four digits) a larger language model is trained on
questions of its own to reason step by step. It then writes the reasoning on the students' questions, as a black-box
teacher: what reaches the wrong answer is dropped. Students are of one size and begin from random weights; each is
trained for the same number of steps of the same batch size, on the same questions, and judged by its own inference
protocol on 500 questions that neither has seen. Socratic CoT trains two students, each for so many steps. One teacher,
of seed 0, teaches all; a student's seed settles weights and order of samples. Nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from accuracy_workers import Job, newest_result, run_jobs
from paired import by_seed, difference_words, markdown, mean_words, paired_difference, record, write

RESULTS = Path(__file__).parent / "results" / "symbolic"
KINDS = {"last_letters": "text", "coin_flips": "yes_no", "arithmetic": "number"}
VOCABULARY = {"characters": 100, "bpe": 600}
# Letters must be seen to be read; the words of a coin's story need no spelling, and are many.
TOKENIZERS = {"last_letters": "characters", "coin_flips": "bpe", "arithmetic": "characters"}
PARTS = {"test": 500, "student": 2000, "teacher": 10000}
STEPS = {"teacher": 2000, "student": 1200}
SEEDS = (0, 1, 2)
BASELINE = "answer_only"
METHODS: dict[str, dict[str, Any]] = {
    "answer_only": {"class": "AnswerOnly"},
    "fine_tune_cot": {"class": "FineTuneCoT", "options": {"answer_step": False, "samples": 1}},
    "fine_tune_cot_8": {"class": "FineTuneCoT", "options": {"answer_step": False, "samples": 8}},
    "mt_cot": {"class": "MTCoT", "options": {"source": "cot"}},
    "socratic_cot": {"class": "SocraticCoT", "student": "solver"},
}
"""The rows: one method each, with the options that differ from its defaults."""
WORDS = {"fine_tune_cot": "Fine-tune-CoT, D = 1", "fine_tune_cot_8": "Fine-tune-CoT, D = 8", "mt_cot": "MT-CoT"}
WORDS |= {"answer_only": "answers alone", "socratic_cot": "Socratic CoT"}
WRITES = ("reasoning", "socratic")
"""The teachers, by the field of the records that they learn to write."""
LENGTH = 320
"""Tokens of the longest example."""


def network(layers: int, width: int, vocabulary: int) -> dict[str, Any]:
    """A Llama of so many layers, from random weights."""
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
    }
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2 * LENGTH}
    config |= {"tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    options = {"architecture": "AutoModelForCausalLM", "model_type": "llama", "config": config}
    return {"class_path": "kdlightning.transformers_model", "init_args": options}


class Work:
    """Where everything of a task lies.

    Args:
        folder: the folder of all work.
        task: the task.
    """

    def __init__(self, folder: Path, task: str) -> None:
        self.root, self.task, self.folder = folder, task, folder / task
        self.template = self.folder / "question.jinja"
        vocabulary = VOCABULARY[TOKENIZERS[task]]
        self.networks = {"student": network(2, 128, vocabulary), "teacher": network(3, 160, vocabulary)}

    def write_records(self) -> None:
        """Questions of all parts, cut from one list of different ones."""
        from kdlightning.blackbox.symbolic import MAKERS

        if self.template.is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = iter(MAKERS[self.task](sum(PARTS.values()), 1))
        for part, count in PARTS.items():
            self.part(part).write_text("".join(json.dumps(next(rows)) + "\n" for _ in range(count)))
        self.template.write_text("{{ question }} ###")

    def part(self, name: str) -> Path:
        """The file of a part."""
        return self.folder / f"{name}.jsonl"

    def run(self, name: str, seed: int) -> Path:
        """The folder of a configuration's runs."""
        return self.root / "runs" / self.task / name / f"seed{seed}"

    def newest(self, name: str, seed: int = 0) -> Path:
        """The newest finished run of a configuration."""
        found = self.run(name, seed).glob("version_*/result.json")
        return max(found, key=lambda path: path.stat().st_mtime).parent

    def job(self, name: str, seed: int, content: dict[str, Any]) -> Job:
        """A run, with its configuration written out."""
        path = self.root / "configs" / self.task / f"{name}-{seed}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# run: {self.task}/{name}\n{yaml.safe_dump(content, sort_keys=False)}")
        words = ["fit", "-c", str(path), f"--seed_everything={seed}", "--trainer.accelerator=cpu", "--then", "test"]
        return Job(f"{self.task} {name} seed {seed}", words, self.run(name, seed), place(self.task, name, seed))

    # -- configurations --------------------------------------------------------------------------------------------

    def _content(self, who: str, lr: float, data: dict[str, Any]) -> dict[str, Any]:
        steps = STEPS[who]
        schedule = {"class_path": "torch.optim.lr_scheduler.OneCycleLR"}
        schedule["init_args"] = {"max_lr": lr, "total_steps": steps, "pct_start": 0.1}  # type: ignore[assignment]
        options: dict[str, Any] = {"student": copy.deepcopy(self.networks[who])}
        options |= {"inference_every": 0, "lr_scheduler": schedule, "lr_interval": "step"}
        options["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "weight_decay": 0.1}}
        shared = {"question_field": "question", "gold_field": "answer", "test_path": str(self.part("test"))}
        kind = TOKENIZERS[self.task]
        shared |= {"tokenizer_kind": kind, "vocab_size": VOCABULARY[kind], "max_length": LENGTH, "val_split": 100}
        shared |= {"batch_size": 16, "eval_batch_size": 125}
        trainer = {"max_steps": steps, "max_epochs": -1, "check_val_every_n_epoch": 50, "log_every_n_steps": 100}
        return {
            "model": {"class_path": "kdlightning.BlackBoxDistillation", "init_args": options},
            "data": {"class_path": "kdlightning.BlackBoxData", "init_args": {**shared, **data}},
            "trainer": trainer,
        }

    def teacher(self, writes: str) -> dict[str, Any]:
        """A teacher that learns to write a field of its records."""
        method = {
            "class_path": "kdlightning.AnswerOnly",
            "init_args": {"kind": "text", "inference_tokens": LENGTH - 80},
        }
        data = {"path": str(self.part("teacher")), "gold_field": writes, "method": method}
        data["store"] = str(self.folder / f"teacher_{writes}.sqlite")
        return self._content("teacher", 2e-3, data)

    def student(self, row: str, name: str | None = None) -> dict[str, Any]:
        """A row's configuration; of Socratic CoT the named student's."""
        chosen = METHODS[row]
        options = {"kind": KINDS[self.task], "inference_tokens": LENGTH - 80, **chosen.get("options", {})}
        data: dict[str, Any] = {"path": str(self.part("student")), "store": str(self.folder / f"{row}.sqlite")}
        if row == "socratic_cot":
            options |= {"chain_tokens": LENGTH - 80, "chain_prompt": str(self.template)}
            data["student"] = name or "solver"
        elif row != BASELINE:
            options |= {"rationale_tokens": LENGTH - 80, "rationale_prompt": str(self.template)}
        if row != BASELINE:
            data["generator"] = self._generator("socratic" if row == "socratic_cot" else "reasoning")
        data["method"] = {"class_path": f"kdlightning.{chosen['class']}", "init_args": options}
        return self._content("student", 3e-3, data)

    def _generator(self, writes: str) -> dict[str, Any]:
        run = self.newest(f"teacher_{writes}")
        model = copy.deepcopy(self.networks["teacher"])
        model["init_args"]["checkpoint"] = str(run / "checkpoints" / "last.ckpt")
        options = {"model": model, "tokenizer": str(run / "tokenizer"), "batch_size": 128}
        return {"class_path": "kdlightning.TransformersGenerator", "init_args": options}


def place(task: str, name: str, seed: int) -> Path:
    """Where a finished run's record lies."""
    return RESULTS / f"{task}.{name}" / f"seed{seed}.json"


def stages(options: argparse.Namespace) -> Iterator[list[Job]]:
    """Lists of jobs that do not depend on each other, one list after the other."""
    works = []
    for task in options.tasks:
        work = Work(options.work, task)
        work.write_records()
        works.append(work)
    # Their records are kept like the others', and a finished one is needed by those who ask it.
    missing = [
        work.job(f"teacher_{writes}", 0, work.teacher(writes))
        for work in works
        for writes in WRITES
        if _asked(writes, options.methods) and not any(work.run(f"teacher_{writes}", 0).glob("version_*/result.json"))
    ]
    yield missing
    for seed in SEEDS:
        for work in works:
            yield from _of_seed(work, seed, options.methods)


def _asked(writes: str, methods: Sequence[str]) -> bool:
    return any((writes == "socratic") == (row == "socratic_cot") for row in methods if row != BASELINE)


def _of_seed(work: Work, seed: int, methods: Sequence[str]) -> Iterator[list[Job]]:
    for row in methods:
        if place(work.task, row, seed).is_file():
            continue
        content = work.student(row)
        if row == "socratic_cot":
            yield [work.job("decomposer", seed, work.student(row, "decomposer"))]
            first = work.newest("decomposer", seed) / "checkpoints" / "last.ckpt"
            content["model"]["init_args"]["partners"] = {"decomposer": str(first)}
        yield [work.job(row, seed, content)]


def keep(job: Job, used: dict[str, float]) -> None:
    """Writes a finished run's record."""
    write(job.record, {**record(newest_result(job)), **used})


def rows_of(task: str) -> Iterator[list[str]]:
    """A row for each method; missing runs show in its number of seeds."""
    found = {name: by_seed([json.loads(path.read_text()) for path in _records(task, name)], "acc") for name in METHODS}
    for name, values in found.items():
        alone = None if name == BASELINE else paired_difference(values, found[BASELINE])
        single = paired_difference(values, found["fine_tune_cot"]) if name == "fine_tune_cot_8" else None
        yield [
            task.replace("_", " "),
            WORDS[name],
            mean_words(list(values.values())),
            difference_words(alone),
            difference_words(single),
            f"{len(values)} of {len(SEEDS)}",
        ]


def _records(task: str, name: str) -> list[Path]:
    return sorted(place(task, name, 0).parent.glob("seed*.json"))


def table() -> str:
    """All tasks."""
    head = ["task", "method", "test accuracy", "to answers alone (95 %)", "to D = 1 (95 %)", "seeds"]
    return markdown([head, *(row for task in KINDS for row in rows_of(task))])


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(KINDS), default=list(KINDS), help="all by default")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="all by default")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/symbolic"), help="where runs go")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        options.work = options.work.resolve()
        for jobs in stages(options):
            run_jobs(jobs, options.jobs, options, keep)
    print(text := table())
    return text


if __name__ == "__main__":
    main()
