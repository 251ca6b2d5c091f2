"""Attention over a forest: each token attends to its own path, and no key or value stands anywhere twice.

A pack's attention falls into the parts of `tree_layout`, and the parts of a row are merged by their log-sum-exp
(Juravsky et al., Hydragen, arXiv 2402.05099): with part i's output o_i and ℓ_i = log Σ exp(score), ℓ = log Σ exp ℓ_i
and o = Σ exp(ℓ_i − ℓ) o_i. On a GPU with Triton, a pack's attention is one launch instead (`tree_attention_triton`).

Glossary: H heads · t, s rows and columns · D head size · a head of queries reads key head ⌊head · H_kv / H⌋
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from evalspec.execute.backends.tree_attention_triton import tree_attention_triton
from evalspec.execute.backends.tree_layout import FAR, Layout, Scoring


def attend(
    query: Tensor, keys: Tensor, values: Tensor, past: tuple[Tensor, Tensor] | None, layout: Layout, scoring: Scoring
) -> Tensor:
    """The attention of a pack's tokens.

    Args: query (H, t, D) · keys, values (H_kv, t, D) of the pack · past, keys and values (H_kv, s, D) of the columns
        before it.
    Returns: (H, t, D).
    """
    given, (query, keys, values) = query.dtype, in_precision(scoring, query, keys, values)
    past = past and (past[0].to(query.dtype), past[1].to(query.dtype))
    # Keys and values of different size: the kernel came out wrong on an H200 for some (96 and 16, say).
    narrow = query.dtype != torch.float64
    if query.is_cuda and narrow and query.shape[-1] == values.shape[-1] and _triton_is_here():
        return tree_attention_triton(query, keys, values, past, layout, scoring)
    output = torch.empty(*query.shape[:2], values.shape[-1], dtype=query.dtype, device=query.device)
    total = torch.empty(query.shape[:2], dtype=_wide(query.dtype), device=query.device)  # log-sum-exp
    position = layout.position
    for begin, end in layout.trunks:
        rows = slice(begin, end)
        q, k, v = (tensor[None, :, rows] for tensor in (query, keys, values))
        near = beyond(scoring.window, position[rows], position[rows])
        if near is not None:
            near = near.masked_fill(torch.ones_like(near, dtype=torch.bool).triu(1), FAR)
        o, its = part_of(q, k, v, scoring, mask=near, causal=near is None)
        output[:, rows], total[:, rows] = o[0], its[0]
    for units in layout.units:
        shape, flat = units.token.shape, units.token.flatten()
        q, k, v = (torch.unflatten(tensor[:, flat], 1, shape).transpose(0, 1) for tensor in (query, keys, values))
        mask = units.before
        if scoring.window is not None and shape[1] > scoring.window:
            places = position[units.token]
            mask = mask.masked_fill((places[:, :, None] - places[:, None] >= scoring.window)[:, None], FAR)
        o, its = part_of(q, k, v, scoring, mask=mask)
        flat = flat[units.flat]
        output[:, flat] = o.transpose(0, 1).flatten(1, 2)[:, units.flat]
        total[:, flat] = its.transpose(0, 1).flatten(1, 2)[:, units.flat]
    for rectangle in layout.rectangles:
        k, v = (keys, values) if rectangle.own else past  # type: ignore[misc]
        rows, columns = slice(*rectangle.rows), slice(*rectangle.columns)
        theirs = (position if rectangle.own else layout.past_position)[columns]
        near = beyond(scoring.window, position[rows], theirs)
        o, its = part_of(query[None, :, rows], k[None, :, columns], v[None, :, columns], scoring, mask=near)
        merge(output[:, rows], total[:, rows], o[0], its[0])
    return with_sinks(output, total, scoring).to(given)


@cache
def _triton_is_here() -> bool:
    """The CPU build of torch comes without it."""
    return find_spec("triton") is not None


def beyond(window: int | None, rows: Tensor, columns: Tensor) -> Tensor | None:
    """FAR where a column stands `window` or more positions before a row: (1, 1, t, s), or None if none does."""
    if window is None or int(rows.max() - columns.min()) < window:
        return None
    distance = rows[:, None] - columns
    return torch.zeros(distance.shape, device=rows.device).masked_fill_(distance >= window, FAR)[None, None]


def in_precision(scoring: Scoring, *tensors: Tensor) -> tuple[Tensor, ...]:
    """These in the precision that attention is computed in."""
    return tuple(tensor.to(scoring.dtype or tensor.dtype) for tensor in tensors)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of sums over what is `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def with_sinks(output: Tensor, total: Tensor, scoring: Scoring) -> Tensor:
    """The output after each head's sink, if it has one, took its share of the softmax."""
    if scoring.sinks is None:
        return output
    sinks = scoring.sinks.to(total.dtype)[:, None]
    return output * (total - torch.logaddexp(total, sinks)).exp()[..., None].to(output.dtype)


def merge(output: Tensor, total: Tensor, other: Tensor, its_total: Tensor) -> None:
    """Join a further part into `output` (…, t, D) and its log-sum-exp `total` (…, t), in place."""
    joint = torch.logaddexp(total, its_total)
    output.mul_((total - joint).exp_()[..., None].to(output.dtype))
    output.addcmul_(other, (its_total - joint).exp_()[..., None].to(output.dtype))
    total.copy_(joint)


def part_of(
    query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring, *, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Softmax attention and its log-sum-exp, by the fused kernels behind scaled_dot_product_attention where they serve.

    Args: query (n, H, t, D) · keys, values (n, H_kv, s, D) · mask (n or 1, 1, t, s), added to the scores.
    Returns: output (n, H, t, D) in query's dtype, log-sum-exp (n, H, t), at least float32.
    """
    device, aten = query.device.type, torch.ops.aten
    groups = query.shape[1] // keys.shape[1]
    # CUDA's kernel that gives the log-sum-exp fails at some masks (and what it gives on ROCm differs by version).
    on_cuda = device == "cuda" and torch.version.hip is None and mask is None and query.dtype != torch.float64
    fused = query.shape[-1] == values.shape[-1] and (device == "cpu" or on_cuda)
    if scoring.softcap is not None or not fused or not keys.shape[2]:
        return _plain(query, keys, values, scoring, mask, causal)
    if groups > 1:
        keys, values = (tensor.repeat_interleave(groups, dim=1) for tensor in (keys, values))
    if device == "cpu":
        if mask is not None:
            mask = mask.to(query.dtype).expand(query.shape[0], 1, -1, -1)
        output, total = aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, causal, attn_mask=mask, scale=scoring.scale
        )
        return output, total
    if query.shape[-1] % 8:
        return _plain(query, keys, values, scoring, mask, causal)
    output, total, _, _ = aten._scaled_dot_product_efficient_attention(
        query.contiguous(), keys.contiguous(), values.contiguous(), None, True, 0.0, causal, scale=scoring.scale
    )
    return output, total[:, :, : query.shape[2]]


def _plain(
    query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    """The same by two products, in float32 or float64: with capped scores, cap · tanh(score / cap), and where no kernel
    is sure."""
    n, heads, rows, size = query.shape
    # Heads that read the same keys become rows of one product: no key is copied for each.
    wide = _wide(query.dtype)
    queries = query.to(wide).reshape(n, keys.shape[1], -1, size)
    scores = torch.matmul(queries, keys.to(wide).transpose(-1, -2)).reshape(n, heads, rows, -1) * scoring.scale
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    if mask is not None:
        scores = scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1), FAR)
    total = scores.logsumexp(-1)
    weights = (scores - total[..., None]).exp().reshape(n, keys.shape[1], -1, keys.shape[2])
    output = torch.matmul(weights, values.to(wide)).reshape(n, heads, rows, -1)
    return output.to(query.dtype), total
