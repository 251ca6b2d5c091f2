"""vLLM's engine, started for a run in processes of its own."""
