"""Tasks of other harnesses, carried over as specs. Nothing of theirs is imported or run: their YAML is data here."""
