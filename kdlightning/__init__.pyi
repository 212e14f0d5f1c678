"""The lazy names, for editors and type checkers; tests/package keeps it equal to `_EXPORTS`."""

from kdlightning.callbacks import (
    BestCheckpoint as BestCheckpoint,
    ConfusionMatrix as ConfusionMatrix,
    FeatureKD as FeatureKD,
    LatestCheckpoint as LatestCheckpoint,
    RelationKD as RelationKD,
)
from kdlightning.data import (
    CIFAR10 as CIFAR10,
    CIFAR100 as CIFAR100,
    Digits as Digits,
    DistillDataModule as DistillDataModule,
    ImageFolder as ImageFolder,
    IndexedViews as IndexedViews,
    MNIST as MNIST,
    MNIST1D as MNIST1D,
    TextClassification as TextClassification,
    TextCorpus as TextCorpus,
    resumable as resumable,
)
from kdlightning.data.batch import (
    Batch as Batch,
    LoadedBatch as LoadedBatch,
)
from kdlightning.errors import (
    ConfigurationError as ConfigurationError,
    MissingExtraError as MissingExtraError,
    NonFiniteLossError as NonFiniteLossError,
)
from kdlightning.generation.sampler import (
    StudentSampler as StudentSampler,
)
from kdlightning.losses import (
    AT as AT,
    AttentionTransfer as AttentionTransfer,
    DKD as DKD,
    FeatureLoss as FeatureLoss,
    FitNet as FitNet,
    ForwardKL as ForwardKL,
    JensenShannon as JensenShannon,
    KD as KD,
    RKD as RKD,
    RelationLoss as RelationLoss,
    ResponseLoss as ResponseLoss,
    ReverseKL as ReverseKL,
    SP as SP,
)
from kdlightning.models import (
    ConvNet as ConvNet,
    Head as Head,
    ModelOutput as ModelOutput,
    timm_model as timm_model,
    transformers_model as transformers_model,
)
from kdlightning.modules import (
    DistillModule as DistillModule,
    DistillStep as DistillStep,
    GKD as GKD,
    OfflineDistillation as OfflineDistillation,
    OnPolicyDistillation as OnPolicyDistillation,
    OnlineDistillation as OnlineDistillation,
    SelfDistillation as SelfDistillation,
    load_student as load_student,
)
from kdlightning.schedules import (
    CosineSchedule as CosineSchedule,
    LinearSchedule as LinearSchedule,
    Schedule as Schedule,
    SigmoidRampUp as SigmoidRampUp,
)
from kdlightning.strategies import (
    DML as DML,
    OnlineStrategy as OnlineStrategy,
)
from kdlightning.tasks import (
    CausalLM as CausalLM,
    Classification as Classification,
    MultiLabel as MultiLabel,
    Regression as Regression,
    Task as Task,
)
from kdlightning.teachers import (
    FrozenTeacher as FrozenTeacher,
    MeanTeacher as MeanTeacher,
    PSKD as PSKD,
    SelfTeacher as SelfTeacher,
    Teacher as Teacher,
)

__version__: str
_EXPORTS: dict[str, tuple[str, ...]]
_HOME: dict[str, str]
