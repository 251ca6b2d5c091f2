"""Durable results: segments, tables, views, read-only SQL."""
