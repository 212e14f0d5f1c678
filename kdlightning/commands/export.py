"""`kdlightning export`: the student alone, for timm, transformers, safetensors or ONNX."""

from __future__ import annotations

from pathlib import Path

from kdlightning.commands.options import Parser
from kdlightning.commands.runs import CHECKPOINTS, checkpoint_file, run_of
from kdlightning.errors import ConfigurationError, nearest

_FORMATS = ("auto", "timm", "transformers", "sentence-transformers", "safetensors", "onnx")


def main(arguments: list[str]) -> int:
    """Exports a checkpoint, or a run's last one."""
    parser = Parser("export")
    parser.add_argument("CKPT|RUN_FOLDER")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--output")
    parser.add_argument("--which", default="student")
    parser.add_argument("--quantize")
    options = parser.parse_args(arguments)
    if options.format not in _FORMATS:
        raise ConfigurationError(f"--format {options.format}{nearest(options.format, _FORMATS)}")
    checkpoint = find_checkpoint(getattr(options, "CKPT|RUN_FOLDER"))
    output = Path(options.output) if options.output else run_of(checkpoint) / "export"
    from kdlightning.commands.quiet import quiet
    from kdlightning.export import export_student

    with quiet():
        done = export_student(checkpoint, output, format=options.format, which=options.which, quantize=options.quantize)
    same = (
        "its answers are the same" if done.difference == 0 else f"its answers differ by {done.difference:.0e} at most"
    )
    print(f"{done.folder} ({done.format}; loaded again, {same})")
    if done.milliseconds is not None:
        print(f"onnxruntime takes {done.milliseconds:.2f} ms for one sample (median of 32, one thread)")
    print(f"load it with: {done.load_line}")
    return 0


def find_checkpoint(text: str) -> Path:
    """The checkpoint that a path means: itself, or the last one of a run's folder.

    Raises:
        ConfigurationError: there is none.
    """
    path = Path(text)
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigurationError(f"there is no file or folder {text}")
    for folder in (path, path.parent if path.name == CHECKPOINTS else path):
        for which in ("last", "best"):
            if checkpoint_file(folder, which).is_file():
                return checkpoint_file(folder, which)
    below = sorted(path.rglob(f"{CHECKPOINTS}/last.ckpt"))
    hint = f"; did you mean {run_of(below[-1])}?" if below else ""
    raise ConfigurationError(f"{text} holds no {CHECKPOINTS}/last.ckpt{hint}")
