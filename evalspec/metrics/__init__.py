"""Outputs into scores, scores into aggregates with intervals."""
