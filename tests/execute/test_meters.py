"""What vendors' libraries tell of energy comes out in joules, of the right GPU; what they cannot tell has a reason.

amdsmi needs an AMD GPU to be asked. Its answers here have the form that its own code (7.0.2) gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evalspec.execute.meters import (
    Counter,
    GpuMeters,
    amd_counter,
    amd_joules,
    energy_counter,
    energy_source,
    of_boards,
)  # fmt: skip


def amdsmi(counts: Mapping[str, int]) -> Any:
    """amdsmi on a machine with GPUs at these places, whose counters stand there; a count is a joule."""
    return SimpleNamespace(
        amdsmi_get_processor_handles=lambda: list(counts),
        amdsmi_get_gpu_device_bdf=lambda handle: handle,
        amdsmi_get_energy_count=lambda handle: {"energy_accumulator": counts[handle], "counter_resolution": 1e6},
    )


def test_counts_of_microjoules_are_joules() -> None:
    told = {"energy_accumulator": 2_000_000, "counter_resolution": 15.3, "timestamp": 1}
    assert amd_joules(told) == pytest.approx(30.6)
    assert amd_joules({"power": 1_000_000, "counter_resolution": 15.3}) == pytest.approx(15.3)  # before ROCm 6.4


def test_an_amd_gpu_is_found_by_its_place_on_the_bus_whatever_its_number() -> None:
    library = amdsmi({"0000:03:00.0": 1, "0000:c1:00.0": 2, "0001:C1:00.0": 3})
    assert amd_counter(library, 0, 0xC1, 0).read() == pytest.approx(2)
    assert amd_counter(library, 1, 0xC1, 0).read() == pytest.approx(3)
    with pytest.raises(LookupError, match="amdsmi knows no GPU at 0000:c2:00"):
        amd_counter(library, 0, 0xC2, 0)


def test_partitions_of_a_gpu_are_one_board_that_its_first_one_tells_of() -> None:
    library = amdsmi({"0000:03:00.1": 7, "0000:03:00.0": 5, "0000:c1:00.0": 2})
    partitions = [amd_counter(library, 0, 3, 0), amd_counter(library, 0, 3, 0)]
    assert [counter.read() for counter in of_boards(partitions)] == pytest.approx([5])
    assert sum(counter.read() for counter in of_boards([*partitions, amd_counter(library, 0, 0xC1, 0)])) == 7
    assert of_boards([*partitions, None]) == []


def test_the_gpu_of_an_mi250_that_does_not_count_has_no_counter() -> None:
    with pytest.raises(LookupError, match="0000:04:00 stands at 0"):
        amd_counter(amdsmi({"0000:03:00.0": 9, "0000:04:00.0": 0}), 0, 4, 0)


@pytest.mark.parametrize(("then", "told"), [(12.0, 2.0), (10.0, None), (3.0, None), (None, None)])
def test_a_counter_that_stands_still_goes_back_or_is_lost_tells_nothing(
    then: float | None, told: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = iter([10.0, then])

    def read() -> float:
        if (now := next(reads)) is None:
            raise RuntimeError("AMDSMI_STATUS_BUSY")
        return now

    monkeypatch.setattr("evalspec.execute.meters.energy_counter", lambda index: Counter("board", read))
    meters = GpuMeters([0])
    assert meters.joules_since(meters.joules(), 1.0) == told


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, which may tell")
def test_where_nothing_tells_there_is_a_reason() -> None:
    assert energy_counter(0) is None
    source, reason = energy_source(0)
    assert source == "NVML (nvidia-ml-py)"
    assert reason
