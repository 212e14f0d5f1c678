"""Networks: factories for timm, transformers and CIFAR networks, small ones of our own, what a forward pass returns.

Every factory is a function that a configuration can name as `class_path`.
"""

from kdlightning.models.cifar import (
    CifarMobileNetV2,
    CifarResNet,
    CifarShuffleNetV1,
    CifarShuffleNetV2,
    CifarVGG,
    CifarWideResNet,
    cifar_model,
)
from kdlightning.models.convnet import ConvNet
from kdlightning.models.ensemble import Ensemble
from kdlightning.models.factories import started_from, timm_model, transformers_model
from kdlightning.models.output import Head, ModelOutput
from kdlightning.models.projected import ProjectedStudent
from kdlightning.models.resnet1d import ResNet1d
from kdlightning.models.segmentation_net import SegmentationNet
from kdlightning.models.sentence_encoder import SentenceEncoder, sentence_encoder
from kdlightning.models.shrink import CutVocabulary, SizeBudget, student_from_teacher
from kdlightning.models.weights import load_weights, read_weights

__all__ = [
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
    "load_weights",
    "read_weights",
    "sentence_encoder",
    "started_from",
    "student_from_teacher",
    "timm_model",
    "transformers_model",
]
