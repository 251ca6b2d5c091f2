"""Rows into prompts, prompts into token ids."""
