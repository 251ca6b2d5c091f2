"""The five functions of mamba-ssm and causal-conv1d that evalspec calls, in plain PyTorch on any device.

Written after their signatures, documentation and checks (mamba-ssm 2.3.2.post1, causal-conv1d 1.6.2.post1): they assert
the dtypes, shapes and layouts that the real ones want, so that a call which passes here is one that theirs takes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalspec.ssm.kernels.mamba_ssm_kernels import adapted


def selective_scan_fn(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
) -> Any:  # fmt: skip
    """u, delta, z (r, e, l) · A (e, n) · B, C (r, n, l) · D, delta_bias (e,), from zero, with what theirs checks."""
    rows, _, length = u.shape
    assert u.dtype == delta.dtype == B.dtype == C.dtype == (u if z is None else z).dtype
    assert A.dtype == torch.float32 and (D is None or D.dtype == torch.float32)
    assert delta_bias is None or delta_bias.dtype == torch.float32
    assert delta.shape == u.shape and B.shape == C.shape == (rows, A.shape[1], length)
    step = delta.float() if delta_bias is None else delta.float() + delta_bias[:, None]
    step = F.softplus(step) if delta_softplus else step
    h, outputs = u.new_zeros(rows, *A.shape, dtype=torch.float32), []
    for t in range(length):
        h = torch.exp(step[..., t, None] * A) * h + (step * u)[..., t, None] * B[:, None, :, t].float()
        outputs.append((h * C[:, None, :, t].float()).sum(-1))
    y = torch.stack(outputs, dim=-1)
    y = y if D is None else y + D[:, None] * u
    y = (y if z is None else y * F.silu(z.float())).to(u.dtype)
    return (y, h) if return_last_state else y


def mamba_chunk_scan_combined(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None, cu_seqlens: Tensor | None = None, dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")), return_final_states: bool = False,
    return_varlen_states: bool = False,
) -> Any:  # fmt: skip
    """x (r, l, h, p) · dt (r, l, h) · A (h,) · B, C (r, l, g, n) · D (h,) · initial_states (r, h, p, n)."""
    assert z is dt_bias is seq_idx is cu_seqlens is None and not dt_softplus and not return_varlen_states
    rows, length, heads, size = x.shape
    groups, n = B.shape[2:]
    assert B.shape == C.shape == (rows, length, groups, n) and dt.shape == (rows, length, heads)
    assert A.shape == (heads,) and chunk_size & (chunk_size - 1) == 0
    assert initial_states is None or initial_states.shape == (rows, heads, size, n)
    h = x.new_zeros(rows, heads, size, n, dtype=torch.float32) if initial_states is None else initial_states.float()
    keys, queries = (tensor.float().repeat_interleave(heads // groups, dim=2) for tensor in (B, C))
    outputs = []
    for t in range(length):
        step = dt[:, t].float().clamp(*dt_limit)
        added = (step[..., None] * x[:, t].float())[..., None] * keys[:, t, :, None]
        h = torch.exp(step * A)[..., None, None] * h + added
        outputs.append((h * queries[:, t, :, None]).sum(-1))
    y = torch.stack(outputs, dim=1)
    y = (y if D is None else y + D[:, None] * x).to(x.dtype)
    return (y, h) if return_final_states else y


def selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, dt_bias: Tensor | None = None, dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """state (b, e, n) or (b, h, p, n), updated in place, and the others of as many axes; B, C (b, n) or (b, g, n)."""
    assert dt_bias is not None and D is not None, "theirs unpacks the strides of both"
    whole = state if state.ndim == 4 else state[:, None]
    x_, dt_, z_ = (t if t is None or t.ndim == 3 else t[:, None] for t in (x, dt, z))
    A_, (B_, C_) = A if A.ndim == 3 else A[None], (t if t.ndim == 3 else t[:, None] for t in (B, C))
    D_, bias = (t if t.ndim == 2 else t[None] for t in (D, dt_bias))
    _, heads, size, _ = whole.shape
    assert x_.shape == dt_.shape and A_.shape == whole.shape[1:] and D_.shape == bias.shape == (heads, size)
    step = dt_.float() + bias
    step = F.softplus(step) if dt_softplus else step
    keys, queries = (t.float().repeat_interleave(heads // t.shape[1], dim=1)[:, :, None] for t in (B_, C_))
    h = torch.exp(step[..., None] * A_) * whole.float() + (step * x_.float())[..., None] * keys
    whole.copy_(h)
    y = (h * queries).sum(-1) + D_ * x_.float()
    y = (y if z_ is None else y * F.silu(z_.float())).to(x.dtype)
    return y if state.ndim == 4 else y[:, 0]


def causal_conv1d_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None, return_final_states: bool = False, final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:  # fmt: skip
    """x (r, e, l) · weight (e, K) · initial_states (r, e, K−1); layouts as theirs wants them with initial states."""
    rows, channels, _ = x.shape
    width = weight.shape[1]
    assert 2 <= width <= 4 and channels % 8 == 0 and initial_states is not None
    assert x.stride(1) == 1 and x.stride(2) > 1 and x.stride(0) % 8 == x.stride(2) % 8 == 0
    assert initial_states.shape == (rows, channels, width - 1) and initial_states.stride(1) == 1
    assert initial_states.dtype == x.dtype and (bias is None or bias.dtype == weight.dtype)
    whole = torch.cat([initial_states, x], dim=2).float()
    y = (whole.unfold(2, width, 1) * weight[:, None].float()).sum(-1)
    y = y if bias is None else y + bias[:, None].float()
    return (F.silu(y) if activation else y).to(x.dtype)


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None,
    cache_seqlens: Tensor | None = None, conv_state_indices: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """x (b, e) · conv_state (b, e, K−1), updated in place."""
    assert conv_state.dtype == x.dtype and 2 <= weight.shape[1] <= 4
    whole = torch.cat([conv_state, x[..., None]], dim=2)
    conv_state.copy_(whole[..., 1:])
    y = (whole.float() * weight.float()).sum(-1) + (0.0 if bias is None else bias.float())
    return (F.silu(y) if activation else y).to(x.dtype)


STAND_INS = adapted(
    conv=causal_conv1d_fn,
    conv_update=causal_conv1d_update,
    scan=selective_scan_fn,
    state_update=selective_state_update,
    chunk_scan=mamba_chunk_scan_combined,
)
