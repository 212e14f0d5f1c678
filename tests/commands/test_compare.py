"""`compare` on made results: groups, deviations, paired differences."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest


@pytest.fixture
def three_seeds(made_result) -> None:
    for seed, (alone, distilled) in enumerate([(0.80, 0.83), (0.82, 0.84), (0.81, 0.86)]):
        made_result("alone", seed, alone, alone=True)
        made_result("kd", seed, distilled)


def test_means_deviations_and_paired_differences(command, three_seeds) -> None:
    table = json.loads(command("compare", "runs", "--json").out)
    assert table["metric"] == "test/acc"
    alone, kd = table["groups"]
    assert (alone["config"], kd["config"]) == ("alone", "kd")
    assert kd["mean"] == pytest.approx(statistics.fmean([0.83, 0.84, 0.86]))
    assert kd["deviation"] == pytest.approx(statistics.stdev([0.83, 0.84, 0.86]))
    differences = [0.03, 0.02, 0.05]
    assert kd["difference"]["mean"] == pytest.approx(statistics.fmean(differences))
    assert kd["difference"]["deviation"] == pytest.approx(statistics.stdev(differences))
    assert kd["difference"]["pairs"] == 3
    assert alone["difference"] is None


def test_markdown_shows_the_same_numbers(command, three_seeds) -> None:
    lines = command("compare", "runs").out.splitlines()
    assert lines[0].startswith("| config")
    assert "test/acc (last)" in lines[0]
    row = next(line for line in lines if line.startswith("| kd "))
    assert "0.8433 ± 0.0153" in row
    assert "+0.0333 ± 0.0153 (3 pairs)" in row
    assert any(line.startswith("| alone (labels alone)") for line in lines)


def test_only_shared_seeds_are_paired(command, made_result) -> None:
    made_result("alone", 0, 0.8, alone=True)
    made_result("alone", 7, 0.1, alone=True)
    made_result("kd", 0, 0.9)
    made_result("kd", 1, 0.2)
    kd = json.loads(command("compare", "runs", "--json").out)["groups"][1]
    assert kd["difference"] == {"mean": pytest.approx(0.1), "deviation": None, "pairs": 1}


def test_another_students_run_is_no_baseline(command, made_result) -> None:
    other = {"config": {"name": "alone", "hash": "h", "student_hash": "another", "files": []}}
    made_result("alone", 0, 0.8, alone=True, **other)
    made_result("kd", 0, 0.9)
    groups = json.loads(command("compare", "runs", "--json").out)["groups"]
    assert [group["difference"] for group in groups] == [None, None]
    named = json.loads(command("compare", "runs", "--json", "--baseline", "alone").out)["groups"]
    assert named[1]["difference"]["mean"] == pytest.approx(0.1)


def test_the_newest_run_of_a_seed_counts(command, made_result) -> None:
    made_result("kd", 0, 0.1, version=2)
    made_result("kd", 0, 0.9, version=10)
    group = json.loads(command("compare", "runs", "--json").out)["groups"][0]
    assert group["values"] == [{"seed": 0, "value": 0.9, "run": str(Path("runs/kd/seed0/version_10"))}]


def test_one_name_with_other_settings_is_another_group(command, made_result) -> None:
    made_result("kd", 0, 0.1)
    made_result("kd", 1, 0.9, config={"name": "kd", "hash": "otherhash", "student_hash": "s", "files": []})
    groups = json.loads(command("compare", "runs", "--json").out)["groups"]
    assert [group["config"] for group in groups] == ["kd (kd-has)", "kd (otherh)"]


def test_metric_and_checkpoint_are_chosen(command, made_result) -> None:
    made_result("kd", 0, 0.9)
    best = json.loads(command("compare", "runs", "--json", "--checkpoint", "best").out)
    assert best["groups"][0]["mean"] == pytest.approx(0.92)
    loss = json.loads(command("compare", "runs", "--json", "--metric", "val/loss").out)
    assert loss["groups"][0]["mean"] == 1.0
    assert "did you mean val/acc" in command("compare", "runs", "--metric", "val/accu").sentence
    assert "no such configuration among the runs" in command("compare", "runs", "--baseline", "x").sentence


def test_runs_without_a_test_split_are_compared_on_validation(command, made_result) -> None:
    metrics = {"val": {"last": {"acc": 0.7}, "best": {"acc": 0.8}}}
    made_result("kd", 0, 0.9, metrics=metrics)
    assert json.loads(command("compare", "runs", "--json").out)["metric"] == "val/acc"
    made_result("dkd", 0, 0.9)
    outcome = command("compare", "runs")
    assert "1 run(s) without test/acc are left out" in outcome.out


def test_notes_are_passed_on(command, made_result) -> None:
    made_result("kd", 0, 0.9, notes=["validation reads the test split: the best checkpoint is not reportable"])
    assert "Note: validation reads the test split" in command("compare", "runs").out


def test_reads_nothing_but_results(command, made_result, tmp_path: Path) -> None:
    run = made_result("kd", 0, 0.9)
    assert [path.name for path in run.iterdir()] == ["result.json"]
    assert command("compare", run).code == command("compare", run / "result.json").code == 0
    (run / "result.json").write_text("{")
    assert "is not valid JSON" in command("compare", run).sentence
    (run / "result.json").write_text("{}")
    assert "is no result of kdlightning" in command("compare", run).sentence


def test_chart_is_a_picture_and_an_event_file(command, three_seeds, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        assert command("compare", "runs", "--chart", "chart").code == 0
    events = EventAccumulator(str(tmp_path / "chart"))
    events.Reload()
    (image,) = events.Images("comparison")
    assert (tmp_path / "chart" / "chart.png").read_bytes() == image.encoded_image_string
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.width, image.height) == (1100, 440)


def test_what_the_test_measures_goes_before_a_monitor_that_it_does_not(command, made_result) -> None:
    """Black-box methods monitor the perplexity of their own training texts, and test the answers."""
    for name, perplexity, acc in (("alone", 14.0, 0.05), ("chains", 41.0, 0.2)):
        by = {"val": {"last": {"perplexity": perplexity}}, "test": {"last": {"teacher_acc": 0.9, "acc": acc}}}
        made_result(name, 0, acc, metrics=by, monitor={"name": "val/perplexity", "mode": "min"})
    table = json.loads(command("compare", "runs", "--json").out)
    assert table["metric"] == "test/acc"
    assert [group["mean"] for group in table["groups"]] == [0.05, 0.2]
