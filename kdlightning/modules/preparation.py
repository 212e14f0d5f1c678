"""Before the first step: taps, shapes, adapters, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from kdlightning.data.batch import Batch
from kdlightning.data.seeding import restored_generators
from kdlightning.data.views import labels_of
from kdlightning.errors import ConfigurationError, nearest
from kdlightning.losses.base import LossContext
from kdlightning.models.parts import Parts
from kdlightning.modules.knowledge import KnowledgeTerm, TapPair, TermSpec, check_names, taps_of
from kdlightning.modules.layer_pairs import LayerPairs
from kdlightning.modules.vocabularies import check_vocabularies
from kdlightning.modules.weights import merge_weights
from kdlightning.schedules import Weight
from kdlightning.taps import TapReader
from kdlightning.taps.native import head_agrees
from kdlightning.taps.reader import untouched
from kdlightning.teachers import FrozenTeacher, NetworkTeacher, SelfTeacher, teacher_inputs

if TYPE_CHECKING:
    from kdlightning.modules.base import DistillModule


class PreparationMixin:
    """What `DistillModule.setup` does."""

    _declared_to: int
    _text_length: int = 0

    def declare_term(self: DistillModule, spec: TermSpec) -> None:  # type: ignore[misc]
        """Adds a term on taps; callbacks call this in their `setup`, which runs before the module's."""
        if self._declared_to != id(self._trainer):
            # Another run was broken off between its callbacks' setup and the module's.
            self._specs = []
        self._declared_to = id(self._trainer)
        self._specs.append(spec)

    @property
    def has_own_terms(self: DistillModule) -> bool:  # type: ignore[misc]
        """Whether a subclass adds terms of its own."""
        from kdlightning.modules.base import DistillModule

        return type(self).distill_terms is not DistillModule.distill_terms

    @property
    def is_language(self: DistillModule) -> bool:  # type: ignore[misc]
        """Whether networks are asked for hidden states and head rather than full logits."""
        return self.task.wants_hidden

    def setup(self: DistillModule, stage: str) -> None:  # type: ignore[misc]
        """Resolves taps, takes shapes, builds adapters; before optimizers and DDP exist."""
        self._check_classes()
        self._forget_scores()
        fitting = stage == "fit"
        if fitting:
            self._ask_for_views()
            check_vocabularies(self)
        # A run that fails is never torn down: what callbacks declared is taken over here, once.
        self._declared, self._specs = self._specs, []
        self.build_parts(stage)
        self._knowledge = self._resolve_terms() if fitting else []
        self._open_readers()
        if fitting:
            self._weights = self.all_weights()
            if self._knowledge or (self.is_language and self.trainer.state.fn == TrainerFn.FITTING):
                self._probe()
            for name in set(self.adapters) - {term.key for term in self._knowledge}:
                del self.adapters[name]  # of an earlier fit with other callbacks
            # A loader is made once for all terms: what making it costs is the data's own affair.
            data = getattr(self._loader_of("fit"), "dataset", None) if self._knowledge else None
            for term in self._knowledge:
                term.build(self.adapters, partial(self._loss_context, data))
            self._check_fields()
            self._refuse_stock_average()

    def _refuse_stock_average(self: DistillModule) -> None:  # type: ignore[misc]
        stock = any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        parts = any(isinstance(module, Parts) for module in self.modules())
        if stock and (self._knowledge or parts or isinstance(self.teacher, SelfTeacher)):
            raise ConfigurationError(
                "Lightning's weight averaging copies the module before its adapters and self-teachers are made: use "
                "kdlightning.callbacks.EMA"
            )

    def _check_fields(self: DistillModule) -> None:  # type: ignore[misc]
        """What a self-teacher or a loss reads of a batch must be in the loader's batches."""
        readers = {type(part).__name__: part for part in (self.teacher, self.response) if part is not None}
        needed: dict[str, frozenset[str]] = {
            owner: getattr(part, "reads_fields", frozenset()) for owner, part in readers.items()
        }
        needed |= {spec.owner: spec.reads_fields for spec in self._declared}
        if not any(needed.values()):
            return
        batch = self.sample_batch()
        for owner, fields in needed.items():
            for name in sorted(fields):
                if getattr(batch, name) is None:
                    raise ConfigurationError(
                        f"{owner} reads batch.{name}, which this loader does not give: wrap the data set with "
                        "kdlightning.IndexedViews, or the loader with kdlightning.resumable"
                    )

    def _loss_context(  # type: ignore[misc]
        self: DistillModule, dataset: Any, learner: str, source: str
    ) -> LossContext:
        """What a loss of a term may look at before training."""
        teacher = self.networks.get(source) or getattr(self.teacher, "network", None)
        return LossContext(
            self.networks[learner],
            teacher,
            samples=len(dataset) if hasattr(dataset, "__len__") else 0,
            labels=labels_of(dataset),
            num_classes=self.task.num_classes,
            label_map=_label_map(self.teacher) if source == "teacher" else None,
            tokens=self._text_length,
        )

    def _loader_of(self: DistillModule, stage: str) -> Any:  # type: ignore[misc]
        loops = {"fit": "fit_loop", "validate": "validate_loop", "test": "test_loop"}
        loaders = {"fit": "train_dataloader", "validate": "val_dataloader", "test": "test_dataloader"}
        source: Any = getattr(self.trainer, loops[stage])._data_source.instance
        found = getattr(source, loaders[stage])() if hasattr(source, loaders[stage]) else source
        return found[0] if isinstance(found, (list, tuple)) and found else found

    def teardown(self: DistillModule, stage: str) -> None:  # type: ignore[misc]
        """Removes hooks and forgets declarations, so that another fit starts clean."""
        for reader in self._readers.values():
            reader.close()
        if self.teacher is not None:
            self.teacher.close()
        self._declared = []
        self._knowledge = []

    def all_weights(self: DistillModule) -> dict[str, Any]:  # type: ignore[misc]
        """Weights of all terms known now."""
        known: dict[str, Weight] = {"task": 1.0}
        for spec in self._declared:
            known["task"] = spec.defaults.get("task", known["task"])
        known |= self.term_defaults()
        # A peer's part of a callback's term weighs what the term does, unless it is named by itself.
        peers = {term.key: term.spec for term in self._knowledge if term.key != term.spec.name}
        given = {name: weight for name, weight in self._given_weights.items() if name not in peers}
        weights = merge_weights(known, self._declared, given, own_terms=self.has_own_terms)
        for key, spec in peers.items():
            if key in self._given_weights and spec.weight is not None:
                raise ConfigurationError(
                    f"the weight of {key!r} is set twice: in weights and by {spec.owner}; keep one"
                )
            weights[key] = self._given_weights.get(key, weights[spec.name])
        return weights

    def term_defaults(self: DistillModule) -> Mapping[str, Weight]:  # type: ignore[misc]
        """Default weights of the mode's own terms."""
        if self.response is None or self.teacher is None:
            return {}
        return {self.response.name: 1.0, **self.response.default_weights}

    def _check_own_terms(self: DistillModule, own: Mapping[str, Tensor]) -> None:  # type: ignore[misc]
        if not self._first_step:
            return
        known = self._known_terms()
        for name, value in own.items():
            if name in (*known, "loss"):
                raise ConfigurationError(f"distill_terms returns {name!r}, which is taken: give the term another name")
            if not isinstance(value, Tensor) or value.ndim > 0:
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ConfigurationError(
                    f"distill_terms: {name!r} must be a scalar tensor, a mean over the batch, not {what}"
                )
        for name in self._given_weights:
            if name not in own and name not in known:
                raise ConfigurationError(f"weights: no term is named {name!r}{nearest(name, [*own, *known])}")

    def _known_terms(self: DistillModule) -> list[str]:  # type: ignore[misc]
        return [
            "task",
            *self.term_defaults(),
            *(spec.name for spec in self._declared),
            *(t.key for t in self._knowledge),
        ]

    def _check_classes(self: DistillModule) -> None:  # type: ignore[misc]
        theirs = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        ours = self.task.num_classes
        if theirs is not None and ours is not None and theirs != ours:
            raise ConfigurationError(
                f"the data have {theirs} classes and {type(self.task).__name__} has num_classes={ours}: make them agree"
            )
        tags: list[str] | None = getattr(self.task, "tags", None)
        names: list[str] | None = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
        if tags is not None and names is not None and list(names) != list(tags):
            raise ConfigurationError(
                f"the task's tags are {', '.join(tags)} and the data's {', '.join(names)}: give the data tag_names in "
                "the task's order"
            )
        block = getattr(getattr(self.trainer, "datamodule", None), "block_size", None)
        for name, network in self.networks.items():
            config = getattr(network, "config", None)
            most = getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None)
            if block is not None and most is not None and block > most:
                raise ConfigurationError(
                    f"block_size is {block} and the {name} has {most} positions: lower data.block_size, or raise the "
                    "model's"
                )
        words = getattr(getattr(self.trainer, "datamodule", None), "vocabulary_size", None)
        for name, network in self.networks.items():
            rows = getattr(getattr(network, "config", None), "vocab_size", None)
            if words is not None and rows is not None and rows < words:
                raise ConfigurationError(
                    f"the tokenizer has {words} tokens and the {name}'s vocab_size is {rows}: raise it to at least "
                    f"{words}"
                )

    def _resolve_terms(self: DistillModule) -> list[KnowledgeTerm]:  # type: ignore[misc]
        check_names(self._declared, ["task", *self.term_defaults()])
        terms = []
        for spec in self._declared:
            links = {learner: sources for learner, sources in self.links().items() if sources}
            if not links:
                raise ConfigurationError(
                    f"{spec.owner} needs somebody to learn from: {type(self).__name__} has no teacher"
                )
            for learner, sources in links.items():
                if "teacher" in sources and self.teacher is not None and "taps" not in self.teacher.provides:
                    raise ConfigurationError(
                        f"{spec.owner} reads tensors inside the teacher, and {type(self.teacher).__name__} provides "
                        f"{' and '.join(sorted(self.teacher.provides)) or 'targets'} only"
                    )
                key = spec.name if learner == "student" else f"{spec.name}_{learner}"
                pairs = {source: self._pairs(spec, learner, source) for source in sources}
                terms.append(KnowledgeTerm(spec, learner, pairs, key))
        return terms

    def _pairs(self: DistillModule, spec: TermSpec, learner: str, source: str) -> Sequence[TapPair]:  # type: ignore[misc]
        if not isinstance(spec.pairs, LayerPairs):
            return spec.pairs
        teacher = self.networks.get(source) or getattr(self.teacher, "network", None)
        if teacher is None:
            raise ConfigurationError(f"{spec.owner} pairs the layers of two networks, and the teacher is no single one")
        return spec.pairs.resolve(self.networks[learner], teacher)

    def _open_readers(self: DistillModule) -> None:  # type: ignore[misc]
        for reader in self._readers.values():
            reader.close()
        self._readers = {
            name: TapReader(network, [*self.own_taps(name), *taps_of(self._knowledge, name)], language=self.is_language)
            for name, network in self.networks.items()
        }
        if self.teacher is not None:
            taps = taps_of(self._knowledge, "teacher")
            self.teacher.prepare(taps, language=self.is_language, logits=self.reads_teacher_logits())

    def _probe(self: DistillModule) -> None:  # type: ignore[misc]
        batch = self.sample_batch()
        self._text_length = _text_length(batch.inputs)
        infos = {}
        for name, reader in self._readers.items():
            if reader.language:
                self._check_head(name, reader.model, batch.inputs)
            infos[name] = reader.probe(self.network_inputs(name, batch)) if reader.taps else {}
        if isinstance(self.teacher, NetworkTeacher) and self.teacher.reader.language:
            own = self.teacher.own_inputs(batch) if isinstance(self.teacher, FrozenTeacher) else teacher_inputs(batch)
            self._check_head("teacher", self.teacher.network, own)
        if self.teacher is not None and taps_of(self._knowledge, "teacher"):
            infos["teacher"] = self.teacher.probe(batch)
        for term in self._knowledge:
            for source in term.sources:
                term.infos[source] = [infos[source][pair.teacher] for pair in term.pairs[source]]
                read = infos[term.learner]
                term.infos[f"learner>{source}"] = [read[pair.student] for pair in term.pairs[source]]

    def network_inputs(self: DistillModule, network: str, batch: Batch) -> Any:  # type: ignore[misc]
        """What a network is called with, to take the shapes of its taps."""
        return batch.inputs

    def _check_head(self: DistillModule, name: str, model: nn.Module, inputs: Any) -> None:  # type: ignore[misc]
        with untouched(model):
            if not head_agrees(model, inputs):
                raise ConfigurationError(
                    f"{name}: {type(model).__name__} is no language model whose logits are a linear head on its last "
                    "hidden state"
                )

    def sample_batch(self: DistillModule, stage: str = "fit") -> Batch:  # type: ignore[misc]
        """Two samples, of training or of what is evaluated, taken without starting workers or drawing a sampler."""
        loader = self._loader_of(stage)
        dataset: Any = getattr(loader, "dataset", None)
        iterable = not hasattr(dataset, "__getitem__") or isinstance(dataset, IterableDataset)
        with restored_generators():
            if iterable or not hasattr(loader, "collate_fn"):
                raw = next(iter(loader))
            elif getattr(loader, "batch_sampler", None) is None:
                raw = loader.collate_fn(dataset[0])  # the data set gives whole batches
            else:
                rows = [0, min(1, len(dataset) - 1)]
                # As loaders do: texts of unequal length are padded by the data set, which gives them together.
                together = getattr(dataset, "__getitems__", None)
                raw = loader.collate_fn([dataset[row] for row in rows] if together is None else together(rows))
        first = next(self.student.parameters(), torch.zeros((), device=self.device))
        if first.dtype != torch.float32:  # an earlier run has brought the networks to its precision
            raw = self.trainer.precision_plugin.convert_input(raw)
        return self.task.batch(move_data_to_device(raw, first.device))


def _text_length(inputs: Any) -> int:
    """T of the `(B, T)` attention mask among the inputs, 0 without one."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.shape[1] if isinstance(mask, Tensor) and mask.ndim == 2 else 0


def _label_map(teacher: Any) -> tuple[int, ...] | None:
    found = getattr(teacher, "label_map", None)
    return None if found is None else tuple(found)
