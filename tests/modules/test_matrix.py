"""The full products: every method with every knowledge callback, broken off and resumed, in both precisions, with and
without accumulation, and on two processes. Run with `pytest -m matrix`."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdlightning import ConfigurationError

SCRIPT = Path(__file__).with_name("products.py")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("products", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PRODUCTS = _load()
PAIRS = PRODUCTS.pairs_of()
pytestmark = pytest.mark.matrix


@pytest.fixture
def train(fit_until: Any) -> Any:
    """Trains a product for two epochs of three batches, or until step `stop`; resumes if there is a checkpoint."""

    def run(method: str, callback: str, name: str, stop: int | None = None, **options: Any) -> Any:
        module, callbacks, data = PRODUCTS.setting(method, callback)
        return fit_until(name, lambda: module, *PRODUCTS.loaders(data, 8), stop=stop, callbacks=callbacks, **options)

    return run


def equal(ours: Any, theirs: Any) -> bool:
    """Whether two entries of a state are equal bit for bit: tensors, or what a module keeps besides."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(value, theirs[name]) for name, value in ours.items())
    return torch.equal(ours, theirs)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("method", "callback"), PAIRS)
def test_resumed_run_ends_where_the_undisturbed_one_ends(
    method: str, callback: str, precision: str, accumulate: int, train: Any
) -> None:
    options = {"precision": precision, "accumulate_grad_batches": accumulate}
    if method == "dml_sequential" and accumulate > 1:
        with pytest.raises(ConfigurationError, match="accumulate_grad_batches"):
            train(method, callback, "refused", **options)
        return
    whole = train(method, callback, "whole", **options)
    assert all(math.isfinite(float(v)) for k, v in whole.trainer.callback_metrics.items() if k.startswith("train/"))
    for stop in (1, 3) if accumulate == 1 else (1, 2):
        train(method, callback, "cut", stop, **options)
    resumed = train(method, callback, "cut", **options)
    assert resumed.global_step == whole.global_step == 6 // accumulate + (accumulate == 2)
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not equal(ours[name], theirs[name])] == []
    terms = {name for name in whole.trainer.callback_metrics if name.startswith("train/loss_")}
    # A callback between exits and the student has no term of the student's own.
    assert callback == "none" or {f"train/loss_{callback}", f"train/loss_{callback}_exit1"} & terms


@pytest.mark.parametrize("callback", [name for name in PRODUCTS.CALLBACKS if name != "none"])
@pytest.mark.parametrize("method", PRODUCTS.WITHOUT_TAPS)
def test_callback_without_a_network_to_read_is_refused(method: str, callback: str, train: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"has no teacher|provides .* only"):
        train(method, callback, "refused")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One pair of processes trains all products, since each start costs seconds of imports."""
    target = tmp_path_factory.mktemp("products")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PL_GLOBAL_SEED", None)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(target)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((target / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("method", "callback"), PAIRS)
def test_two_processes_hold_equal_weights(method: str, callback: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[f"{method} {callback}"] for rank in ranks)
    assert first["parameters"] == second["parameters"]
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]
    assert first["untouched"]
    assert second["untouched"]
