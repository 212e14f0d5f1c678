"""What is left of a pretrained encoder: half as many layers, fine-tuned alone or with what the whole one knows.

    python benchmarks/encoders.py --encoder FOLDER --data FOLDER     # all tasks and rows; finished runs are skipped
    python benchmarks/encoders.py … --tasks trec --methods alone tinybert
    python benchmarks/encoders.py … --sizes                          # export and time teacher and student of SST-2
    python benchmarks/encoders.py --table                            # only the tables, from the finished runs

`--encoder` is a folder (or hub name) of a pretrained BERT-like encoder of transformers; what is recorded is of the
sentence encoder all-MiniLM-L6-v2 (6 layers of width 384). `--data` holds `sst2/` (train, dev, test) and `trec/` (train,
test), JSONL files with `text` and `label`. The encoder is fine-tuned on the labels and teaches; every student has
every other layer of the encoder as it was before, and sees the training texts equally often. Methods of two stages
spend half of that on the first, which sees no label. One teacher, of seed 0, teaches all; nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import encoder_sizes
import yaml
from accuracy_workers import Job, newest_result, run_jobs
from paired import by_seed, difference_words, markdown, mean_words, paired_difference, record, score, write

RESULTS = Path(__file__).parent / "results" / "encoders"
SIZES = RESULTS / "sizes.json"
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"classes": 2, "epochs": 4, "sentences": 6920, "data": {"path": "sst2"}},
    "trec": {"classes": 6, "epochs": 6, "sentences": 4907, "data": {"path": "trec", "val_split": 0.1}},
}
LAYERS = [1, 3, 5]
"""The encoder's layers that a student begins with, from 0."""
BATCH = 32
LR = {"teacher": 5e-5, "student": 1e-4}
SEEDS = (0, 1, 2)
BASELINE = "alone"
CALLBACKS = "kdlightning.callbacks"


def layer_kd(loss: str, **options: Any) -> dict[str, Any]:
    """A term on layers."""
    return {
        "class_path": f"{CALLBACKS}.LayerKD",
        "init_args": {"loss": {"class_path": f"kdlightning.{loss}"}, **options},
    }


SOFT = {"class_path": "kdlightning.KD", "init_args": {"temperature": 2.0}}
METHODS: dict[str, list[dict[str, Any]]] = {
    "alone": [{}],
    "kd": [{"response": SOFT}],
    "patient_kd": [{"response": SOFT, "callbacks": [layer_kd("PatientKD", weight=100.0)]}],
    "minilm_v2": [
        {"response": None, "callbacks": [layer_kd("MiniLMRelation")], "weights": {"task": 0.0}},
        {},
    ],
    "tinybert": [
        {
            "response": None,
            "callbacks": [layer_kd("TinyBERTAttention"), layer_kd("TinyBERTHidden")],
            "weights": {"task": 0.0},
        },
        {
            "response": {"class_path": "kdlightning.KD", "init_args": {"temperature": 1.0}},
            "weights": {"task": 0.0, "kd": 1.0},
        },
    ],
}
"""The rows: what each stage learns from."""
WORDS = {"alone": "labels alone", "kd": "KD", "patient_kd": "patient KD", "minilm_v2": "MiniLM v2, then labels"}
WORDS |= {"tinybert": "TinyBERT's two task stages"}


class Work:
    """The runs of a task.

    Args:
        folder: the folder of all work.
        task: the task.
        encoder: the pretrained encoder.
        data: the folder of all data.
    """

    def __init__(self, folder: Path, task: str, encoder: str, data: Path) -> None:
        self.folder, self.task, self.encoder, self.data = folder, task, encoder, data
        self.facts = TASKS[task]

    def run(self, name: str, seed: int) -> Path:
        """The folder of a configuration's runs."""
        return self.folder / "runs" / self.task / name / f"seed{seed}"

    def last(self, name: str, seed: int = 0) -> str:
        """The last checkpoint of a configuration's newest finished run."""
        found = self.run(name, seed).glob("version_*/result.json")
        return str(max(found, key=lambda path: path.stat().st_mtime).parent / "checkpoints" / "last.ckpt")

    def job(self, name: str, seed: int, content: dict[str, Any]) -> Job:
        """A run, with its configuration written out."""
        path = self.folder / "configs" / self.task / f"{name}-{seed}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# run: {self.task}/{name}\n{yaml.safe_dump(content, sort_keys=False)}")
        words = ["fit", "-c", str(path), f"--seed_everything={seed}", "--then", "test"]
        return Job(f"{self.task} {name} seed {seed}", words, self.run(name, seed), place(self.task, name, seed))

    # -- configurations --------------------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The pretrained encoder with a new classifier."""
        options = {"name": self.encoder, "config": {"num_labels": self.facts["classes"]}}
        return {"class_path": "kdlightning.transformers_model", "init_args": options}

    def student(self) -> dict[str, Any]:
        """Every other layer of it."""
        options = {"teacher": self.whole(), "layers": LAYERS}
        return {"class_path": "kdlightning.student_from_teacher", "init_args": options}

    def content(self, student: dict[str, Any], who: str, epochs: int, **options: Any) -> dict[str, Any]:
        """A configuration on labels alone, or with a teacher if `options` say so."""
        steps = epochs * -(-self.facts["sentences"] // BATCH)
        schedule = {"max_lr": LR[who], "total_steps": steps, "pct_start": 0.1, "anneal_strategy": "linear"}
        callbacks = options.pop("callbacks", [])
        model = {
            "student": student,
            "task": {"class_path": "kdlightning.Classification", "init_args": {"num_classes": self.facts["classes"]}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": LR[who], "weight_decay": 0.01}},
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": schedule},
            "lr_interval": "step",
            **options,
        }
        data = {**self.facts["data"], "path": str(self.data / self.facts["data"]["path"])}
        data |= {"tokenizer": self.encoder, "max_length": 64, "batch_size": BATCH}
        trainer = {"max_epochs": epochs, "accelerator": "cpu", "precision": "bf16-mixed", "log_every_n_steps": 20}
        kind = "OfflineDistillation" if "teacher" in options else "DistillModule"
        return {
            "model": {"class_path": f"kdlightning.{kind}", "init_args": model},
            "data": {"class_path": "kdlightning.TextClassification", "init_args": data},
            "trainer": {**trainer, "callbacks": callbacks},
        }

    def stage(self, row: str, number: int, seed: int) -> dict[str, Any]:
        """A row's stage; a later one begins where the earlier one ended."""
        stages = METHODS[row]
        options = copy.deepcopy(stages[number])
        student = self.student()
        if number:
            before = {"model": student, "checkpoint": self.last(f"{row}_{number}", seed)}
            student = {"class_path": "kdlightning.started_from", "init_args": before}
        if options:
            teacher = {"model": self.whole(), "checkpoint": self.last("teacher")}
            options["teacher"] = {"class_path": "kdlightning.FrozenTeacher", "init_args": teacher}
        return self.content(student, "student", self.facts["epochs"] // len(stages), **options)


def place(task: str, name: str, seed: int) -> Path:
    """Where a finished run's record lies."""
    return RESULTS / f"{task}.{name}" / f"seed{seed}.json"


def stages(options: argparse.Namespace) -> Iterator[list[Job]]:
    """Lists of jobs that do not depend on each other, one list after the other."""
    works = [Work(options.work, task, options.encoder, options.data) for task in options.tasks]
    yield [
        work.job("teacher", 0, work.content(work.whole(), "teacher", 3))
        for work in works
        if not any(work.run("teacher", 0).glob("version_*/result.json"))
    ]
    for seed in SEEDS:
        for work in works:
            rows = [row for row in options.methods if not place(work.task, row, seed).is_file()]
            for number in range(2):
                # The first of two stages keeps no record of its own.
                yield [
                    work.job(
                        row if number == len(METHODS[row]) - 1 else f"{row}_1", seed, work.stage(row, number, seed)
                    )
                    for row in rows
                    if number < len(METHODS[row])
                ]


def keep(job: Job, used: dict[str, float]) -> None:
    """Writes a finished run's record."""
    if not job.record.parent.name.endswith("_1"):
        write(job.record, {**record(newest_result(job)), **used})


def rows_of(task: str) -> Iterator[list[str]]:
    """A row for each method; missing runs show in its number of seeds."""
    teacher = next(iter(_records(task, "teacher")), None)
    whole = score(teacher, "acc") if teacher else None
    found = {name: _records(task, name) for name in METHODS}
    alone = by_seed(found[BASELINE], "acc")
    if teacher and whole is not None:
        yield [task, "teacher", f"{whole:.4f}", "", "100 %", f"{teacher['student']['parameters']:,}", "1 of 1"]
    for name, results in found.items():
        values = by_seed(results, "acc")
        difference = None if name == BASELINE else paired_difference(values, alone)
        share = f"{100 * sum(values.values()) / len(values) / whole:.1f} %" if values and whole else ""
        size = f"{results[0]['student']['parameters']:,}" if results else ""
        told = [mean_words(list(values.values())), difference_words(difference), share, size]
        yield [task, WORDS[name], *told, f"{len(values)} of {len(SEEDS)}"]


def _records(task: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(place(task, name, 0).parent.glob("seed*.json"))]


def table() -> str:
    """All tasks."""
    head = ["task", "student of three layers", "test accuracy", "to labels alone (95 %)"]
    head += ["of the teacher's", "parameters", "seeds"]
    accuracies = markdown([head, *(row for task in TASKS for row in rows_of(task))])
    return accuracies + ("\n\n" + encoder_sizes.table(json.loads(SIZES.read_text())) if SIZES.is_file() else "")


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="a folder or hub name of a pretrained encoder")
    parser.add_argument("--data", type=Path, help="the folder with sst2/ and trec/")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="all by default")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="all by default")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/encoders"), help="where runs go")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--sizes", action="store_true", help="train nothing; export and time what was trained")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        if options.encoder is None or options.data is None:
            parser.error("give --encoder and --data, or --table")
        options.work, options.data = options.work.resolve(), options.data.resolve()
        if Path(options.encoder).is_dir():
            options.encoder = str(Path(options.encoder).resolve())
        if options.sizes:
            work = Work(options.work, "sst2", options.encoder, options.data)
            checkpoints = {"teacher": work.last("teacher"), "student": work.last("tinybert")}
            write(SIZES, encoder_sizes.measure(checkpoints, options.work / "exports"))
        for jobs in [] if options.sizes else stages(options):
            run_jobs(jobs, options.jobs, options, keep)
    print(text := table())
    return text


if __name__ == "__main__":
    main()
