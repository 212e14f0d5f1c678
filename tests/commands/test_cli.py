"""The front of the command: what it says without importing torch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdlightning import __version__
from kdlightning.commands.help import COMMANDS, TEXTS, overview


def _words(value: object) -> str | None:
    return " ".join(value) if isinstance(value, list) else ""


_PROBE = """
import sys
from kdlightning.cli import main
code = main(sys.argv[1:])
heavy = sorted({"torch", "lightning", "timm", "transformers", "jsonargparse"} & set(sys.modules))
print("code", code, "heavy", heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 0),
        (["--help"], 0),
        (["fit", "--help"], 0),
        (["list"], 0),
        (["list", "--json"], 0),
        (["--version"], 0),
        (["fitt"], 2),
        (["fit", "-c", "offline/response/no"], 2),
        (["fit", "--modell", "KD"], 2),
        (["compare", "nowhere"], 2),
        (["run", "quikstart"], 2),
        (["run", "quickstart", "--dry-run"], 0),
        (["export", "nowhere"], 2),
    ],
    ids=_words,
)
def test_answers_without_importing_torch(arguments: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stderr.splitlines()[-1] == f"code {code} heavy []", done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["list"]], ids=" ".join)
def test_answers_in_less_than_half_a_second(arguments: list[str], tmp_path: Path) -> None:
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "kdlightning.cli", *arguments], capture_output=True, cwd=tmp_path, check=True
        )
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.5


def test_help_lists_every_command_with_examples(command) -> None:
    assert command("--help").out == overview()
    assert set(TEXTS) == set(COMMANDS)
    for name in COMMANDS:
        text = command(name, "--help").out
        assert f"usage: kdlightning {name}" in text
        assert "Examples" in text
        assert max(map(len, text.splitlines())) <= 120
        assert command("help", name).out == text


def test_commands_of_the_help_have_files() -> None:
    folder = Path(__file__).parents[2] / "kdlightning" / "commands"
    own = set(COMMANDS) - {"fit", "validate", "test", "predict"}
    assert all((folder / f"{name}.py").is_file() for name in own)


def test_version_is_the_packages(command) -> None:
    assert command("--version").out.strip() == f"kdlightning {__version__}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fitt"], "no command 'fitt'; did you mean fit"),
        (["distil"], "no command 'distil'"),
        (["--config", "x.yaml", "fit"], "--config comes after the command: kdlightning fit --config …"),
        (["-c=x.yaml", "fit"], "-c comes after the command: kdlightning fit -c …"),
        (["--trainer.max_epochs=3"], "the first word is a command"),
        (["list", "--knowlege", "feature"], "list has no option --knowlege; did you mean --knowledge"),
        (["list", "--knowledge", "featur"], "--knowledge featur: nothing that ships has it; did you mean feature?"),
        (["list", "a", "b"], "list: 'b' is one argument too many"),
        (["export"], "export needs CKPT|RUN_FOLDER"),
        (["compare"], "compare needs RUN"),
        (["run"], "run needs NAME|PATH"),
        (["run", "quikstart"], "did you mean quickstart"),
        (["run", "quickstart", "--seed", "x"], "--seed x: a seed is a whole number"),
        (["run", "quickstart", "--sed", "1"], "run has no option --sed; did you mean --seed"),
        (["run", "offline/response/kd"], "has no stages: it is a configuration"),
        (["taps"], "taps needs a model's name or -c CONFIG"),
        (["taps", "resnet18", "--role", "teacher"], "--role chooses between the networks of a configuration"),
        (["taps", "-c", "offline/response/kd", "--role", "techer"], "did you mean teacher?"),
        (["taps", "resnet18", "--input", "3,x"], "--input '3,x': write the shape of one sample"),
        (["export", "nowhere.ckpt"], "there is no file or folder nowhere.ckpt"),
        (["export", "nowhere.ckpt", "--format", "tim"], "--format tim; did you mean timm?"),
        (["compare", "nowhere"], "there is no file or folder nowhere"),
        (["compare", ".", "--checkpoint", "lst"], "--checkpoint lst; did you mean last"),
        (["compare", "."], "no finished run (result.json) is below it"),
    ],
    ids=_words,
)
def test_a_wrong_command_is_one_sentence(command, arguments: list[str], words: str) -> None:
    outcome = command(*arguments)
    assert outcome.code == 2
    assert words in outcome.sentence


def test_debug_shows_the_traceback(command) -> None:
    with pytest.raises(Exception, match="no command 'fitt'"):
        command("fitt", "--debug")
