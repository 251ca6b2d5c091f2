"""Every Triton kernel compiles for the GPUs it is meant for, with no GPU at hand, and fits: no spills, LDS to spare.

`pytest -s` prints the table of registers, LDS and spills. The kernels are compiled in a process of their own, because
here Triton may already run as an interpreter.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from evalspec.execute.backends.tree_attention_triton import parts_of, shape_for

KERNELS = "evalspec.ssm.kernels."
TREE = "evalspec.execute.backends.tree_attention_triton_kernels"
MAMBA = {"channels": 16, "n_state": 16, "BLOCK": 32, "N": 16}
LDS_LIMIT = 64 * 1024
STATES: list[tuple[dict[str, str], str]] = [({}, ""), ({"state_ptr": "bf16"}, " bf16 states")]


@dataclass(frozen=True)
class Case:
    """A kernel and how it is called: types of its pointers, values of its constants; other arguments are integers."""

    module: str
    kernel: str
    pointers: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    any_integers: tuple[str, ...] = ()  # those that no one promises to be multiples of 16
    per_lane: int = 0  # if set: BLOCK is this many values a lane
    note: str = ""
    targets: tuple[str, ...] = ("gfx90a", "gfx942", "sm_90")
    options: dict[str, Any] = field(default_factory=dict)
    floats: tuple[str, ...] = ("eps",)


def cases() -> list[Case]:
    found = []
    for kind in ("bf16", "fp32", "fp16"):
        activations = dict.fromkeys(("x_ptr", "b_ptr", "c_ptr", "y_ptr", "z_ptr", "dy_ptr", "dx_ptr"), kind)
        scan = "selective_scan_packed_triton_kernels"
        found += [
            Case(
                scan, "packed_kernel",
                {**activations, **dict.fromkeys(("start_ptr", "length_ptr", "source_ptr", "slot_ptr"), "i32")},
                {"N": 16, "STEPS": 2, "EVEN_E": True, "EVEN_N": True, **without},
                warps=1, any_integers=("first",), per_lane=1, note=f"scan {kind}{' plain' if without else ''}",
            )
            for without in ({}, {"bias_ptr": None, "z_ptr": None, "given_ptr": None})
        ]  # fmt: skip
        found += [
            Case(
                scan, "step_kernel", activations | held, {"BLOCK": 32, "N": 16},
                warps=1, note=f"scan {kind}{said}",
            )
            for held, said in STATES
        ]  # fmt: skip
        conv = "causal_conv1d_triton_kernels"
        held = dict.fromkeys(("x_ptr", "y_ptr", "given_ptr", "window_ptr", "kept_ptr", "weight_ptr", "bias_ptr"), kind)
        indices = {"history_ptr": "i32"}
        tile = {"BLOCK": 128}
        found += [
            Case(
                conv, "packed_kernel", held | indices, {"WIDTH": 4, "TOKENS": 16, "SILU": True, **tile},
                any_integers=("tokens", "slots"), note=f"conv {kind}",
            ),
            Case(
                conv, "window_kernel", held | {"window_ptr": "i32"}, {"ROWS": 16, **tile},
                any_integers=("rows", "slots"), note=f"conv {kind}",
            ),
            Case(conv, "step_kernel", held, {"WIDTH": 4, "BLOCK": 512, "SILU": True}, note=f"conv {kind}"),
        ]  # fmt: skip
        ssd = "ssd_triton_kernels"
        narrow = kind != "fp32"
        block = 64 if narrow else 32
        indices = dict.fromkeys(("start_ptr", "stop_ptr", "source_ptr", "reach_ptr"), "i32")
        indices |= dict.fromkeys(("port_token_ptr", "port_chunk_ptr", "chain_port_ptr"), "i32")
        indices |= dict.fromkeys(("chain_start_ptr", "chain_stop_ptr"), "i32")
        tile = {"P": block, "PART": block, "WIDE": not narrow}
        held = activations | indices
        counts = ("tokens", "heads", "heads_a_group", "delta_row", "first")
        found += [
            Case(
                ssd, "cumulative_kernel", held | {"delta_ptr": "fp32"}, {"CHUNK": 64, "PART": 16},
                warps=2, any_integers=counts, note=f"ssd {kind}",
            ),
            Case(ssd, "state_kernel", held, {"N": block, **tile}, any_integers=counts, note=f"ssd {kind}"),
            Case(
                ssd, "output_kernel", held,
                tile | {"TILES": 64 // block, "Q": block, "PART": 32, "N": 128, "N_PART": block},
                warps=8, any_integers=counts, note=f"ssd {kind}",
            ),
            *(
                Case(
                    ssd, "step_kernel", held | states, {"P": 32, "N": 128}, any_integers=counts,
                    note=f"ssd {kind}{said}",
                )
                for states, said in STATES
            ),
        ]  # fmt: skip
        norms = "norms_triton_kernels"
        rows = dict.fromkeys(("x_ptr", "z_ptr", "y_ptr", "weight_ptr"), kind)
        found += [
            Case(norms, "gated_kernel", rows, {"BLOCK": 8192}, warps=16, note=kind),
            Case(norms, "add_kernel", rows, {"BLOCK": 4096}, warps=8, note=kind),
        ]
    for kind in ("bf16", "fp32"):
        activations = dict.fromkeys(("x_ptr", "b_ptr", "c_ptr", "y_ptr", "dy_ptr", "dx_ptr"), kind)
        train = "selective_scan_triton_kernels"
        found += [
            Case(
                train,
                "forward_kernel",
                activations,
                {"BLOCK": 32, "N": 16, "KEEP": True},
                warps=1,
                note=f"training {kind}",
            ),
            Case(train, "backward_kernel", activations, {"BLOCK": 32, "N": 16}, warps=1, note=f"training {kind}"),
        ]
    for kind, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for size in (80, 128):
            for rich in (False, True):  # with a window, capped scores and sinks
                found += [tree_case(kind, dtype, size, rich, amd) for amd in (False, True)]
    return found


def tree_case(kind: str, dtype: torch.dtype, size: int, rich: bool, amd: bool) -> Case:
    names = ("query", "keys", "values", "past_keys", "past_values", "output")
    pointers = dict.fromkeys((f"{name}_ptr" for name in names), kind)
    pointers |= dict.fromkeys(("seen_ptr", "item_ptr", "tile_ptr"), "i32")
    main, rest = parts_of(size)
    shape = shape_for(size, dtype, amd, plain=not rich)
    constants = {"D": size, "D_MAIN": main, "D_REST": rest, "V": size, "V_MAIN": main, "V_REST": rest}
    constants |= {"ROWS": shape.rows, "COLUMNS": shape.columns, "WIDE": kind == "fp32"}
    if not rich:
        constants |= dict.fromkeys(("sinks_ptr", "softcap", "window"))
    return Case(
        TREE, "tree_kernel", pointers, constants, warps=shape.warps,
        any_integers=("heads", "heads_a_group", "tokens", "before", "places", "window"), floats=("scale", "softcap"),
        options={"num_stages": shape.stages}, note=f"tree {kind} {size}{' rich' if rich else ''}",
        targets=tuple(target for target, (backend, *_) in TARGETS.items() if amd == (backend == "hip")),
    )  # fmt: skip


TARGETS = {"gfx90a": ("hip", "gfx90a", 64), "gfx942": ("hip", "gfx942", 64), "sm_90": ("cuda", 90, 32)}


def compile_case(case: Case, target: str) -> dict[str, Any]:
    """Registers, spills and shared memory of one kernel on one target."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(case.module if "." in case.module else KERNELS + case.module), case.kernel)
    lanes = TARGETS[target][2]
    constants = dict(case.constants)
    if case.per_lane:
        constants["BLOCK"] = lanes * case.warps * case.per_lane
    names = list(inspect.signature(kernel.fn).parameters)
    unaligned = {parameter.name for parameter in kernel.params if parameter.do_not_specialize_on_alignment}
    signature, aligned = {}, {}
    for place, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = "*" + case.pointers.get(name, "fp32") if name.endswith("_ptr") else "i32"
        if name in case.floats:
            signature[name] = "fp32"
        elif name not in unaligned and name not in case.any_integers:
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": case.warps, "num_stages": 1, **case.options}
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    facts = {"kernel": case.kernel, "note": case.note, "target": target, "lds": compiled.metadata.shared}
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        stated = {key: int(value) for key, value in re.findall(r"\.(\w+(?:_count|_size)):\s+(\d+)", text)}
        return facts | {
            "registers": stated["vgpr_count"],
            "spills": stated["vgpr_spill_count"] + stated["sgpr_spill_count"],
            "lds": max(facts["lds"], stated["group_segment_fixed_size"]),
        }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(compiled.asm["ptx"])
        (chip,) = re.findall(r"^\.target (\w+)", compiled.asm["ptx"], re.MULTILINE)
        command = [get_ptxas(90).path, "-v", "--gpu-name", chip, "kernel.ptx", "-o", "kernel.cubin"]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    (registers,) = re.findall(r"Used (\d+) registers", said)
    return facts | {"registers": int(registers), "spills": sum(map(int, spilled))}


@pytest.fixture(scope="module")
def table() -> list[dict[str, Any]]:
    pytest.importorskip("triton.language", reason="triton is not installed (CPU builds of torch come without it)")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    rows: list[dict[str, Any]] = json.loads(run.stdout.splitlines()[-1])
    print(f"\n{'kernel':28} {'case':24} {'target':8} {'registers':>9} {'LDS':>7} {'spills':>6}")
    for row in rows:
        print("{kernel:28} {note:24} {target:8} {registers:9} {lds:7} {spills:6}".format(**row))
    return rows


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_without_spills_and_fits_the_local_memory(
    table: list[dict[str, Any]], target: str
) -> None:
    rows = [row for row in table if row["target"] == target]
    assert len(rows) == sum(target in case.targets for case in cases())
    assert [row for row in rows if row["spills"] or row["lds"] > LDS_LIMIT] == []


if __name__ == "__main__":
    print(json.dumps([compile_case(case, target) for case in cases() for target in case.targets]))
