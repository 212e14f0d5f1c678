"""Smaller networks made of a trained one: fewer layers, units, heads, words."""

from kdlightning.models.shrink.budget import SizeBudget
from kdlightning.models.shrink.layers import chosen_layers
from kdlightning.models.shrink.student import student_from_teacher
from kdlightning.models.shrink.vocabulary import CutVocabulary

__all__ = ["SizeBudget", "CutVocabulary", "chosen_layers", "student_from_teacher"]
