"""The transformers backend: any causal language model that transformers loads, and the ways in which it is forked."""
