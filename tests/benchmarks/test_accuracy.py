"""The accuracy benchmarks: every shipped method has its row, differences are paired, finished runs are kept."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from scipy import stats

from kdlightning.commands.shipped import read_header, shipped

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The scripts as their own folder sees them."""
    names = ("paired", "accuracy", "accuracy_groups", "accuracy_tables", "accuracy_workers", "weights", "quickstart")
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def result(seed: int, acc: float, name: str = "a/b") -> dict[str, Any]:
    return {
        "seed": seed,
        "module": "DistillModule",
        "config": {"name": name, "hash": "0" * 12, "student_hash": "1", "files": ["/somewhere/else.yaml"]},
        "monitor": {"name": "val/acc", "mode": "max"},
        "metrics": {"test": {"last": {"acc": acc, "agreement": None}, "best": {"acc": 0.0}}},
        "history": {"val/acc": [[0.0, 1.0, 0.5]]},
        "seconds": 3.0,
        "epochs": 2,
        "steps": 4,
        "student": {"class": "Net", "parameters": 10, "latency_ms": 0.1, "bytes": 40},
        "versions": {"torch": "2"},
        "notes": [],
    }


def test_records_of_a_group_are_of_one_budget(scripts: dict[str, Any]) -> None:
    for group in scripts["accuracy_groups"].groups().values():
        names = (group.baseline, *group.methods)
        found = [record for name in names for record in scripts["accuracy_tables"].records(group, name)]
        assert len({record["epochs"] for record in found}) <= 1, group.name


def test_difference_is_paired_by_seed_and_its_interval_is_students(scripts: dict[str, Any]) -> None:
    ours, theirs = {0: 0.9, 1: 0.8, 2: 0.95, 7: 0.1}, {0: 0.85, 1: 0.79, 2: 0.88, 9: 0.99}
    found = scripts["paired"].paired_difference(ours, theirs)
    test = stats.ttest_rel([0.9, 0.8, 0.95], [0.85, 0.79, 0.88])
    interval = test.confidence_interval(0.95)
    assert found.pairs == 3
    assert found.mean == pytest.approx((0.05 + 0.01 + 0.07) / 3)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean / found.standard_error == pytest.approx(test.statistic)
    assert scripts["paired"].paired_difference({0: 1.0}, {0: 0.5}) is None


def test_a_record_keeps_numbers_and_no_places(scripts: dict[str, Any]) -> None:
    kept = scripts["paired"].record(result(3, 0.9))
    assert "somewhere" not in json.dumps(kept)
    assert "history" not in kept
    assert scripts["paired"].score(kept, "acc") == 0.9
    assert scripts["paired"].by_seed([kept], "acc") == {3: 0.9}


def test_every_shipped_method_is_measured_beside_a_baseline(scripts: dict[str, Any]) -> None:
    headers = {name: read_header(path) for name, path in shipped().items()}
    found = scripts["accuracy_groups"].groups()
    own = [group for name, group in found.items() if name != "cifar10_small"]
    # Without labels there is no run on labels alone: those below learn from a teacher's text about open questions, and
    # from families of tasks of which no test task has labels to learn from.
    alone = {"blackbox/instruction/instruction_following", "blackbox/icl/meta_ict"}
    alone |= {"offline/feature/sentence_embedding"}  # benchmarks/sentence_embeddings.py judges it by other labels
    labelled = {name for name, header in headers.items() if "kind" not in header and header["task"] != "unlabelled"}
    assert {method for group in own for method in group.methods} == labelled - alone
    for group in own:
        assert headers[group.baseline]["kind"] == "baseline"
        # A method's other student is trained first, too.
        assert all(headers[name].get("kind") == "baseline" or name in group.methods for name in group.first)
        assert group.seeds >= (5 if group.name == "mnist1d" else 3)
    assert found["mnist1d"].first == ("supervised/mnist1d_teacher",) + found["mnist1d"].first[1:]
    assert "supervised/shakespeare" in found["shakespeare_continued"].first


def test_the_pair_of_cifar_networks_takes_shipped_methods_with_other_weights(
    scripts: dict[str, Any], tmp_path: Path
) -> None:
    group = scripts["accuracy_groups"].groups()["cifar10_small"]
    assert len(group.methods) == 10
    path = group.config("offline/feature/fit_net", tmp_path)
    content = yaml.safe_load(path.read_text())
    (callback,) = content["trainer"]["callbacks"]
    assert callback["init_args"]["weight"] == 100.0
    assert callback["init_args"]["loss"] == "FitNet"
    assert content["model"]["init_args"]["student"]["init_args"]["name"] == "resnet8"
    assert content["model"]["init_args"]["response"] is None
    assert read_header(path)["run"] == "cifar10_small/fit_net"
    alone = yaml.safe_load(group.config("alone", tmp_path).read_text())
    assert alone["trainer"]["max_epochs"] == content["trainer"]["max_epochs"]
    assert "callbacks" not in alone["trainer"]


def test_table_shows_differences_costs_and_what_is_missing(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables, group = scripts["accuracy_tables"], scripts["accuracy_groups"].groups()["mnist1d"]
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "accuracy")
    monkeypatch.setattr(tables, "TIMES", tmp_path / "times")
    write, record = scripts["paired"].write, scripts["paired"].record
    for seed in range(5):
        for config, acc in ((group.baseline, 0.9), ("offline/response/kd", 0.92 + 0.001 * seed)):
            write(tables.place(group, config, seed), record(result(seed, acc, config)))
    write(tmp_path / "times" / "mnist1d.supervised.mnist1d.json", {"epoch_seconds": 0.1, "peak_memory_mb": 20.0})
    write(tmp_path / "times" / "mnist1d.offline.response.kd.json", {"epoch_seconds": 0.15, "peak_memory_mb": 31.0})
    rows = {row.split("`")[1]: row for row in tables.tables([group]).splitlines() if row.startswith("| `")}
    assert "0.9220 ± 0.0016 | +0.0220 (+0.0200 to +0.0240)" in rows["offline/response/kd"]
    assert "0.15 s, 1.50× | 31 | 5 of 5" in rows["offline/response/kd"]
    assert "0 of 5" in rows["offline/response/dkd"]
    tables.draw([group], tmp_path)
    assert (tmp_path / "accuracy_acc.png").stat().st_size > 1000


def test_finished_runs_are_skipped_and_others_are_whole_commands(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = scripts["accuracy_groups"].groups()["mnist1d"]
    monkeypatch.setattr(scripts["accuracy_tables"], "RESULTS", tmp_path / "accuracy")
    options = argparse.Namespace(work=tmp_path, data=tmp_path, threads=1, methods=None)
    before = scripts["accuracy"].jobs_of(group, options)
    scripts["paired"].write(scripts["accuracy_tables"].place(group, "online/dml", 1), {})
    first, rest = scripts["accuracy"].jobs_of(group, options)
    gone = {job.title for job in before[1]} - {job.title for job in rest}
    assert gone == {"mnist1d online/dml seed 1"}
    assert first[0].title == "mnist1d supervised/mnist1d_teacher seed 0"
    job = next(job for job in rest if job.title == "mnist1d online/dml seed 2")
    assert "--seed_everything=2" in job.words
    assert f"--data.path={tmp_path}/mnist1d.npz" in job.words


def test_a_job_leaves_what_it_used_and_a_failed_one_names_its_log(scripts: dict[str, Any], tmp_path: Path) -> None:
    # In a process of its own: the runner forks, which a process with threads must not do.
    script = tmp_path / "run.py"
    script.write_text(JOBS.format(folder=str(FOLDER), work=str(tmp_path)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert "bad failed; its log is" in done.stderr
    used = json.loads((tmp_path / "used.json").read_text())
    assert used["peak_memory_mb"] > 0
    assert used["epoch_seconds"] > 0
    assert "no configuration" in (tmp_path / "logs" / "bad.log").read_text()


JOBS = """
import argparse, json, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from accuracy_workers import Job, run_jobs
work = Path({work!r})
words = ["fit", "-c", "supervised/mnist1d", "--trainer.max_epochs=3", "--trainer.accelerator=cpu"]
words += ["--data.train_limit=100", "--trainer.limit_val_batches=0"]
jobs = [Job("good", words, work, work), Job("bad", ["fit", "-c", "nothing_of_this_name"], work, work)]
options = argparse.Namespace(work=work, threads=1)
run_jobs(jobs, 1, options, lambda job, used: (work / "used.json").write_text(json.dumps(used)))
"""


def test_a_weight_is_tried_in_the_shipped_configuration(
    scripts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts["weights"], "RESULTS", tmp_path / "records")  # finished ones are not tried again
    weights, group = scripts["weights"], scripts["accuracy_groups"].groups()["mnist1d"]
    options = argparse.Namespace(work=tmp_path, data=None, factors=[0.1, 10.0])
    shipped_weight = weights.shipped_weight("offline/relation/rkd")
    jobs = weights.jobs_of(group, "offline/relation/rkd", options)
    tried = {
        yaml.safe_load(Path(job.words[2]).read_text())["trainer"]["callbacks"][0]["init_args"]["weight"] for job in jobs
    }
    assert sorted(tried) == pytest.approx([0.1 * shipped_weight, 10 * shipped_weight])
    assert len(jobs) == 6
    assert weights.jobs_of(group, "offline/response/kd", options) == []


def test_quickstart_table_pairs_the_students(scripts: dict[str, Any]) -> None:
    records = [
        {"stage": stage, **scripts["paired"].record(result(seed, acc + 0.01 * seed))}
        for seed in range(3)
        for stage, acc in (("teacher", 0.95), ("alone", 0.8), ("distilled", 0.85))
    ]
    text = scripts["quickstart"].table(records)
    assert "| student, distilled | 0.8600 ± 0.0100 | +0.0500 (+0.0500 to +0.0500) | 10 |" in text
