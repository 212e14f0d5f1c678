"""Label-free distillation: what are the student's features worth to a classifier that is fitted on them afterwards?

    python benchmarks/label_free.py --data FOLDER            # it holds cifar10_15k_3k.npz; finished runs are skipped
    python benchmarks/label_free.py --table

Each seed is `kdlightning fit -c offline/feature/label_free`: the student sees images and a vision transformer's
features, and no label. Then both usual probes judge frozen features of the last checkpoint: the vote of the nearest
neighbours and a linear classifier, fitted on the training images without augmentation, scored on test. Beside it stand
the same network as it was drawn, and the teacher. Nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accuracy_workers import Job, command, run_jobs
from paired import difference_words, markdown, mean_words, paired_difference, write

NAME, TEACHER = "offline/feature/label_free", "supervised/cifar10_vit_teacher"
FILE = "cifar10_15k_3k.npz"
RESULTS = Path(__file__).parent / "results" / "label_free"
PROBES = {"knn": "nearest neighbours", "linear": "linear classifier"}


def probes(model: Any, file: Path) -> dict[str, float]:
    """Test accuracy of both probes on a network's embeddings."""
    from torch.utils.data import DataLoader

    from kdlightning import CIFAR10, knn_probe, linear_probe

    sources = CIFAR10(path=str(file)).sources
    train, test = (DataLoader(data, 256) for data in (sources.plain, sources.test))
    return {"knn": knn_probe(model, train, test), "linear": linear_probe(model, train, test)}


def last_checkpoint(job: Job) -> Path:
    """Of the job's newest run."""
    return max(job.runs.glob("version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)


def judge(job: Job, seed: int, file: Path) -> None:
    """Writes the record of a seed: the network as drawn, and as trained."""
    import torch

    from kdlightning import load_student, timm_model

    torch.manual_seed(seed)
    drawn = timm_model("test_resnet", num_classes=0)
    write(job.record, {"drawn": probes(drawn, file), "distilled": probes(load_student(last_checkpoint(job)), file)})


def judge_teacher(job: Job, file: Path) -> None:
    """Writes the record of the teacher without its classifier."""
    from kdlightning import load_student

    teacher: Any = load_student(last_checkpoint(job))
    teacher.reset_classifier(0)
    write(job.record, probes(teacher, file))


def table() -> str:
    """Mean and deviation over the seeds, and the difference to the network as it was drawn."""
    records = {int(path.stem[4:]): json.loads(path.read_text()) for path in RESULTS.glob("seed*.json")}
    rows = [["test accuracy by", "as drawn", "distilled without labels", "difference (95 %)", "teacher", "seeds"]]
    teacher = RESULTS / "teacher.json"
    top = json.loads(teacher.read_text()) if teacher.is_file() else {}
    for probe, words in PROBES.items():
        drawn, ours = ({seed: each[kind][probe] for seed, each in records.items()} for kind in ("drawn", "distilled"))
        means = [mean_words(list(values.values())) for values in (drawn, ours)]
        known = f"{top[probe]:.4f}" if top else ""
        rows.append([words, *means, difference_words(paired_difference(ours, drawn)), known, str(len(records))])
    return markdown(rows)


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = os.environ.get("KDLIGHTNING_DATA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=folder and Path(folder), help=f"folder of {FILE}")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/accuracy"), help="where runs go")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        if options.data is None:
            parser.error("--data FOLDER (or KDLIGHTNING_DATA) must name the data")
        train(options)
    print(text := table())
    return text


def train(options: argparse.Namespace) -> None:
    """The teacher unless it is there, then the seeds that are missing."""
    from kdlightning.commands.shipped import shipped

    options.work, options.data = options.work.resolve(), options.data.resolve()
    file = options.data / FILE

    def job(name: str, seed: int, record: str) -> Job:
        words = [*command(shipped()[name], seed, options, FILE), "--then", "test"]
        return Job(f"{name} seed {seed}", words, options.work / "runs" / name / f"seed{seed}", RESULTS / record)

    teacher, students = (
        job(TEACHER, 0, "teacher.json"),
        {seed: job(NAME, seed, f"seed{seed}.json") for seed in options.seeds},
    )
    for one in (teacher, *students.values()):  # all of them before anything is computed here: runs are forked off
        if not any(one.runs.glob("version_*/checkpoints/last.ckpt")):
            run_jobs([one], 1, options, lambda done, used: None)
    if not teacher.record.is_file():
        judge_teacher(teacher, file)
    for seed, one in students.items():
        if not one.record.is_file():
            judge(one, seed, file)


if __name__ == "__main__":
    main()
