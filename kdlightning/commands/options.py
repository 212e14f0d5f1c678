"""Option parsing for the commands that are not Lightning's: argparse, with one sentence for each mistake."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from kdlightning.errors import ConfigurationError, nearest


class Parser(argparse.ArgumentParser):
    """argparse without its usage dump: a mistake is a `ConfigurationError` that names the nearest option."""

    def __init__(self, command: str) -> None:
        super().__init__(prog=f"kdlightning {command}", add_help=False, allow_abbrev=False)
        self.command = command

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        if unknown:
            first = next((word for word in unknown[1].split() if word.startswith("-")), unknown[1].split()[0])
            name = first.split("=")[0]
            if not name.startswith("-"):
                raise ConfigurationError(f"{self.command}: {name!r} is one argument too many")
            raise ConfigurationError(f"{self.command} has no option {name}{nearest(name, self.options())}")
        missing = re.match(r"the following arguments are required: (.*)", message)
        if missing:
            raise ConfigurationError(
                f"{self.command} needs {missing[1]}: `kdlightning {self.command} --help` has examples"
            )
        raise ConfigurationError(f"{self.command}: {message.removeprefix('argument ')}")

    def options(self) -> list[str]:
        """All long options."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]
