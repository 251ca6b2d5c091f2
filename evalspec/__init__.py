"""Declarative evaluation of state-space models and Transformers."""

__version__ = "0.1.0"
