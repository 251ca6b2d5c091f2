"""The language: YAML into validated blocks and cells. Nothing here knows of torch."""

from evalspec.spec.cells import Cell
from evalspec.spec.loading import LoadedSpec, load, loads

__all__ = ["Cell", "LoadedSpec", "load", "loads"]
