"""A report that is none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlightning.blackbox.base import Outcome, Problem
from kdlightning.blackbox.report import read_report, write_report
from kdlightning.errors import ConfigurationError


@pytest.mark.parametrize("content", ["no JSON", "3", "[1]", "null", '{"record": 1}'])
def test_what_is_no_report_is_one_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="is no report; remove its folder, nothing stored is lost"):
        read_report(path)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    outcomes = [Outcome(0, 0, "kept", {"answer": "line\u2028separator\n"}, "1"), Outcome(0, 1, "wrong", detail="why")]
    path = tmp_path / "report.jsonl"
    write_report(path, outcomes, {0: Problem(0, "q", None)}, {0: "train"})
    assert read_report(path) == outcomes
