"""Prompt templates: jinja files that a user can replace."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kdlightning.errors import ConfigurationError, nearest

SHIPPED = Path(__file__).parent / "prompts"


def render(template: str, **values: Any) -> str:
    """Fills a template in; its last line break is not part of the prompt.

    Args:
        template: a file, or the name of one that comes with kdlightning (`fine_tune_cot/rationale.jinja`).
        **values: what the template may use.

    Raises:
        ConfigurationError: no such template, a mistake in it, or a field that the values lack.
    """
    try:
        return _load(template).render(**values)
    except UndefinedError as error:
        known = ", ".join(sorted(values))
        raise ConfigurationError(f"template {template}: {error.message}; it may use {known}") from error
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ConfigurationError(f"template {template}: {error}") from error


def template_text(template: str) -> str | None:
    """A template as it stands in its file; None if there is none of this name."""
    path = _path(template)
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _path(template: str) -> Path:
    path = Path(template).expanduser()
    return path if path.is_file() else SHIPPED / template


@lru_cache(maxsize=64)
def _load(template: str) -> Template:
    path = _path(template)
    if not path.is_file():
        known = [str(file.relative_to(SHIPPED)) for file in SHIPPED.rglob("*.jinja")]
        raise ConfigurationError(f"there is no template {template}{nearest(template, known)}")
    # A template is data of the user's: it gets no way to call Python.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except TemplateSyntaxError as error:
        raise ConfigurationError(f"template {template}, line {error.lineno}: {error.message}") from error
