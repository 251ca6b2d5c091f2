"""The backends: what really feeds tokens to a model."""
