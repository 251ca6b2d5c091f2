"""Durable results: segments, tables, views, read-only SQL."""

from evalspec.store.formats import Table
from evalspec.store.query import query
from evalspec.store.segments import CommitError
from evalspec.store.store import SampleKey, Store
from evalspec.store.writer import RunWriter

__all__ = ["CommitError", "RunWriter", "SampleKey", "Store", "Table", "query"]
