# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Triton kernels of the two RMSNorms around the mixers; `norms_triton` says what they compute and calls them."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def gated_kernel(x_ptr, z_ptr, weight_ptr, y_ptr, size, x_row, z_row, eps, BLOCK: tl.constexpr):
    """One row, held in registers as a whole."""
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    e_in = e < size
    x = tl.load(x_ptr + row * x_row + e, mask=e_in, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + row * z_row + e, mask=e_in, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + e, mask=e_in, other=0.0).to(tl.float32)
    gated = x * (z / (1.0 + tl.exp2(-z * LOG2_E)))
    scale = tl.rsqrt(tl.sum(gated * gated, axis=0) / size + eps)
    tl.store(y_ptr + row * size + e, (gated * scale * weight).to(y_ptr.dtype.element_ty), mask=e_in)


@triton.jit
def add_kernel(x_ptr, residual_ptr, weight_ptr, y_ptr, sum_ptr, size, x_row, residual_row, eps, BLOCK: tl.constexpr):
    """One row: the sum, stored and normed."""
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    e_in = e < size
    x = tl.load(x_ptr + row * x_row + e, mask=e_in, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + row * residual_row + e, mask=e_in, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + e, mask=e_in, other=0.0).to(tl.float32)
    total = (x + residual).to(sum_ptr.dtype.element_ty)  # what is normed is what is kept
    tl.store(sum_ptr + row * size + e, total, mask=e_in)
    total = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, axis=0) / size + eps)
    tl.store(y_ptr + row * size + e, (total * scale * weight).to(y_ptr.dtype.element_ty), mask=e_in)
