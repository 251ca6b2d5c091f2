"""Results that do not depend on what else stands in a batch: not on its size, its order, a cut, or the workers.

Libraries choose how to compute by the shape of what they are given, so that a token's vector comes out with other last
digits in another batch (He and Thinking Machines Lab, "Defeating Nondeterminism in LLM Inference", 2025). Three
measures prevent it:

- a product with weights, or a mean or norm of a token's vector, has **one shape**: `ROWS` tokens at a time, the last
  of them padded;
- attention, whose sums fall into parts as the batch does, is computed in **float64** and rounded to the model's
  precision afterwards (`tree_layout.Scoring.dtype`). Other parts differ by 1e-16 of the numbers, which rounding hides
  but for about one number in 10⁷ of float32. A state-space model's recurrence goes token after token instead, which
  cuts nothing (`ssd_serial`, and Mamba's scan as it is);
- in float64 are also the activation functions that a CPU computes by one formula for numbers that fill its vectors,
  and by another for those left over.

All else treats each token alone. That this holds for a model, where it runs, is tried out to the last bit when it is
opened (`transformers.tree.tokens_meet`, `NativeBackend`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

ROWS = {"cpu": 64, "cuda": 256}
"""Tokens in a product. More of them are padding while few sequences decode; fewer leave a processor idle."""

aten = torch.ops.aten
CURVES = (aten.silu.default, aten.gelu.default, aten.sigmoid.default, aten.softplus.default)


def in_blocks(product: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """`product` (n, k) → (n, m), of so many tokens at a time that each call has the same shape."""
    count = ROWS[tokens.device.type]
    blocks = []
    for begin in range(0, max(1, len(tokens)), count):
        block = tokens[begin : begin + count]
        blocks.append(product(functional.pad(block, (0, 0, 0, count - len(block)))))
    return (torch.cat(blocks) if len(blocks) > 1 else blocks[0])[: len(tokens)]


def _each(product: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """`product` of each token: (…, k) → (…, m)."""
    found = in_blocks(product, tokens.reshape(-1, tokens.shape[-1]))
    return found.view(*tokens.shape[:-1], found.shape[-1])


def products(invariant: bool) -> AbstractContextManager[Any]:
    """Within it a model is run: as it is, or batch-invariant."""
    return Invariant() if invariant else nullcontext()  # type: ignore[no-untyped-call]


class Invariant(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, products of tokens (…, k) with weights (k, m), means and norms are computed `in_blocks`, and curves in
    float64."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        by_token = (
            func is aten.linear.default
            or (func is aten.matmul.default and args[1].ndim == 2)
            or (func is aten.mean.dim and list(args[1:]) == [[-1], True])
            or (func is aten.linalg_vector_norm.default and list(args[2:]) == [[-1], True])
        )
        if by_token:
            return _each(lambda block: func(block, *args[1:], **named), args[0])
        if func is aten.mm.default:
            return in_blocks(lambda block: func(block, args[1]), args[0])
        if func is aten.addmm.default and args[0].ndim == 1:  # (m,) is a bias; (n, m) would be cut as the tokens are
            return in_blocks(lambda block: func(args[0], block, args[2], **named), args[1])
        if func in CURVES and args[0].device.type == "cpu":
            return func(args[0].double(), *args[1:], **named).to(args[0].dtype)
        return func(*args, **named)
