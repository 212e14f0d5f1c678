"""`fit`, `validate`, `test` and `predict`: LightningCLI with our run folders, checkpoints, results and sentences."""

from __future__ import annotations

import importlib
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

import kdlightning
from kdlightning.callbacks import BestCheckpoint, LatestCheckpoint
from kdlightning.commands.evaluate import finish_fit, report_checkpoints
from kdlightning.commands.failures import as_building_error, as_configuration_error, first_line, reraise
from kdlightning.commands.precheck import Request
from kdlightning.commands.progress import Progress
from kdlightning.commands.quiet import quiet
from kdlightning.commands.recording import History, PredictionWriter
from kdlightning.commands.runs import RunError, RunPlace, checkpoint_file, run_of
from kdlightning.errors import ConfigurationError, NonFiniteLossError
from kdlightning.modules import DistillModule
from kdlightning.modules.loading import read_checkpoint

# Short class names on the command line mean classes that are loaded.
for _module in sorted(set(kdlightning._HOME.values())):  # type: ignore[attr-defined]
    importlib.import_module(_module)


def execute(request: Request) -> int:
    """Runs a training command."""
    with quiet():
        command = DistillCommand(request)
        if request.only_prints:
            return 0
        command.start()
    return 0


class SaveConfig(SaveConfigCallback):
    """Keeps the whole configuration in the run's folder; a resumed run adds its own beside it."""

    folder: Path

    def __init__(self, *arguments: Any, folder: Path, **options: Any) -> None:
        options["save_to_log_dir"] = False
        super().__init__(*arguments, **options)
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: a checkpoint that does not fit is found later, and must leave no trace."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes, now that the checkpoint is loaded."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes `config.yaml`, or `config.resume-<n>.yaml` if an earlier part of the run had other settings."""
        if stage != "fit":
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False)
        earlier = [path.read_text(encoding="utf-8") for path in sorted(self.folder.glob("config*.yaml"))]
        if text not in earlier:
            name = "config.yaml" if not earlier else f"config.resume-{len(earlier)}.yaml"
            (self.folder / name).write_text(text, encoding="utf-8")


class DistillCommand(LightningCLI):
    """LightningCLI in subclass mode; parsing, building and running fail with one sentence each."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.run_folder: Path | None = None
        self.checkpoints: list[tuple[str, Path]] = []
        self.resumes: Path | None = None
        self.history = History()
        self._is_new = False
        self._resumed_step: int | None = None
        header = [f"kdlightning {kdlightning.__version__}", *([f"run: {request.name}"] if request.name else [])]
        with reraise(as_building_error):
            super().__init__(
                DistillModule,
                LightningDataModule,
                save_config_callback=None,
                seed_everything_default=0,
                parser_kwargs={"exit_on_error": False, "prog": "kdlightning"}
                | {name: {"exit_on_error": False, "dump_header": header} for name in self.subcommands()},
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                args=[request.command, *request.arguments],
            )

    # -- what LightningCLI asks ------------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Options are written in full: an abbreviation of today may be ambiguous tomorrow."""
        return super().init_parser(**{"allow_abbrev": False, **kwargs})

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's settings over those of the command line.
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        # Started by `start`, so that mistakes in building and in running can be told apart.
        pass

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        self._choose_folder(config)
        listed = config.get("callbacks") or []
        listed = list(listed) if isinstance(listed, list) else [listed]
        if not config.get("fast_dev_run"):
            listed += self._our_callbacks(listed)
        if config.get("enable_progress_bar") is not False:
            listed.append(Progress())
        config["callbacks"] = listed
        if config.get("logger") in (None, True):
            config["logger"] = self._logger(config)
        if config.get("enable_model_summary") is None:
            config["enable_model_summary"] = False
        return super()._instantiate_trainer(config, callbacks)

    def _our_callbacks(self, listed: list[Callback]) -> list[Callback]:
        assert self.run_folder is not None
        command = self.request.command
        if command == "predict":
            return [PredictionWriter(self.run_folder / "predictions.jsonl")]
        if command != "fit":
            return []
        folder = str(self.run_folder / "checkpoints")
        ours: list[Callback] = [self.history]
        for kind in (BestCheckpoint, LatestCheckpoint):
            present = [callback for callback in listed if isinstance(callback, kind)]
            ours += [] if present else [kind(dirpath=folder)]
            for callback in present:
                callback.dirpath = callback.dirpath or folder  # type: ignore[attr-defined]
        config = self.config[self.request.command]
        ours.append(SaveConfig(self._parser(command), config, folder=self.run_folder))
        return ours

    def _logger(self, config: dict[str, Any]) -> Any:
        if config.get("fast_dev_run") or self.request.command == "predict":
            return False
        assert self.run_folder is not None
        folder = self.run_folder
        # What a killed run wrote after its last checkpoint is written again: TensorBoard hides the first version.
        options: dict[str, Any] = {} if self._resumed_step is None else {"purge_step": self._resumed_step}
        return TensorBoardLogger(
            save_dir=str(folder.parent.parent),
            name=folder.parent.name,
            version=folder.name,
            default_hp_metric=False,
            **options,
        )

    # -- where the run goes ----------------------------------------------------------------------------------------

    @property
    def place(self) -> RunPlace:
        """All runs of this name and seed."""
        settings = self.config[self.request.command]
        root = Path(settings["trainer"].get("default_root_dir") or "runs")
        seed = settings.get("seed_everything")
        return RunPlace(root, self.request.name, None if seed is False or seed is None else int(seed))

    def _choose_folder(self, trainer: dict[str, Any]) -> None:
        request, place = self.request, self.place
        wanted = request.checkpoint
        if request.command == "fit":
            self.run_folder, self.resumes = self._fit_folder(place, wanted)
            if self.resumes is not None:
                self._resumed_step = int(read_checkpoint(self.resumes)["global_step"])
            return
        self.run_folder, self.checkpoints = self._measured(place, wanted)
        for _, path in self.checkpoints:
            read_checkpoint(path)

    def _fit_folder(self, place: RunPlace, wanted: str | None) -> tuple[Path, Path | None]:
        if wanted is None:
            return self._new_folder(place), None
        if wanted in ("last", "best"):
            run = self.request.run or place.find(wanted)
            return run, checkpoint_file(run, wanted)
        path = Path(wanted)
        if self.request.run is not None:
            return self.request.run, path
        if run_of(path).resolve().parent == place.folder.resolve():
            return run_of(path), path
        return self._new_folder(place), path

    def _new_folder(self, place: RunPlace) -> Path:
        """Where a new run goes; a folder that is there already is not ours to remove after a mistake."""
        folder = self.request.run or place.new()
        if folder.is_file() or (self.request.command == "fit" and folder.is_dir() and any(folder.iterdir())):
            raise ConfigurationError(f"--run {folder} is there already: name a new folder, or resume with --ckpt_path")
        self._is_new = not folder.exists()
        return folder

    def _measured(self, place: RunPlace, wanted: str | None) -> tuple[Path, list[tuple[str, Path]]]:
        """The run that is measured, and which of its checkpoints."""
        if self.request.tests_built:
            return self._new_folder(place), []
        if wanted in ("last", "best"):
            run = self.request.run or place.find(wanted)
            return run, [(wanted, checkpoint_file(run, wanted))]
        if wanted is not None:
            path = Path(wanted)
            which = path.stem if path.stem in ("last", "best") else path.name
            return self.request.run or run_of(path), [(which, path)]
        found = self.request.run or place.newest_with("last")
        if found is None:
            raise ConfigurationError(
                f"there is no run below {place.folder}: fit first, give --ckpt_path PATH, "
                "or --ckpt_path null for the student as it is built"
            )
        kinds = ("last", "best") if self.request.command == "test" else ("last",)
        return found, [(k, checkpoint_file(found, k)) for k in kinds if checkpoint_file(found, k).is_file()]

    # -- running ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Does what the command says."""
        with reraise(self._as_failure):
            getattr(self, f"_{self.request.command}")()

    def _as_failure(self, error: Exception) -> Exception | None:
        """Mistakes found before the first step leave no run folder behind."""
        if self._is_new and self.trainer.global_step == 0 and self.trainer.is_global_zero and self.run_folder:
            remove_run(self.run_folder, self.place.root)
        early = self.trainer.global_step == 0
        mistake = as_building_error(error) if early else as_configuration_error(error)
        if mistake is not None or isinstance(error, (ConfigurationError, NonFiniteLossError)):
            return mistake
        return self._with_log(error)

    def _with_log(self, error: Exception) -> Exception | None:
        """An error that is no mistake of input: hours may lie before it, so its traceback is kept."""
        if self.run_folder is None or not self.run_folder.is_dir():
            return None
        path = self.run_folder / "error.log"
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return RunError(f"{type(error).__name__}: {first_line(error)} (the traceback is in {path})")

    def _fit(self) -> None:
        self._say_what()
        checkpoint = str(self.resumes) if self.resumes else None
        try:
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=checkpoint)
        except SystemExit as end:
            # Lightning leaves like this after Ctrl-C.
            raise KeyboardInterrupt(self._interrupted()) from end
        if self.trainer.interrupted or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        finish_fit(self)

    def _interrupted(self) -> str:
        assert self.run_folder is not None
        if checkpoint_file(self.run_folder, "last").is_file():
            return "interrupted; the same command with --ckpt_path last goes on"
        if self._is_new and self.trainer.is_global_zero:
            remove_run(self.run_folder, self.place.root)
        return "interrupted before the first checkpoint; nothing is kept"

    def _validate(self) -> None:
        report_checkpoints(self, "val")

    def _test(self) -> None:
        report_checkpoints(self, "test")

    def _predict(self) -> None:
        path = self.checkpoints[0][1] if self.checkpoints else None
        self.trainer.predict(
            self.model,
            datamodule=self.datamodule,
            return_predictions=False,
            ckpt_path=str(path) if path else None,
        )
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PredictionWriter):
                self.say(f"{callback.rows} predictions: {callback.path}")

    def say(self, text: str) -> None:
        """Prints a line on the first rank."""
        if self.trainer.is_global_zero:
            print(text, flush=True)

    def _say_what(self) -> None:
        student = sum(parameter.numel() for parameter in self.model.student.parameters())
        seed = f"seed {self.place.seed}" if self.place.seed is not None else "no seed"
        goes_on = f", from {self.resumes.name}" if self.resumes else ""
        self.say(f"fit {self.request.name} · {seed} · {_millions(student)} parameters · {self.run_folder}{goes_on}")

    @contextmanager
    def unlogged(self) -> Iterator[None]:
        """Inside, nothing goes to TensorBoard: a second look at a checkpoint is no new point of its curve."""
        loggers = self.trainer.loggers
        self.trainer.loggers = []
        try:
            yield
        finally:
            self.trainer.loggers = loggers


def remove_run(folder: Path, root: Path) -> None:
    """Removes a run's folder, and those above it up to `root` that are empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    for parent in folder.parents:
        if parent == root.parent or not parent.is_dir() or any(parent.iterdir()):
            break
        parent.rmdir()


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"
