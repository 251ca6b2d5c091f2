"""Passages for each row."""

from evalspec.retrieval import bm25, dense, fusion, none, oracle  # noqa: F401  (each enters itself into RETRIEVERS)
from evalspec.retrieval.chunk import chunked
from evalspec.retrieval.passages import RETRIEVERS, Hit, Passage, Query, Retriever, Settings
from evalspec.retrieval.retrieve import retrieve, search

__all__ = ["RETRIEVERS", "Hit", "Passage", "Query", "Retriever", "Settings", "chunked", "retrieve", "search"]
