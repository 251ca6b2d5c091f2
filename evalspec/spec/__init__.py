"""The language: YAML into validated blocks. Nothing here knows of torch."""
