"""Tasks: what a loader's batch and a network's output mean."""

from kdlightning.tasks.base import Task
from kdlightning.tasks.causal_lm import CausalLM
from kdlightning.tasks.classification import Classification
from kdlightning.tasks.masked_lm import MaskedLM
from kdlightning.tasks.multi_label import MultiLabel
from kdlightning.tasks.passage_retrieval import PassageRetrieval
from kdlightning.tasks.regression import Regression
from kdlightning.tasks.reranking import Reranking
from kdlightning.tasks.segmentation import Segmentation
from kdlightning.tasks.sentence_embedding import SentenceEmbedding
from kdlightning.tasks.sentence_similarity import SentenceSimilarity
from kdlightning.tasks.seq2seq_lm import Seq2SeqLM
from kdlightning.tasks.token_classification import TokenClassification
from kdlightning.tasks.unlabelled import Unlabelled

__all__ = [
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
]
