"""The trained models and heads that ship with the package, and what they were trained on."""

from jspec.formats.folder import ZOO
from jspec.formats.folder import ZOO_MODELS as MODELS
from jspec.formats.folder import ZOO_NAMES as NAMES
from jspec.formats.folder import zoo_folder as folder

__all__ = ["MODELS", "NAMES", "ZOO", "folder"]
