"""SSD over a pack, and its single step, in Triton for CUDA and ROCm: forward only.

A chunk is a small forest that hangs from one entry token. With a = log exp(Δ A) summed along the path from the entry to
a token, and s running over the chunk's tokens on the path to q (s ≤ q < reach_s):

    y_q = exp(a_q) C_q · h_entry + Σ_s (C_q · B_s) exp(a_q − a_s) Δ_s x_s + D x_q
    h_m = exp(a_m) h_entry + Σ_s exp(a_m − a_s) Δ_s x_s B_sᵀ

States are computed only behind *ports*: tokens that are some chunk's entry, and last tokens of the segments of `keep`.
First come the sums a, then the states port by port (runs of ports that continue each other in one program), then the
products C_q · B_s, once for all heads that share B and C, then all y.

Glossary: t tokens of the row · h heads · p head size · n state · g groups that share B and C · m states kept · b rows
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from evalspec.plan.pack import Pack
from evalspec.ssm.kernels.packed import ports_on, power_of_two

CHUNK = 64  # longer chunks write fewer states and multiply larger matrices
TILE = 64  # tokens whose y a program computes, or whose products one for states adds
WARPS, OUTPUT_WARPS = 4, 4  # of the programs that find states, and of those that find scores and y


@cache
def _kernels() -> Any:
    """Triton is imported here and not above: the CPU build of torch comes without it."""
    import evalspec.ssm.kernels.ssd_triton_kernels as kernels

    return kernels


def ssd_packed_triton(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    pack: Pack,
    state: Tensor | None = None,
    chunk: int = CHUNK,
    tile: int = TILE,
    warps: int = WARPS,
    output_warps: int = OUTPUT_WARPS,
    stages: int = 1,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence along every path of the pack.

    Args: x (t, h, p) · delta (t, h) · A (h,), negative · B, C (t, g, n), g divides h · D (h,) · state (given, h, p, n),
        zeros if None. Rows of x, delta, B and C may lie apart (slices of a projection), their values must lie together.
    Returns: y (t, h, p) in x's dtype, and the states after the segments `pack.keep` (k, h, p, n) in float32.
    """
    tokens, heads, size = x.shape
    groups, n = B.shape[1:]
    for tensor in (x, delta, B, C):
        if tensor.stride(-1) != 1:
            raise ValueError("the values of a row must lie together")
    ports = ports_on(pack, chunk, x.device)
    A, D = A.float().contiguous(), D.float().contiguous()
    given = None if state is None else state.float().contiguous()
    y = x.new_empty(tokens, heads, size)
    scalars = torch.empty(3, heads, tokens, dtype=torch.float32, device=x.device)
    states = torch.empty(len(ports.port_token), heads, size, n, dtype=torch.float32, device=x.device)
    # Products of float32 take twice the registers and the local memory. (Triton's interpreter knows no others.)
    wide = x.dtype == torch.float32 or not x.is_cuda
    full = max(16, power_of_two(min(chunk, tokens)))
    tile = min(tile // 2 if wide else tile, full)
    p_block = max(16, min(32 if wide else 64, power_of_two(size)))
    n_block = max(16, min(32 if wide else 64, power_of_two(n)))
    p_blocks, n_blocks = -(-size // p_block), -(-n // n_block)
    scores = torch.empty(len(ports.start), groups, full, full, dtype=torch.float32, device=x.device)
    chunks, tiles, first = len(ports.start), full // tile, 0
    shape = (tokens, heads, heads // groups, size, n)
    with torch.cuda.device(x.device):
        _kernels().cumulative_kernel[(chunks * heads,)](
            delta, A, scalars, ports.start, ports.stop, ports.reach, tokens, heads, delta.stride(0),
            full, min(full, 16), num_warps=2,
        )  # fmt: skip
        for count in ports.levels:
            _kernels().state_kernel[(count * heads * p_blocks * n_blocks,)](
                x, B, scalars, given, states, ports.start, ports.source, ports.reach,
                ports.port_token, ports.port_chunk, ports.chain_port, ports.chain_start, ports.chain_stop, first,
                *shape, *x.stride()[:2], *B.stride()[:2],
                p_block, n_block, tile, wide, num_warps=warps, num_stages=stages,
            )  # fmt: skip
            first += count
        _kernels().scores_kernel[(chunks * groups * tiles,)](
            B, C, scores, ports.start, ports.stop, ports.reach, groups, n,
            *B.stride()[:2], *C.stride()[:2],
            tiles, tile, full, n_blocks * n_block, n_block, wide, num_warps=output_warps, num_stages=stages,
        )  # fmt: skip
        _kernels().output_kernel[(chunks * tiles * heads, p_blocks)](
            x, C, D, scalars, scores, given, states, y, ports.start, ports.stop, ports.source,
            *shape, *x.stride()[:2], *C.stride()[:2],
            tiles, tile, full, p_block, n_blocks * n_block, n_block, wide, num_warps=output_warps, num_stages=stages,
        )  # fmt: skip
    return y, states[: len(pack.keep)]


def ssd_step_triton(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    state: Tensor,
    block: int | None = None,
    warps: int = WARPS,
) -> Tensor:
    """One step of b rows; `state` (b, h, p, n), of any dtype, each row's values together, is updated in place.

    Args: x (b, h, p) · delta (b, h) · A (h,) · B, C (b, g, n) · D (h,). Returns: y (b, h, p) in x's dtype.
    """
    rows, heads, size = x.shape
    groups, n = B.shape[1:]
    if state.stride()[1:] != (size * n, n, 1) or any(tensor.stride(-1) != 1 for tensor in (x, delta, B, C)):
        raise ValueError("the values of a row must lie together")
    block = block or min(power_of_two(size), max(1, 4096 // power_of_two(n)))
    A, D = A.float().contiguous(), D.float().contiguous()
    y = x.new_empty(rows, heads, size)
    with torch.cuda.device(x.device):
        _kernels().step_kernel[(rows, heads, -(-size // block))](
            x, delta, A, B, C, D, state, y, heads, heads // groups, size, n,
            *x.stride()[:2], delta.stride(0), *B.stride()[:2], *C.stride()[:2], state.stride(0),
            block, power_of_two(n), num_warps=warps,
        )  # fmt: skip
    return y
