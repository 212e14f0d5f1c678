"""Callbacks: knowledge that is read from inside networks, and helpers that watch a run."""

if __name__ == "callbacks":
    raise ImportError("this folder is installed as kdlightning.callbacks: import kdlightning.callbacks")

from kdlightning.callbacks.checkpoints import BestCheckpoint, LatestCheckpoint
from kdlightning.callbacks.confusion_matrix import ConfusionMatrix
from kdlightning.callbacks.ema import EMA
from kdlightning.callbacks.feature_kd import FeatureKD
from kdlightning.callbacks.layer_kd import LayerKD
from kdlightning.callbacks.pair_consistency import PairConsistency
from kdlightning.callbacks.progressive_kd import ProgressiveKD
from kdlightning.callbacks.relation_kd import RelationKD

__all__ = [
    "EMA",
    "BestCheckpoint",
    "ConfusionMatrix",
    "FeatureKD",
    "LatestCheckpoint",
    "LayerKD",
    "PairConsistency",
    "ProgressiveKD",
    "RelationKD",
]
