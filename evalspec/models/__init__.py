"""What a model is before it runs: its files, tokenizer, abilities, cost and weight hash."""
