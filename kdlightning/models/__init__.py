"""Networks: factories for timm and transformers, small networks of our own, and what a forward pass returns.

Every factory is a function that a configuration can name as `class_path`.
"""

from kdlightning.models.convnet import ConvNet
from kdlightning.models.factories import timm_model, transformers_model
from kdlightning.models.output import Head, ModelOutput
from kdlightning.models.weights import load_weights, read_weights

__all__ = ["ConvNet", "Head", "ModelOutput", "load_weights", "read_weights", "timm_model", "transformers_model"]
