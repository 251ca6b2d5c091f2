"""Passages for each row."""
