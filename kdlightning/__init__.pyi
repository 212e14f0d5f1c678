"""The lazy names, for editors and type checkers; tests/package keeps it equal to `_EXPORTS`."""

from kdlightning.blackbox.answer_only import (
    AnswerOnly as AnswerOnly,
)
from kdlightning.blackbox.cot.fine_tune_cot import (
    FineTuneCoT as FineTuneCoT,
)
from kdlightning.blackbox.data import (
    BlackBoxData as BlackBoxData,
)
from kdlightning.callbacks import (
    EMA as EMA,
)
from kdlightning.callbacks import (
    BestCheckpoint as BestCheckpoint,
)
from kdlightning.callbacks import (
    ConfusionMatrix as ConfusionMatrix,
)
from kdlightning.callbacks import (
    FeatureKD as FeatureKD,
)
from kdlightning.callbacks import (
    LatestCheckpoint as LatestCheckpoint,
)
from kdlightning.callbacks import (
    RelationKD as RelationKD,
)
from kdlightning.data import (
    CIFAR10 as CIFAR10,
)
from kdlightning.data import (
    CIFAR100 as CIFAR100,
)
from kdlightning.data import (
    MNIST as MNIST,
)
from kdlightning.data import (
    MNIST1D as MNIST1D,
)
from kdlightning.data import (
    Digits as Digits,
)
from kdlightning.data import (
    DistillDataModule as DistillDataModule,
)
from kdlightning.data import (
    ImageFolder as ImageFolder,
)
from kdlightning.data import (
    IndexedViews as IndexedViews,
)
from kdlightning.data import (
    TextClassification as TextClassification,
)
from kdlightning.data import (
    TextCorpus as TextCorpus,
)
from kdlightning.data import (
    resumable as resumable,
)
from kdlightning.data.batch import (
    Batch as Batch,
)
from kdlightning.data.batch import (
    LoadedBatch as LoadedBatch,
)
from kdlightning.errors import (
    ConfigurationError as ConfigurationError,
)
from kdlightning.errors import (
    MissingExtraError as MissingExtraError,
)
from kdlightning.errors import (
    NonFiniteLossError as NonFiniteLossError,
)
from kdlightning.generation.recorded import (
    RecordedGenerator as RecordedGenerator,
)
from kdlightning.generation.sampler import (
    StudentSampler as StudentSampler,
)
from kdlightning.generation.store import (
    CompletionStore as CompletionStore,
)
from kdlightning.generation.transformers import (
    TransformersGenerator as TransformersGenerator,
)
from kdlightning.losses import (
    AT as AT,
)
from kdlightning.losses import (
    DKD as DKD,
)
from kdlightning.losses import (
    KD as KD,
)
from kdlightning.losses import (
    RKD as RKD,
)
from kdlightning.losses import (
    SP as SP,
)
from kdlightning.losses import (
    AttentionTransfer as AttentionTransfer,
)
from kdlightning.losses import (
    FeatureLoss as FeatureLoss,
)
from kdlightning.losses import (
    FitNet as FitNet,
)
from kdlightning.losses import (
    ForwardKL as ForwardKL,
)
from kdlightning.losses import (
    JensenShannon as JensenShannon,
)
from kdlightning.losses import (
    RelationLoss as RelationLoss,
)
from kdlightning.losses import (
    ResponseLoss as ResponseLoss,
)
from kdlightning.losses import (
    ReverseKL as ReverseKL,
)
from kdlightning.models import (
    ConvNet as ConvNet,
)
from kdlightning.models import (
    Head as Head,
)
from kdlightning.models import (
    ModelOutput as ModelOutput,
)
from kdlightning.models import (
    timm_model as timm_model,
)
from kdlightning.models import (
    transformers_model as transformers_model,
)
from kdlightning.modules import (
    GKD as GKD,
)
from kdlightning.modules import (
    DistillModule as DistillModule,
)
from kdlightning.modules import (
    DistillStep as DistillStep,
)
from kdlightning.modules import (
    OfflineDistillation as OfflineDistillation,
)
from kdlightning.modules import (
    OnlineDistillation as OnlineDistillation,
)
from kdlightning.modules import (
    OnPolicyDistillation as OnPolicyDistillation,
)
from kdlightning.modules import (
    SelfDistillation as SelfDistillation,
)
from kdlightning.modules import (
    load_student as load_student,
)
from kdlightning.modules.black_box import (
    BlackBoxDistillation as BlackBoxDistillation,
)
from kdlightning.schedules import (
    CosineSchedule as CosineSchedule,
)
from kdlightning.schedules import (
    LinearSchedule as LinearSchedule,
)
from kdlightning.schedules import (
    Schedule as Schedule,
)
from kdlightning.schedules import (
    SigmoidRampUp as SigmoidRampUp,
)
from kdlightning.strategies import (
    DML as DML,
)
from kdlightning.strategies import (
    OnlineStrategy as OnlineStrategy,
)
from kdlightning.tasks import (
    CausalLM as CausalLM,
)
from kdlightning.tasks import (
    Classification as Classification,
)
from kdlightning.tasks import (
    MultiLabel as MultiLabel,
)
from kdlightning.tasks import (
    Regression as Regression,
)
from kdlightning.tasks import (
    Task as Task,
)
from kdlightning.teachers import (
    PSKD as PSKD,
)
from kdlightning.teachers import (
    FrozenTeacher as FrozenTeacher,
)
from kdlightning.teachers import (
    MeanTeacher as MeanTeacher,
)
from kdlightning.teachers import (
    SelfTeacher as SelfTeacher,
)
from kdlightning.teachers import (
    Teacher as Teacher,
)

__version__: str
_EXPORTS: dict[str, tuple[str, ...]]
_HOME: dict[str, str]
