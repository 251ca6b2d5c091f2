"""What all blocks of the language share: strict, frozen, no unknown keys, and errors that name a place within them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

NAME = r"^[A-Za-z][A-Za-z0-9_.-]*$"

Misfit = tuple[tuple[str | int, ...], str]


def misfits(found: Sequence[Misfit]) -> PydanticCustomError:
    """What a validator found wrong in its block: where in it (keys and indices), and what. All of it at once."""
    return PydanticCustomError("misfit", "{said}", {"said": "; ".join(said for _, said in found), "found": list(found)})


class Block(BaseModel):
    """Base of all blocks: unknown keys are errors, values are never converted and do not change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
