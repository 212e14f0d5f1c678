"""Teachers: whoever supplies targets, one a file."""

from kdlightning.teachers.base import NetworkTeacher, SelfTeacher, Teacher, as_teacher, teacher_inputs
from kdlightning.teachers.byot import BYOT
from kdlightning.teachers.cskd import CSKD
from kdlightning.teachers.data_distortion import DataDistortion
from kdlightning.teachers.dlb import DLB
from kdlightning.teachers.ensemble import EnsembleTeacher
from kdlightning.teachers.frozen import FrozenTeacher
from kdlightning.teachers.mean_teacher import MeanTeacher
from kdlightning.teachers.pskd import PSKD
from kdlightning.teachers.teacher_free import TeacherFree
from kdlightning.teachers.uskd import USKD

__all__ = [
    "BYOT",
    "CSKD",
    "DLB",
    "PSKD",
    "USKD",
    "DataDistortion",
    "EnsembleTeacher",
    "FrozenTeacher",
    "MeanTeacher",
    "NetworkTeacher",
    "SelfTeacher",
    "Teacher",
    "TeacherFree",
    "as_teacher",
    "teacher_inputs",
]
