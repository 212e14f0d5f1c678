"""Every notebook runs from top to bottom in a fresh kernel, and is committed with the outputs of such a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebooks extra is not installed")
nbclient = pytest.importorskip("nbclient", reason="the notebooks extra is not installed")
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


def printed(notebook: Any) -> str:
    """What the code cells wrote."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(out.get("text", "") for cell in cells for out in cell.outputs if out.output_type == "stream")


def accuracies(text: str) -> dict[str, float]:
    """The lines `name 0.9397 ± 0.0117`."""
    return {name.strip(): float(mean) for name, mean in re.findall(r"^(.+?)\s+(0\.\d+) ± ", text, re.MULTILINE)}


def pictures(notebook: Any) -> int:
    """Number of figures shown."""
    return sum("image/png" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", []))


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TCP without encryption.*")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_what_it_was_committed_with(path: Path, tmp_path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    assert [c for c in committed.cells if c.cell_type == "code" and c.execution_count is None] == [], "run it first"
    again = nbformat.reads(nbformat.writes(committed), as_version=4)
    client = nbclient.NotebookClient(
        again, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    errors = [out for cell in again.cells for out in cell.get("outputs", []) if out.output_type == "error"]
    assert errors == []
    assert pictures(again) == pictures(committed) > 0
    before, now = accuracies(printed(committed)), accuracies(printed(again))
    assert before.keys() == now.keys()
    # Other processors round otherwise; a result that moves by more than this is another result.
    for name, value in before.items():
        assert now[name] == pytest.approx(value, abs=0.03), name
