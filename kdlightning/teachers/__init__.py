"""Teachers: whoever supplies targets, one a file."""

from kdlightning.teachers.base import NetworkTeacher, SelfTeacher, Teacher, as_teacher, teacher_inputs
from kdlightning.teachers.ensemble import EnsembleTeacher
from kdlightning.teachers.frozen import FrozenTeacher
from kdlightning.teachers.mean_teacher import MeanTeacher
from kdlightning.teachers.pskd import PSKD

__all__ = [
    "PSKD",
    "EnsembleTeacher",
    "FrozenTeacher",
    "MeanTeacher",
    "NetworkTeacher",
    "SelfTeacher",
    "Teacher",
    "as_teacher",
    "teacher_inputs",
]
