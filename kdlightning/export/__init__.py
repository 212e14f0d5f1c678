"""The student alone, in a form that another library loads without kdlightning."""

from kdlightning.export.formats import FORMATS, is_timm, is_transformers, load_line
from kdlightning.export.inputs import input_shapes, made_up_inputs
from kdlightning.export.student import Exported, export_student

__all__ = [
    "FORMATS",
    "Exported",
    "export_student",
    "input_shapes",
    "is_timm",
    "is_transformers",
    "load_line",
    "made_up_inputs",
]
