"""Prompts are jinja files that a user can replace."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import Environment, meta

from kdlightning.blackbox.templates import SHIPPED, render
from kdlightning.errors import ConfigurationError


def test_shipped_prompts_are_the_papers() -> None:
    first = render("fine_tune_cot/rationale.jinja", question="What is 1 + 1?")
    assert first == "Q: What is 1 + 1?\nA: Let's think step by step."
    second = render("fine_tune_cot/answer.jinja", prompt=first, rationale="One and one.")
    assert second == f"{first} One and one.\nTherefore, the answer is"


def test_every_shipped_template_is_valid() -> None:
    for path in SHIPPED.rglob("*.jinja"):
        name = str(path.relative_to(SHIPPED))
        if not meta.find_undeclared_variables(Environment().parse(path.read_text())):
            assert render(name), f"{name} says nothing"
            continue
        with pytest.raises(ConfigurationError, match="it may use nothing_at_all"):
            render(name, nothing_at_all="")


def test_a_file_of_ones_own_replaces_a_template(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ question }} ({{ record.choices | join(', ') }})\n")
    assert render(str(path), question="Which?", record={"choices": ["a", "b"]}) == "Which? (a, b)"


def test_text_that_looks_like_a_template_is_only_text() -> None:
    prompt = render("fine_tune_cot/rationale.jinja", question="{{ 1 + 1 }} <b> {% if %}")
    assert "{{ 1 + 1 }} <b> {% if %}" in prompt


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{{ qestion }}", "'qestion' is undefined; it may use question"),
        ("{{ question.missing }}", "missing"),
        ("{% if %}", "line 1"),
        ("{{ question.__class__.__mro__ }}", "template"),
        ("{{ 1 / 0 }}", "template"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=named):
        render(str(path), question="a")


def test_a_missing_template_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="fine_tune_cot/answer.jinja"):
        render("fine_tune_cot/answr.jinja")
