"""Two processes with ddp on CPU: every mode with an adapter ends with equal ranks and an untouched teacher."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("distributed_script.py")
MODES = [
    "offline",
    "features_only",
    "online",
    "pskd",
    "dlb",
    "byot",
    "byot_alone",
    "hint_alone",
    "labels_alone",
    "uskd",
    "mean_teacher",
    "causal_lm",
    "on_policy",
    "memories",
    "dml_sequential",
    "kdcl_general",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair of processes runs all modes, since each start costs seconds of imports."""
    target = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PL_GLOBAL_SEED", None)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(target), ",".join(MODES)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return target


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("mode", [*MODES, "pskd_resumed", "dlb_resumed"])
def test_ranks_hold_equal_weights_and_the_teacher_is_untouched(mode: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[mode] for rank in ranks)
    assert first["digest"] == second["digest"]
    assert first["teacher"]
    assert second["teacher"]


@pytest.mark.parametrize("mode", MODES)
def test_metrics_agree_between_ranks(mode: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[mode]["metrics"] for rank in ranks)
    assert first
    assert first == second


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("distributed_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("mode", ["offline", "causal_lm"])
def test_metrics_are_those_of_one_process(mode: str, folder: Path, ranks: list[dict[str, Any]], trainer: Any) -> None:
    from kdlightning.data.loader import ResumableLoader

    script = load_script()
    module, _, data = script.setting(mode)
    # Rank 0's student as the validation saw it: the epoch's last weights, with the statistics of rank 0.
    module.student.load_state_dict(torch.load(folder / f"{mode}-2.pt", weights_only=True))
    score = trainer().validate(module, ResumableLoader(data, 4, False), verbose=False)[0]
    shared = ranks[0][mode]["metrics"]
    names = [name for name in score if "teacher" in name or mode == "causal_lm"]
    assert names
    for name in names:
        assert shared[name] == pytest.approx(score[name], rel=1e-4), name


def test_two_processes_take_the_step_of_one(tmp_path: Path, ranks: list[dict[str, Any]]) -> None:
    """Token terms: the same samples, split over ranks, give the same update."""
    report = load_script().run("causal_lm", tmp_path, 1)
    assert ranks[0]["causal_lm"]["first"] == pytest.approx(report["first"], abs=1e-5)


def test_two_processes_take_the_turns_of_one(tmp_path: Path, ranks: list[dict[str, Any]]) -> None:
    """Networks that are updated one after the other: each turn's gradient is the mean over the ranks."""
    report = load_script().run("dml_sequential", tmp_path, 1)
    assert ranks[0]["dml_sequential"]["first"] == pytest.approx(report["first"], abs=1e-5)


def test_weights_of_kdcl_come_from_the_validation_sets_of_all_ranks(ranks: list[dict[str, Any]], folder: Path) -> None:
    from kdlightning.data.loader import ResumableLoader
    from kdlightning.losses import kdcl_error_products, kdcl_general_weights

    script = load_script()
    module, _, data = script.setting("kdcl_general")
    module.load_state_dict(torch.load(folder / "kdcl_general-2/last.ckpt", weights_only=True)["state_dict"])
    module.eval()
    products = torch.zeros(2, 2)
    with torch.no_grad():
        for batch in ResumableLoader(data, 2, False):
            x, y = batch.data
            products += kdcl_error_products([network(x) for network in module.networks.values()], y)
    first, second = (rank["kdcl_general"]["shares"] for rank in ranks)
    assert first == second
    assert first == pytest.approx(kdcl_general_weights(products).tolist(), abs=1e-3)
    assert abs(first[0] - 0.5) > 1e-3


def test_ranks_toss_one_coin(ranks: list[dict[str, Any]]) -> None:
    tosses = [rank["on_policy"]["tosses"] for rank in ranks]
    assert tosses[0] == tosses[1]
    assert len(set(tosses[0])) == 2


@pytest.mark.parametrize(("mode", "epochs"), [("pskd", 2), ("pskd_resumed", 1)])
def test_each_rank_keeps_its_own_rows_until_the_epochs_end(mode: str, epochs: int, ranks: list[dict[str, Any]]) -> None:
    reports = [rank[mode] for rank in ranks]
    assert reports[0]["table"] == reports[1]["table"]
    assert reports[0]["seen"] == 22
    # 22 samples in steps of two for each rank: the rows written so far.
    for report in reports:
        assert report["rows"] == [2, 4, 6, 8, 10, 11] * epochs


def test_each_rank_looks_back_at_its_own_last_batch(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["dlb"] for rank in ranks)
    # 22 samples in steps of two for each rank, with the last batch from the second step on.
    assert first["shown"] == second["shown"] == [2, 4, 4, 4, 4, 3] + [3, 4, 4, 4, 4, 3]
    assert first["last"]["inputs"] != second["last"]["inputs"]
    assert first["last"]["logits"] != second["last"]["logits"]
    # A checkpoint holds the batch of rank 0: a resumed run begins anew on all of them.
    for report in (rank["dlb_resumed"] for rank in ranks):
        assert report["shown"] == [2, 4, 4, 4, 4, 3]


def test_memories_hold_the_samples_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["memories"] for rank in ranks)
    assert first["memories"] == second["memories"]
    assert len(first["memories"]) >= 6
    # 22 samples, each rank has shown half of them: all are in both banks and in the queue.
    assert first["unit_rows"] == second["unit_rows"] == [22, 22, 22]
