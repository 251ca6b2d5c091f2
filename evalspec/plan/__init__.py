"""Cells and samples into requests, requests into a prefix forest, with its price."""
