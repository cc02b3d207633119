"""Limits, fit checks and measurements behind the book Bandwidth Decides."""

from nbutils.errors import NbutilsError

__version__ = "0.1.0"
__all__ = ["NbutilsError", "__version__"]
