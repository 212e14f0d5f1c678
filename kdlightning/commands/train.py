"""`kdlightning fit|validate|test|predict`: checks what it can first, and only then imports Lightning."""

from __future__ import annotations

from kdlightning.commands.precheck import read_request


def main(command: str, argv: list[str]) -> int:
    """Runs a training command.

    Returns:
        Exit code 0. Mistakes are raised as `ConfigurationError`.
    """
    request = read_request(command, argv)
    from kdlightning.commands.lightning_command import execute

    return execute(request)
