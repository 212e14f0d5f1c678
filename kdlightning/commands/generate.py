"""`kdlightning generate`: asks a configuration's teacher for what its store lacks, and says what came of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlightning.commands.options import Parser
from kdlightning.commands.precheck import Request, read_request
from kdlightning.commands.runs import write_json
from kdlightning.errors import ConfigurationError

if TYPE_CHECKING:
    from kdlightning.blackbox.teacher_text import Asked, TeacherText
    from kdlightning.generation.engine import Failure

_SHOWN = 10


def main(arguments: list[str]) -> int:
    """Asks, or with `--dry-run` says what would be asked.

    Returns:
        0 if everything was answered, 1 if requests failed.
    """
    options, request = read(arguments)
    from kdlightning.commands.failures import as_configuration_error, reraise
    from kdlightning.commands.quiet import quiet

    with quiet():
        text = _text(request)
        if text is None:
            return 0
        with reraise(as_configuration_error):
            if options.dry_run:
                return _estimate(text)
            return _ask(text, options, request.name)


def read(arguments: list[str], *, weights: bool = True) -> tuple[argparse.Namespace, Request]:
    """The command's own options, and what is left as `fit` would read it. Imports no torch.

    Args:
        arguments: of the command.
        weights: whether files of weights must exist.
    """
    parser = Parser("generate")
    for flag in ("--dry-run", "--allow_failed"):
        parser.add_argument(flag, action="store_true")
    for name, kind in (("requests", int), ("tokens", int), ("money", float)):
        parser.add_argument(f"--max_{name}", type=kind)
    parser.add_argument("--result", type=Path)
    options, rest = parser.parse_known_args(arguments)
    for name in ("max_requests", "max_tokens", "max_money"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigurationError(f"--{name} {value}: give a number above 0")
    return options, read_request("generate", rest, weights=weights, own=parser.options())


def _text(request: Request) -> TeacherText | None:
    """What asks the teacher, or None where the options of a class were to be printed."""
    from kdlightning.blackbox.teacher_text import TeacherText
    from kdlightning.commands.data_command import DataCommand

    request.command = "fit"
    data = DataCommand(request).datamodule
    if request.only_prints:
        return None
    text = getattr(data, "text", None)
    if not isinstance(text, TeacherText):
        raise ConfigurationError(f"generate needs data that ask a teacher (BlackBoxData), not {type(data).__name__}")
    return text


# -- asking ------------------------------------------------------------------------------------------------------------


def _ask(text: TeacherText, options: argparse.Namespace, name: str) -> int:
    from kdlightning.generation.budget import Budget

    budget = Budget(requests=options.max_requests, tokens=options.max_tokens, money=options.max_money)
    try:
        asked = text.ask(budget)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("interrupted; every answer so far is stored, the same command goes on") from interrupt
    result = _result(text, asked, name)
    _print(result, asked)
    if options.result is not None:
        write_json(options.result, result)
    complete = asked.ended is None and (options.allow_failed or not result["failed"])
    return 0 if complete else 1


def _result(text: TeacherText, asked: Asked, name: str) -> dict[str, Any]:
    """The numbers of the table, as plain data."""
    from kdlightning.blackbox.base import count_reasons
    from kdlightning.blackbox.report import count_sources

    rounds: dict[str, dict[str, int]] = {}
    for each in asked.results:
        # A method may ask many rounds of one name.
        row = rounds.setdefault(each.title, {"asked": 0, "stored": 0, "failed": 0})
        for key, count in (("asked", each.asked), ("stored", each.reused), ("failed", len(each.failures))):
            row[key] += count
    spent = asked.spent
    return {
        "name": name,
        "method": type(text.method).__name__,
        "records": sum(len(problems) for problems in text.problems.values()),
        "rounds": rounds,
        "failed": sum(row["failed"] for row in rounds.values()),
        "answers": count_reasons(asked.outcomes) if asked.ended is None else None,
        "sources": count_sources(asked.outcomes),
        "ended": asked.ended,
        "spent": {
            "requests": spent.requests,
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            "money": spent.money,
            "estimated": spent.estimated,
        },
        "store": text.store,
        "report": str(text.report) if asked.ended is None else None,
        "products": [str(path) for path in asked.products],
    }


def _print(result: dict[str, Any], asked: Asked) -> None:
    """The table, and what failed."""
    from kdlightning.generation.usage import counted

    rounds, answers = result["rounds"], result["answers"]
    print(f"{result['method']} · {result['records']:,} records · {result['store']}\n")
    everything = {key: sum(row[key] for row in rounds.values()) for key in ("asked", "stored", "failed")}
    lines = [["round", "asked", "from the store", "failed"]]
    lines += [[title, *(f"{count:,}" for count in row.values())] for title, row in rounds.items()]
    lines += [["all", *(f"{count:,}" for count in everything.values())]] if len(rounds) != 1 else []
    _print_columns(lines)
    if answers is not None:
        lines = [["answers", f"{sum(answers.values()):,}"], ["  kept", f"{answers['kept']:,}"]]
        lines += [[f"    {source}", f"{count:,}"] for source, count in result["sources"].items()]
        lines += [[f"  dropped: {reason}", f"{count:,}"] for reason, count in answers.items() if reason != "kept"]
        _print_columns(lines)
    _print_failures([failure for each in asked.results for failure in each.failures])
    spent = asked.spent
    print(f"spent:  {spent if spent.tokens else counted(spent.requests, 'request')}")
    print(f"report: {result['report']}" if result["report"] else f"no report yet: {result['ended']}")
    for path in result["products"]:
        print(f"wrote:  {path}")


def _print_columns(lines: list[list[str]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for first, *others in lines:
        numbers = "  ".join(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        print(f"{first:<{widths[0]}}  {numbers}")
    print()


def _print_failures(failures: list[Failure]) -> None:
    """Each failed sample by its request, the first ones; those of one reason stand together."""
    if not failures:
        return
    print("failed, and asked again by the same command:")
    failures = sorted(failures, key=lambda failure: failure.reason)
    for failure in failures[:_SHOWN]:
        text = " ".join(failure.request.text.split())
        shown = text if len(text) <= 60 else f"{text[:59]}…"
        print(f"  {shown!r}, sample {failure.sample}: {failure.reason}")
    if len(failures) > _SHOWN:
        print(f"  … and {len(failures) - _SHOWN:,} more")
    print()


# -- estimating --------------------------------------------------------------------------------------------------------


def _estimate(text: TeacherText) -> int:
    title, estimate = text.estimate()
    if title is None:
        print(f"nothing to ask: {text.store} has all answers")
        return 0
    print(f"{title}: {estimate}")
    print("the rounds after it depend on its answers; nothing was asked")
    return 0
