"""A student of a teacher of which only the text is seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from kdlightning.blackbox.base import BlackBoxMethod, Prediction, run_rounds
from kdlightning.blackbox.data import BlackBoxData
from kdlightning.data.batch import Batch
from kdlightning.errors import ConfigurationError
from kdlightning.generation.transformers import TransformersGenerator
from kdlightning.losses.base import ResponseLoss
from kdlightning.losses.token_terms import ForwardKL
from kdlightning.modules.base import DistillModule
from kdlightning.modules.offline import check_response, teacher_of
from kdlightning.modules.partners import fit_to_tokenizer, is_encoder_decoder, load_partner
from kdlightning.modules.step import DistillStep
from kdlightning.modules.tagged import check_tags, tag_divergence, tag_loss
from kdlightning.schedules import Weight
from kdlightning.tasks import CausalLM, Seq2SeqLM, Task
from kdlightning.teachers import Teacher


class BlackBoxDistillation(DistillModule):
    """Black-box distillation: the student learns from the teacher's filtered text, and is judged by generating.

    The one term is `task`: cross-entropy on the tokens of the labels. A method of several tasks (`tag_weights`) has a
    term for each instead, named after its tag: the mean over that tag's own tokens in the micro-batch, 0 without any.
    As every term that is no sum over all counted tokens, a tag's mean counts as often as the micro-batch has counted
    tokens; then the accumulation window is divided by all of its tokens on all ranks. So where a window is split into
    unlike micro-batches, or over ranks, the tags' shares of each part count, and not those of the whole.

    A white-box `teacher` beside the text adds `response`, its divergence on the same tokens (`forward_kl` by default,
    with the weights of `ForwardKL`), or where the method has `soft_tag_weights` a term for each of its tasks, named
    `soft_` and the tag.

    Validation logs `val/loss` and `val/perplexity` on the kept answers (over all tokens, whatever their tags), and both
    validation and test run the method's own inference protocol on whole records: `val/acc`, `test/acc`. Test writes
    every prediction to `test_predictions.jsonl` in the run's folder, `predict` gives the same rows.

    In a method of several students the trained one plays its role, and `partners` play the others. Without all
    partners the protocol cannot run: then the student is judged alone, as `BlackBoxMethod.infer_alone` says, under
    names of its own (`val/solver_acc`).

    Args:
        student: a language model of transformers.
        method: the method; None takes the data module's. It must be the same in both places.
        task: `CausalLM()` by default, `Seq2SeqLM()` for encoder–decoders.
        partners: the other students of the method by name, trained before: each a checkpoint, an exported folder, or in
            Python a network. They are never trained, and not part of this run's checkpoints.
        teacher: a trained language model with the student's tokenizer, which sees what the student sees; None for
            methods on the teacher's text alone.
        response: the loss against it, a sum over tokens; `ForwardKL()` by default.
        inference_every: epochs between two validations by the protocol; 0 leaves it to test.
        inference_records: validate the protocol on only so many records (of each process); all by default.
        inference_batch_size: records that generate together; the loader's batch by default.
        optimizer: makes the optimizer from parameters; AdamW with learning rate 1e-3 by default.
        lr_scheduler: makes the scheduler from the optimizer; none by default.
        lr_interval: whether the scheduler steps every "epoch" or every "step".
        weights: weights by term name.
    """

    def __init__(
        self,
        student: nn.Module,
        method: BlackBoxMethod | None = None,
        *,
        task: Task | None = None,
        partners: dict[str, Any] | None = None,
        teacher: Teacher | nn.Module | None = None,
        response: ResponseLoss | None = None,
        inference_every: int = 1,
        inference_records: int | None = None,
        inference_batch_size: int | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: str = "epoch",
        weights: dict[str, Weight] | None = None,
    ) -> None:
        super().__init__(
            student,
            task=task or (Seq2SeqLM() if is_encoder_decoder(student) else CausalLM()),
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            weights=weights,
        )
        if inference_every < 0:
            raise ConfigurationError(f"inference_every is {inference_every}: give epochs, or 0 for never")
        if not hasattr(student, "generate"):
            raise ConfigurationError(
                f"BlackBoxDistillation: {type(student).__name__} has no generate(); use a transformers model"
            )
        if isinstance(self.task, CausalLM) and isinstance(self.task, Seq2SeqLM) != is_encoder_decoder(student):
            raise ConfigurationError(
                "CausalLM is for decoder-only students, Seq2SeqLM for encoder–decoders: leave task out"
            )
        check_response(response, self.task)
        self.teacher = teacher_of(student, teacher, self.task)
        self.response = ForwardKL() if response is None and teacher is not None else response
        self.method = method
        self._given_partners = dict(partners or {})
        self._partners: dict[str, nn.Module] = {}
        self.inference_every = inference_every
        self.inference_records = inference_records
        self.inference_batch_size = inference_batch_size
        self._predictions: list[Prediction] = []
        self._inferred = 0

    @property
    def labels_alone(self) -> bool:
        """Whether the method asks no teacher."""
        return self.method is not None and self.method.labels_alone and self.teacher is None

    @property
    def data(self) -> BlackBoxData:
        """The data module, which knows records and tokenizer."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, BlackBoxData):
            raise ConfigurationError("BlackBoxDistillation reads BlackBoxData: give it as the datamodule")
        return data

    def setup(self, stage: str) -> None:
        """See `DistillModule.setup`; method, tokenizer and student must fit together."""
        data = self.data
        if self.method is None:
            self.method = data.method
        elif self.method != data.method:
            raise ConfigurationError("the module and BlackBoxData have different methods: leave the module's out")
        check_tags(type(self.method).__name__, self.method.tag_weights, self._given_weights)
        self._check_soft_labels(self.method, stage)
        self._load_partners(self.method, data.student)
        for name, network in {data.student: self.student, **self._partners}.items():
            if self.method.encoder_decoder != is_encoder_decoder(network):
                raise ConfigurationError(
                    f"{type(self.method).__name__}: student_kind does not fit {type(network).__name__}; "
                    "it is decoder_only or encoder_decoder"
                )
            fit_to_tokenizer(network, data.tokenizer, name)
        super().setup(stage)

    def _check_soft_labels(self, method: BlackBoxMethod, stage: str) -> None:
        name, teaches = type(method).__name__, self.teacher is not None
        if stage == "fit" and method.soft_tag_weights and not teaches:
            raise ConfigurationError(f"{name} learns from soft labels: give BlackBoxDistillation(teacher=…)")
        if stage == "fit" and self.response is not None and not teaches:
            raise ConfigurationError("response compares with a white-box teacher: give teacher too, or leave it out")
        if teaches and method.tag_weights and not method.soft_tag_weights:
            raise ConfigurationError(f"{name} is set up without soft labels: leave the module's teacher out")

    def _load_partners(self, method: BlackBoxMethod, own: str) -> None:
        for name, source in self._given_partners.items():
            if method.student_named(name) == own:
                raise ConfigurationError(f"partners: {name!r} is the student of this run; leave it out")
            if name not in self._partners:
                self._partners[name] = load_partner(source, self.student)

    # -- tasks of one student --------------------------------------------------------------------------------------

    def mode_terms(self, step: DistillStep) -> dict[str, Tensor]:
        """`task`, or a term for each of the method's tasks."""
        tags = self._tags()
        if not tags:
            return super().mode_terms(step)
        terms = {}
        for number, tag in enumerate(tags):
            if self.is_active(tag, step):
                terms[tag] = tag_loss(self.task, step, number)
            soft = f"soft_{tag}"
            if self.response is not None and soft in self._weights and self.is_active(soft, step):
                terms[soft] = tag_divergence(self.response, step, number)
        return terms

    def term_defaults(self) -> Mapping[str, Weight]:
        """The method's weights of its tasks, or the response's."""
        tags = self._tags()
        if not tags or self.method is None:
            return super().term_defaults()
        soft = {} if self.teacher is None else self.method.soft_tag_weights
        return {**tags, **{f"soft_{tag}": weight for tag, weight in soft.items()}}

    def _tags(self) -> Mapping[str, Weight]:
        return {} if self.method is None else self.method.tag_weights

    # -- evaluation ------------------------------------------------------------------------------------------------

    def validation_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The loss on labels, and the protocol on the batch's records."""
        batch = self.task.batch(raw)
        self.evaluate(batch, "val")
        if self._validates_protocol():
            left = None
            if self.inference_records is not None:
                left = self.inference_records - self._inferred
            self._predictions += self._infer(batch, "val", left)

    def _validates_protocol(self) -> bool:
        if self.trainer.sanity_checking or not self.inference_every:
            return False
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        return not fitting or (self.current_epoch + 1) % self.inference_every == 0

    def test_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The protocol on the batch's records; the loss too where there are labels."""
        batch = self.task.batch(raw)
        if batch.mask is None or bool(batch.mask.any()):
            self.evaluate(batch, "test")
        self._predictions += self._infer(batch, "test")

    def predict_step(self, raw: Any, batch_idx: int) -> list[dict[str, Any]]:
        """One dictionary a record: index, record, question, text, prediction, gold, correct."""
        batch = self.task.batch(raw)
        assert batch.index is not None
        predictions = self._infer(batch, "predict")
        rows = {problem.number: row for row, problem in self.data.evaluated("predict", batch.index).items()}
        return [{"index": rows[prediction.record], **asdict(prediction)} for prediction in predictions]

    def _infer(self, batch: Batch, stage: str, most: int | None = None) -> list[Prediction]:
        if self.method is None or batch.index is None:
            raise ConfigurationError("BlackBoxDistillation needs the sample numbers that BlackBoxData's loaders give")
        data = self.data
        problems = list(data.evaluated(stage, batch.index).values())
        problems = problems if most is None else problems[: max(0, most)]
        if not problems:
            return []
        self._inferred += len(problems)
        size = self.inference_batch_size or len(problems)
        players = {
            name: TransformersGenerator(network.to(self.device), data.tokenizer, size, name=name)
            for name, network in {data.student: self.student, **self._partners}.items()
        }
        if self._is_alone:
            rounds = self.method.infer_alone(data.student, problems, data.kept(stage, problems))
        else:
            rounds = self.method.infer(problems)
        predictions, _ = run_rounds(rounds, players, progress=False)
        return predictions

    @property
    def _is_alone(self) -> bool:
        """Whether another student is missing, which the protocol needs."""
        assert self.method is not None
        return bool(set(self.method.students) - {self.data.student, *self._partners})

    def on_validation_epoch_end(self) -> None:
        """Logs `val/…`."""
        super().on_validation_epoch_end()
        self._report_protocol("val")

    def on_test_epoch_end(self) -> None:
        """Logs `test/…`, and writes the predictions."""
        super().on_test_epoch_end()
        predictions = self._report_protocol("test")
        file = self._predictions_file()
        if self.trainer.is_global_zero:
            _write(file, predictions)

    def _report_protocol(self, stage: str) -> list[Prediction]:
        predictions, self._predictions = self._gathered(self._predictions), []
        self._inferred = 0
        if predictions and not self.trainer.sanity_checking:
            assert self.method is not None
            values = self.method.metrics(predictions)
            # Every rank has all predictions: the mean over ranks changes nothing, and Lightning asks for one.
            prefix = f"{self.data.student}_" if self._is_alone else ""
            named = {f"{stage}/{prefix}{name}": value for name, value in values.items()}
            self.log_dict(named, sync_dist=self.trainer.world_size > 1)
        return predictions

    def _gathered(self, predictions: list[Prediction]) -> list[Prediction]:
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, predictions)
            predictions = [prediction for part in parts for prediction in part]
        return sorted(predictions, key=lambda prediction: prediction.record)

    def _predictions_file(self) -> Path:
        """In the run's folder, with the checkpoint's name, so that best and last stay apart; all ranks must ask."""
        checkpoint = self.trainer.ckpt_path
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        if checkpoint is None:
            return folder / "test_predictions.jsonl"
        path = Path(str(checkpoint))
        folder = path.parent.parent if path.parent.name == "checkpoints" else folder
        return folder / f"test_predictions_{path.stem}.jsonl"


def _write(path: Path, predictions: list[Prediction]) -> None:
    from kdlightning.blackbox.report import write_whole

    lines = [json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions]
    write_whole(path, "".join(f"{line}\n" for line in lines))
