"""State-space models and their kernels, each beside the mathematics that it must equal."""
