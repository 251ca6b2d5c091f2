"""A run from its plan to its report: the only room that knows all the others."""
