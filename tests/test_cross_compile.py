"""Every Triton kernel compiles for the GPUs it is meant for, with no GPU at hand, and fits: no spills, LDS to spare.

On AMD's data-centre GPUs a wavefront has 64 lanes: the assembly is read for that, too (docs/rocm.md says what follows).
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
AMD = ("gfx90a", "gfx942")
ROOT = Path(__file__).parents[1]
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
        whole = {"TILES": 64 // block, "Q": block, "CHUNK": 64, "N": 128, "N_PART": block, "WIDE": not narrow}
        held = activations | indices
        counts = ("tokens", "heads", "heads_a_group", "delta_row", "first")
        found += [
            Case(
                ssd, "cumulative_kernel", held | {"delta_ptr": "fp32"}, {"CHUNK": 64, "PART": 16},
                warps=2, any_integers=counts, note=f"ssd {kind}",
            ),
            Case(ssd, "state_kernel", held, {"N": block, **tile}, any_integers=counts, note=f"ssd {kind}"),
            Case(ssd, "scores_kernel", held, whole, any_integers=("groups",), note=f"ssd {kind}"),
            Case(ssd, "output_kernel", held, whole | {"P": block}, any_integers=counts, note=f"ssd {kind}"),
            Case(
                "ssd_serial_triton_kernels", "serial_kernel", held | {"delta_ptr": "fp32", "slot_ptr": "i32"}
                | {"length_ptr": "i32"}, {"P": 32, "N": 128}, any_integers=counts, note=f"ssd {kind}",
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
        for size in (64, 80, 128, 256):
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


ACROSS_LANES = r"\b(?:ds_\w*permute\w*|ds_swizzle\w*|v_permlane\w*|\w+_dpp|s_barrier|ds_(?:read|write)\w*)\b"
"""Instructions by which lanes hand values to each other, or wait for each other."""

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
            "scratch": stated["private_segment_fixed_size"],
            "wavefront": stated["wavefront_size"],
            "workgroup": stated["max_flat_workgroup_size"],
            "warps": case.warps,
            "across": len(re.findall(ACROSS_LANES, text)),
            "matrix": len(re.findall(r"\bv_mfma_", text)),
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
    columns = ("registers", "lds", "spills", "workgroup", "across", "matrix")
    print(f"\n{'kernel':18} {'case':24} {'target':8}", *(f"{name:>9}" for name in columns))
    for row in rows:
        facts = (f"{row.get(name, ''):>9}" for name in columns)
        print("{kernel:18} {note:24} {target:8}".format(**row), *facts)
    return rows


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_without_spills_and_fits_the_local_memory(
    table: list[dict[str, Any]], target: str
) -> None:
    rows = [row for row in table if row["target"] == target]
    assert len(rows) == sum(target in case.targets for case in cases())
    assert [row for row in rows if row["spills"] or row["lds"] > LDS_LIMIT] == []


def test_every_kernel_of_the_project_is_among_them() -> None:
    pytest.importorskip("triton.language", reason="triton is not installed (CPU builds of torch come without it)")
    found = set()
    for path in (ROOT / "evalspec").rglob("*_triton_kernels.py"):
        text = path.read_text(encoding="utf-8")
        found |= {(path.stem, name) for name in re.findall(r"^@triton\.jit.*?\ndef (\w+_kernel)\(", text, re.MULTILINE)}
    assert found
    assert found == {(case.module.rpartition(".")[2], case.kernel) for case in cases()}


@pytest.mark.parametrize("target", AMD)
def test_a_wavefront_has_64_lanes_and_a_workgroup_no_more_than_1024(table: list[dict[str, Any]], target: str) -> None:
    for row in (row for row in table if row["target"] == target):
        assert row["wavefront"] == 64, row
        assert row["workgroup"] == 64 * row["warps"] <= 1024, row
        assert row["scratch"] == 0, row  # nothing lives in memory that should live in registers


@pytest.mark.parametrize("target", AMD)
def test_in_the_scan_no_lane_needs_another(table: list[dict[str, Any]], target: str) -> None:
    """A block is as wide as the program's lanes, 64 a warp here: each lane sums its own channel's n values."""
    rows = [row for row in table if row["target"] == target and row["note"].startswith("scan")]
    packed = [row for row in rows if row["kernel"] == "packed_kernel"]
    assert len(packed) == 6
    assert [row for row in packed if row["across"] or row["lds"]] == []


@pytest.mark.parametrize("target", AMD)
def test_products_run_on_matrix_units_in_every_precision(table: list[dict[str, Any]], target: str) -> None:
    kernels = ("tree_kernel", "state_kernel", "output_kernel")
    rows = [row for row in table if row["target"] == target and row["kernel"] in kernels]
    assert {row["kernel"] for row in rows} == set(kernels)
    assert [row for row in rows if not row["matrix"]] == []


def test_norms_of_any_width_ask_for_no_more_than_a_workgroup_of_64_lane_wavefronts() -> None:
    from evalspec.ssm.kernels.norms_triton import _warps

    assert all(64 * _warps(1 << exponent) <= 1024 for exponent in range(18))


if __name__ == "__main__":
    print(json.dumps([compile_case(case, target) for case in cases() for target in case.targets]))
