"""The comparison with public code: it finds wrong values and gradients, times, memory, and wrong checkouts."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
PEER = """
import a_package_that_nobody_has

class Loss:
    def __call__(self, student, teacher):
        return SCALE * ((student - teacher) ** 2).mean()
"""


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    names = ("losses", "losses_tables", "peers.base", "peers.memory")
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in [
            name for name in sys.modules if name.split(".")[0] in ("losses", "losses_tables", "peers", "paired")
        ]:
            del sys.modules[name]


def case(scripts: dict[str, Any], **options: Any) -> Any:
    base = scripts["peers.base"]
    peer = base.Peer(
        "some/body", "c" * 40, "loss.py", lambda module: module.Loss(), stubs=("a_package_that_nobody_has",), **options
    )
    shapes = ((3, 4), (4, 8), (8, 16))
    mean_square = torch.nn.functional.mse_loss
    return base.Case("m", "m_loss", "Some 2020", "mean square", shapes, base.pair, mean_square, (peer,))


def checkout(tmp_path: Path, scale: str, commit: str = "c" * 40) -> argparse.Namespace:
    folder = tmp_path / "some+body"
    folder.mkdir()
    (folder / "loss.py").write_text(PEER.replace("SCALE", scale))
    (tmp_path / "COMMITS").write_text(f"some+body {commit}\n")
    return argparse.Namespace(peers=tmp_path, blocks=3, block=0.001)


def test_agreement_time_and_memory_of_a_peer(scripts: dict[str, Any], tmp_path: Path) -> None:
    options, made = checkout(tmp_path, "1.0"), case(scripts)
    row = scripts["losses"].measure(made, made.peers[0], options)
    assert row["value_difference"] < 1e-14
    assert row["gradient_difference"] < 1e-14
    assert [shape["shape"] for shape in row["shapes"]] == [[3, 4], [4, 8], [8, 16]]
    assert all(shape["time_ratio"] > 0 for shape in row["shapes"])
    assert all(shape["theirs_bytes"] >= 8 * 16 for shape in row["shapes"][2:])
    assert "a_package_that_nobody_has" not in sys.modules


def test_a_wrong_value_and_gradient_are_seen(scripts: dict[str, Any], tmp_path: Path) -> None:
    options, made = checkout(tmp_path, "1.01"), case(scripts)
    row = scripts["losses"].measure(made, made.peers[0], options)
    assert row["value_difference"] == pytest.approx(0.01 / 1.01)
    assert row["gradient_difference"] == pytest.approx(0.01 / 1.01)


def test_another_commit_is_refused(scripts: dict[str, Any], tmp_path: Path) -> None:
    options, made = checkout(tmp_path, "1.0", "d" * 40), case(scripts)
    with pytest.raises(SystemExit, match="is not at c{40}: see --clone"):
        scripts["losses"].measure(made, made.peers[0], options)


def test_peak_bytes_counts_what_is_alive_at_once(scripts: dict[str, Any]) -> None:
    x = torch.zeros(1000)
    peak = scripts["peers.memory"].peak_bytes
    assert peak(lambda: x + 1) == 4000
    assert peak(lambda: (x + 1) * 2) == 8000
    assert peak(lambda: [x + 1 for _ in range(5)]) == 20000
    assert peak(lambda: [float((x + 1)[0]) for _ in range(5)]) < 5000
    assert peak(lambda: x.view(10, 100)) == 0


def test_tables_name_who_agrees_and_whether_the_bound_holds(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def one(ms: float, ratio: float) -> dict[str, Any]:
        return {"shape": [2, 3], "ours_ms": 1.0, "theirs_ms": ms, "time_ratio": ratio, "memory_ratio": 1.0}

    peer = {"repository": "a/b", "commit": "c", "path": "p.py", "note": "", "agrees": True}
    peer |= {"value_difference": 0.0, "gradient_difference": 1e-15}
    slow, fast = {**peer, "shapes": [one(9.0, 0.1)]}, {**peer, "repository": "d/e", "shapes": [one(0.9, 1.1)]}
    wrong = {**peer, "repository": "f/g", "agrees": False, "note": "sums", "shapes": [one(0.1, 9.0)]}
    record = {"function": "m_loss", "paper": "P 2020", "form": "mean", "none": "", "shapes": [[2, 3]]}
    (tmp_path / "m.json").write_text(json.dumps([{**record, "peers": [slow, fast, wrong]}]))
    monkeypatch.setattr(scripts["losses_tables"], "RESULTS", tmp_path)
    speed = scripts["losses_tables"].speed_table().splitlines()[-1]
    assert speed == "| `m_loss` | d/e | 2×3 | 1 | 0.9 | 1.10 | 1.00 | no |"
    verification = scripts["losses_tables"].verification_table()
    assert "| `m_loss` | P 2020 | mean | [a/b](https://github.com/a/b/blob/c/p.py) | all |  |" in verification
    assert "[f/g](https://github.com/f/g/blob/c/p.py) | differs | sums |" in verification


def test_every_loss_of_the_library_has_its_peers_or_says_why_not(scripts: dict[str, Any]) -> None:
    from kdlightning.commands.shipped import read_header, shipped

    headers = [read_header(path) for name, path in shipped().items() if name.startswith("offline/")]
    terms = {header["class_path"].rpartition(".")[2] for header in headers if header["task"] == "classification"}
    compared = {case.method for cases in scripts["losses"].cases().values() for case in cases}
    from kdlightning.losses import term_name

    known = compared | set(scripts["losses"].WITHOUT_CASES)
    assert {term_name(type(term, (), {})) for term in terms} - known - NO_LOSS_OF_THEIR_OWN == set()
    for cases in scripts["losses"].cases().values():
        for made in cases:
            assert made.peers or made.none, made.function
            assert all(len(peer.commit) == 40 for peer in made.peers)
            assert all(peer.note for peer in made.peers if not peer.agrees), made.function


NO_LOSS_OF_THEIR_OWN = {"ensemble_teacher"}
"""Methods that combine other methods' losses."""
