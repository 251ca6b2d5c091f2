"""The measure block: how fast and how large each model is when it runs alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from evalspec.spec.base import Block, Misfit, misfits

Length = Annotated[int, Field(ge=1)]


class MeasureBlock(Block):
    """How fast and how large each model is when it runs alone: nothing shared, nothing else in its batches."""

    lengths: list[Length] = Field(min_length=1)
    """Contexts to measure at, in tokens. What a model cannot hold is left out, with the reason."""
    kinds: list[Literal["prefill", "decode", "throughput"]] = Field(
        default=["prefill", "decode", "throughput"], min_length=1
    )
    """`prefill`: feeding a context up to its first new token. `decode`: new tokens after a context. `throughput`: both,
    from prompts to finished answers."""
    batch_sizes: list[Length] = Field(default=[1], min_length=1)
    """Sequences at a time, for decode and throughput; prefill is measured one sequence at a time."""
    batch_lengths: list[Length] | None = None
    """Contexts of throughput, and of decode at more than one sequence; by default all of `lengths`."""
    new_tokens: int = Field(default=32, ge=1)
    """How many tokens decode and throughput generate for each sequence."""
    repeats: int = Field(default=6, ge=1)
    """How often each is timed. With fewer than 6 no interval of a median reaches 95 %, and the report says so."""
    warmup: int = Field(default=1, ge=1)
    """How often each is run beforehand without being stored."""
    seed: int = 0
    """Seed of the random tokens that are fed."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads, the same for every model. By default what OMP_NUM_THREADS says, else one if all models are small
    (under 5 million parameters), else all cores."""
    models: list[str] | None = None
    """Which models; by default all."""

    @model_validator(mode="after")
    def _each_once(self) -> MeasureBlock:
        lists = {
            name: getattr(self, name) or [] for name in ("lengths", "kinds", "batch_sizes", "batch_lengths", "models")
        }
        found: list[Misfit] = [
            ((name, index), f"stands twice: {value}")
            for name, values in lists.items()
            for index, value in enumerate(values)
            if value in values[:index]
        ]
        if found:
            raise misfits(found)
        return self
