"""Data: DataModules, one a file, and loaders whose every batch is a function of seed, epoch and number."""

from kdlightning.data.base import DistillDataModule
from kdlightning.data.batch import Batch, LoadedBatch
from kdlightning.data.cifar import CIFAR10, CIFAR100
from kdlightning.data.digit_scenes import DigitScenes
from kdlightning.data.digits import Digits
from kdlightning.data.image_folder import ImageFolder
from kdlightning.data.loader import ResumableLoader, resumable
from kdlightning.data.masked_text import MaskedText
from kdlightning.data.mnist import MNIST
from kdlightning.data.mnist1d import MNIST1D
from kdlightning.data.tagged_text import TaggedText
from kdlightning.data.text_classification import TextClassification
from kdlightning.data.text_corpus import TextCorpus
from kdlightning.data.text_groups import TextGroups
from kdlightning.data.views import IndexedViews
from kdlightning.data.word_replacement import WordReplacement

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "MNIST1D",
    "Batch",
    "DigitScenes",
    "Digits",
    "DistillDataModule",
    "ImageFolder",
    "IndexedViews",
    "LoadedBatch",
    "MaskedText",
    "ResumableLoader",
    "TaggedText",
    "TextClassification",
    "TextCorpus",
    "WordReplacement",
    "TextGroups",
    "resumable",
]
