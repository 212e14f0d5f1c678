"""The command `kdlightning`: finds the sub-command and turns every mistake into one sentence. Imports no torch."""

from __future__ import annotations

import importlib
import os
import sys

import kdlightning
from kdlightning.commands.help import COMMANDS, TEXTS, overview
from kdlightning.commands.runs import RunError
from kdlightning.errors import ConfigurationError, NonFiniteLossError, nearest, unwritable

_TRAINING = ("fit", "validate", "test", "predict")


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments after the program's name; those of the process if None.

    Returns:
        0 for success, 2 for wrong input (one sentence on stderr), 1 for a failure while running, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt as interrupt:
        return _say(str(interrupt) or "interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has gone (`kdlightning list | head`): a second failure at exit would be noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ConfigurationError, NonFiniteLossError, RunError) as error:
        if debug:
            raise
        return _say(str(error), 2 if isinstance(error, ConfigurationError) else 1)
    except OSError as error:
        if debug or not error.filename or not error.strerror:
            raise
        return _say(unwritable(error), 2)
    except Exception as error:
        if debug:
            raise
        return _say(f"{type(error).__name__}: {_first_line(error)} (--debug shows where)", 1)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        topic = arguments[1] if len(arguments) > 1 and arguments[1] in TEXTS else None
        print(TEXTS[topic] if topic else overview(), end="")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "--version":
        print(f"kdlightning {kdlightning.__version__}")
        return 0
    if command not in COMMANDS:
        raise ConfigurationError(_wrong_command(command, rest))
    if "-h" in rest or "--help" in rest:
        print(TEXTS[command], end="")
        return 0
    if command in _TRAINING:
        from kdlightning.commands.train import main as train

        return train(command, rest)
    return importlib.import_module(f"kdlightning.commands.{command}").main(rest)


def _wrong_command(command: str, rest: list[str]) -> str:
    if not command.startswith("-"):
        return f"no command {command!r}{nearest(command, COMMANDS)}"
    later = next((word for word in rest if word in COMMANDS), None)
    option = command.split("=")[0]
    if later:
        return f"{option} comes after the command: kdlightning {later} {option} …"
    return f"the first word is a command ({', '.join(COMMANDS)}), not {option}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _say(sentence: str, code: int) -> int:
    print(f"kdlightning: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
