"""mamba-ssm's and causal-conv1d's kernels under the signatures of our own, for packs and any starting state.

They know rows of one length, and their selective scan starts from zero. So a pack goes through them level by level, its
segments padded on the right to rows of like length (`batches_on`), with Δ = 0 behind a row's end, which leaves a state
as it is. A row of the scan that continues a state h runs from zero, and what h adds is added behind it, exactly:

    y_t += C_t · (exp(A Σ_{s ≤ t} Δ_s) ⊙ h)        h_last += exp(A Σ Δ_s) ⊙ h

(Linear in the state: D x_t is part of neither sum, and the gate multiplies both, so it comes after.)

Each function takes theirs as `fn`: these need a GPU, what is done around them does not. Written for mamba-ssm
2.3.2.post1 (Apache-2.0) and causal-conv1d 1.6.2.post1 (BSD-3-Clause); nothing of theirs is copied here.

Glossary: t tokens · e channels · n state · h heads · p head size · g groups · r rows · l their length · K conv width
m segments whose last state is needed (`Pack.ends`) · b rows of one token
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.choice import Kernels
from evalspec.ssm.kernels.packed import Batches, Rows, batches_on, history_on, window_on
from evalspec.ssm.state import kept

MOST_ROWS = 256  # of one call: theirs write a state in float32 for each row and chunk, 2.6 MB in Mamba2-2.7b
CHUNK, SHORT_CHUNK = 256, 64  # tokens of SSD's chunks: two sizes, since Triton tunes itself anew for each
NO_STEP = -10_000.0  # softplus of this is 0 in float32, whatever the bias, and float16 holds it

Function = Callable[..., Any]


def load_mamba_ssm() -> Kernels:
    """The installed packages' kernels. ImportError if one is missing, or was built for another torch or GPU driver.

    Triton would multiply float32 as TF32 on NVIDIA GPUs, in SSD, and answers would change; bfloat16 is as it was.
    """
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # read when a kernel is compiled: at its first call
    from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return adapted(
        conv=causal_conv1d_fn,
        conv_update=causal_conv1d_update,
        scan=selective_scan_fn,
        state_update=selective_state_update,
        chunk_scan=mamba_chunk_scan_combined,
        version=", ".join(f"{name} {metadata.version(name)}" for name in ("mamba-ssm", "causal-conv1d")),
    )


def adapted(
    *,
    conv: Function,
    conv_update: Function,
    scan: Function,
    state_update: Function,
    chunk_scan: Function,
    version: str = "",
) -> Kernels:
    """Kernels made of functions with the signatures of the five that `load_mamba_ssm` imports."""
    return Kernels(
        partial(causal_conv1d_mamba_ssm, fn=conv),
        partial(causal_conv1d_step_mamba_ssm, fn=conv_update),
        partial(selective_scan_mamba_ssm, fn=scan),
        partial(selective_scan_step_mamba_ssm, fn=state_update),
        partial(ssd_mamba_ssm, fn=chunk_scan),
        partial(ssd_step_mamba_ssm, fn=state_update),
        version,
    )


def causal_conv1d_mamba_ssm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pack: Pack,
    state: Tensor | None = None,
    silu: bool = False,
    fn: Function,
) -> tuple[Tensor, Tensor]:
    """As `causal_conv1d_packed_triton`; theirs wants K from 2 to 4 and a number of channels that 8 divides.

    A segment's initial state is its last K − 1 inputs before it, wherever they stand: no level waits for another.
    """
    before = weight.shape[1] - 1
    past = x.new_zeros(pack.given * before, x.shape[1]) if state is None else state.to(x.dtype).flatten(0, 1)
    inputs = torch.cat([past, x])
    history, window = history_on(pack, before, x.device), window_on(pack, before, x.device)
    batches = batches_on(pack, MOST_ROWS, x.device)
    found = []
    for rows in batches.rows:
        first = inputs[history[rows.token[:, 0]]]  # r, K−1, e
        # r, e, l with the channels together in memory: with initial states theirs takes no other layout.
        y = fn(
            x[rows.token].transpose(1, 2),
            weight,
            bias,
            initial_states=first.transpose(1, 2),
            activation="silu" if silu else None,
        )
        found.append(y.transpose(1, 2))
    return _in_order(found, batches), inputs[window]


def causal_conv1d_step_mamba_ssm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, state: Tensor, silu: bool = False, fn: Function
) -> Tensor:
    """As `causal_conv1d_step_triton`; the state (b, K−1, e) has x's dtype."""
    y: Tensor = fn(x, state.transpose(1, 2), weight, bias, "silu" if silu else None)
    return y


def selective_scan_mamba_ssm(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    pack: Pack,
    state: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    fn: Function,
) -> tuple[Tensor, Tensor]:
    """As `selective_scan_packed_triton`. Theirs wants x, Δ, B, C and z in one dtype, the wider of x's and Δ's here."""
    batches = batches_on(pack, MOST_ROWS, x.device)
    dtype = torch.promote_types(x.dtype, delta.dtype)
    A, D = A.float().contiguous(), D.float()
    bias = None if delta_bias is None else delta_bias.float()
    states = _states(pack, state, x, A.shape)
    found = []
    for rows in batches.rows:
        values, steps, keys, queries = (_along(tensor, rows, dtype) for tensor in (x, delta, B, C))
        steps = steps.masked_fill(~rows.real[:, None], 0.0 if bias is None else NO_STEP)
        gate = None if z is None else _along(z, rows, dtype)
        before = None if state is None and rows.roots else states[rows.source]  # r, e, n
        y, last = fn(
            values,
            steps,
            A,
            keys,
            queries,
            D=D,
            z=gate if before is None else None,
            delta_bias=bias,
            delta_softplus=bias is not None,
            return_last_state=True,
        )
        if before is not None:
            wide = steps.float() if bias is None else F.softplus(steps.float() + bias[:, None])
            total = wide.cumsum(-1)
            y = y.float() + _carried(total, A, queries.float(), before)
            last = torch.addcmul(last, torch.exp(total[..., -1:] * A), before)
            if gate is not None:
                y = y * F.silu(gate.float())
        states[rows.slot] = last[rows.ending]
        found.append(y.to(x.dtype).transpose(1, 2))
    return _in_order(found, batches), states[pack.given :]


def _carried(total: Tensor, A: Tensor, C: Tensor, before: Tensor) -> Tensor:
    """C_t · (exp(A ΣΔ) ⊙ h): total (r, e, l), C (r, n, l), before (r, e, n) → (r, e, l). One n after another, since all
    at once would be n times as large as anything else here."""
    y = torch.zeros_like(total)
    for i in range(A.shape[1]):
        decayed = (total * A[:, i, None]).exp_().mul_(C[:, None, i])
        y.addcmul_(decayed, before[..., i, None])
    return y


def selective_scan_step_mamba_ssm(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    state: Tensor,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    fn: Function,
) -> Tensor:
    """As `selective_scan_step_triton`."""
    # Theirs fails where there is no bias.
    bias = A.new_zeros(len(A)) if delta_bias is None else delta_bias
    y: Tensor = fn(state, x, delta, A, B, C, D=D, z=z, dt_bias=bias, dt_softplus=delta_bias is not None)
    return y


def ssd_mamba_ssm(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    pack: Pack,
    state: Tensor | None = None,
    fn: Function,
) -> tuple[Tensor, Tensor]:
    """As `ssd_packed_triton`. Theirs passes states between its chunks in x's dtype."""
    batches = batches_on(pack, MOST_ROWS, x.device)
    A, D = A.float(), D.float()
    states = _states(pack, state, x, (*x.shape[1:], B.shape[2]))
    found = []
    for rows in batches.rows:
        steps = delta.float()[rows.token].masked_fill(~rows.real[..., None], 0.0)
        y, last = fn(
            x[rows.token],
            steps,
            A,
            B[rows.token],
            C[rows.token],
            CHUNK if rows.token.shape[1] > SHORT_CHUNK else SHORT_CHUNK,
            D=D,
            initial_states=None if state is None and rows.roots else states[rows.source],
            return_final_states=True,
        )
        states[rows.slot] = last[rows.ending].float()
        found.append(y)
    return _in_order(found, batches), kept(states[pack.given :], pack)


def ssd_step_mamba_ssm(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, state: Tensor, fn: Function
) -> Tensor:
    """As `ssd_step_triton`. Values that are equal within a head are views of one, by which theirs knows Mamba-2."""
    _, heads, size = x.shape
    n = B.shape[2]
    y: Tensor = fn(
        state,
        x,
        delta[..., None].expand(-1, -1, size),
        A[:, None, None].expand(-1, size, n),
        B,
        C,
        D=D[:, None].expand(-1, size),
        dt_bias=A.new_zeros(heads, 1).expand(-1, size),  # theirs fails where there is none
    )
    return y


def _along(tensor: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """A pack's values (t, e) as rows with time innermost in memory, (r, e, l), as their scan reads them."""
    return tensor[rows.token].to(dtype).transpose(1, 2).contiguous()


def _states(pack: Pack, state: Tensor | None, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Room for the given states and those of the pack's `ends`, float32, the given ones in their places."""
    states = torch.empty(pack.given + len(pack.ends), *shape, dtype=torch.float32, device=x.device)
    if state is not None:
        states[: pack.given] = state
    return states


def _in_order(found: list[Tensor], batches: Batches) -> Tensor:
    """What each batch gave, (r, l, …), as the pack's tokens (t, …)."""
    return torch.cat([y.flatten(0, 1) for y in found])[batches.order]
