"""Knowledge distillation on PyTorch Lightning.

Names are imported when they are first used, so that `import kdlightning` loads neither torch nor Lightning.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_EXPORTS: dict[str, tuple[str, ...]] = {
    "kdlightning.modules": (
        "DistillModule",
        "DistillStep",
        "GKD",
        "OfflineDistillation",
        "OnPolicyDistillation",
        "OnlineDistillation",
        "SelfDistillation",
        "load_student",
    ),
    "kdlightning.tasks": (
        "CausalLM",
        "Classification",
        "MaskedLM",
        "MultiLabel",
        "PassageRetrieval",
        "Regression",
        "Reranking",
        "Segmentation",
        "SentenceEmbedding",
        "SentenceSimilarity",
        "Seq2SeqLM",
        "Task",
        "TokenClassification",
        "Unlabelled",
    ),
    "kdlightning.teachers": (
        "BYOT",
        "CSKD",
        "DLB",
        "DataDistortion",
        "EnsembleTeacher",
        "FrozenTeacher",
        "MeanTeacher",
        "PSKD",
        "SelfTeacher",
        "Teacher",
        "TeacherFree",
        "USKD",
    ),
    "kdlightning.strategies": (
        "BranchStrategy",
        "CLILR",
        "Codistillation",
        "DML",
        "JointTraining",
        "KDCL",
        "OKDDip",
        "ONE",
        "OnlineStrategy",
    ),
    "kdlightning.losses": (
        "AB",
        "AT",
        "ActivationBoundary",
        "AttentionTransfer",
        "CATKD",
        "CC",
        "CTKD",
        "CWD",
        "CosineEmbedding",
        "DIST",
        "DKD",
        "DistillationToken",
        "FSP",
        "FT",
        "FactorTransfer",
        "FeatureLoss",
        "FitNet",
        "ForwardKL",
        "HardLabelKD",
        "IRG",
        "JensenShannon",
        "KD",
        "KDSVD",
        "LogitMSE",
        "MGD",
        "MLKD",
        "MarginMSE",
        "MiniLM",
        "MiniLMRelation",
        "MobileBERTTransfer",
        "MultiLabelKD",
        "NKD",
        "NST",
        "OFD",
        "PKT",
        "Paraphraser",
        "PatientKD",
        "PearsonKD",
        "RKD",
        "QueueSoftmax",
        "CRD",
        "RelationLoss",
        "ResponseLoss",
        "ReverseKL",
        "ReviewKD",
        "SP",
        "SRRL",
        "SimKD",
        "SoftCrossEntropy",
        "TinyBERTAttention",
        "TinyBERTHidden",
        "VID",
        "WSLD",
    ),
    "kdlightning.callbacks": (
        "BestCheckpoint",
        "ConfusionMatrix",
        "EMA",
        "FeatureKD",
        "LatestCheckpoint",
        "LayerKD",
        "ProgressiveKD",
        "RelationKD",
    ),
    "kdlightning.data": (
        "CIFAR10",
        "CIFAR100",
        "DigitScenes",
        "Digits",
        "DistillDataModule",
        "ImageFolder",
        "IndexedViews",
        "MNIST",
        "MNIST1D",
        "MaskedText",
        "TaggedText",
        "TextClassification",
        "TextCorpus",
        "TextGroups",
        "WordReplacement",
        "resumable",
    ),
    "kdlightning.data.batch": ("Batch", "LoadedBatch"),
    "kdlightning.models": (
        "CifarMobileNetV2",
        "CifarResNet",
        "CifarShuffleNetV1",
        "CifarShuffleNetV2",
        "CifarVGG",
        "CifarWideResNet",
        "ConvNet",
        "CutVocabulary",
        "Ensemble",
        "Head",
        "ModelOutput",
        "ProjectedStudent",
        "ResNet1d",
        "SegmentationNet",
        "SentenceEncoder",
        "SizeBudget",
        "cifar_model",
        "sentence_encoder",
        "started_from",
        "student_from_teacher",
        "timm_model",
        "transformers_model",
    ),
    "kdlightning.text.smaller_vocabulary": ("cut_tokenizer",),
    "kdlightning.schedules": ("CosineSchedule", "LinearSchedule", "Schedule", "SigmoidRampUp", "StepSchedule"),
    "kdlightning.generation.sampler": ("StudentSampler",),
    "kdlightning.generation.pair_scorer": ("PairScorer",),
    "kdlightning.generation.base": ("Request", "Sampling", "TextGenerator"),
    "kdlightning.generation.budget": ("Budget", "BudgetSpentError"),
    "kdlightning.generation.engine": ("Engine",),
    "kdlightning.generation.openai": ("OpenAIGenerator",),
    "kdlightning.generation.recorded": ("RecordedGenerator",),
    "kdlightning.generation.transformers": ("TransformersGenerator",),
    "kdlightning.generation.store": ("CompletionStore",),
    "kdlightning.modules.black_box": ("BlackBoxDistillation",),
    "kdlightning.blackbox.data": ("BlackBoxData",),
    "kdlightning.blackbox.answer_only": ("AnswerOnly",),
    "kdlightning.blackbox.cot.fine_tune_cot": ("FineTuneCoT",),
    "kdlightning.blackbox.cot.mt_cot": ("MTCoT",),
    "kdlightning.blackbox.cot.distilling_step_by_step": ("DistillingStepByStep",),
    "kdlightning.blackbox.instruction.hard_instructions": ("HardInstructions",),
    "kdlightning.blackbox.instruction.instruction_following": ("InstructionFollowing",),
    "kdlightning.blackbox.cot.rationalization": ("Rationalization",),
    "kdlightning.blackbox.cot.scott": ("SCOTT",),
    "kdlightning.blackbox.cot.socratic_cot": ("SocraticCoT",),
    "kdlightning.blackbox.cot.disco": ("DISCO",),
    "kdlightning.blackbox.cot.disco_data": ("CounterfactualData",),
    "kdlightning.blackbox.cot.disco_filters": ("DiscoHeuristics",),
    "kdlightning.blackbox.icl.in_context_distillation": ("InContextDistillation",),
    "kdlightning.probe": ("knn_probe", "linear_probe"),
    "kdlightning.errors": ("ConfigurationError", "MissingExtraError", "NonFiniteLossError"),
}

_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_ROOT = Path(__file__).resolve().parent.parent
_MAPPED = {f"{__name__}.{folder}": _ROOT / folder for folder in ("callbacks", "configs")}


class _SourceTree:
    """Finds the two mapped folders in a checkout that is not installed."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        folder = _MAPPED.get(name)
        if folder is None or not (folder / "__init__.py").exists():
            return None
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


if not (Path(__file__).parent / "callbacks").exists():
    sys.meta_path.append(_SourceTree)  # type: ignore[arg-type]
