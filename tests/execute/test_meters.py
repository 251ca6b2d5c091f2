"""What vendors' libraries tell of energy comes out in joules, of the right GPU; what they cannot tell has a reason.

amdsmi needs an AMD GPU to be asked. Its answers here have the form that its own code (7.0.2) gives them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evalspec.execute.meters import amd_handle, amd_joules, energy_counter, energy_source


def amdsmi(*places: str) -> Any:
    return SimpleNamespace(
        amdsmi_get_processor_handles=lambda: list(places), amdsmi_get_gpu_device_bdf=lambda handle: handle
    )


def test_counts_of_microjoules_are_joules() -> None:
    told = {"energy_accumulator": 2_000_000, "counter_resolution": 15.3, "timestamp": 1}
    assert amd_joules(told) == pytest.approx(30.6)
    assert amd_joules({"power": 1_000_000, "counter_resolution": 15.3}) == pytest.approx(15.3)  # before ROCm 6.4


def test_an_amd_gpu_is_found_by_its_place_on_the_bus_whatever_its_number() -> None:
    library = amdsmi("0000:03:00.0", "0000:c1:00.0", "0001:C1:00.0")
    assert amd_handle(library, 0, 0xC1, 0) == "0000:c1:00.0"
    assert amd_handle(library, 1, 0xC1, 0) == "0001:C1:00.0"
    with pytest.raises(LookupError, match="amdsmi knows no GPU at 0000:c2:00"):
        amd_handle(library, 0, 0xC2, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, which may tell")
def test_where_nothing_tells_there_is_a_reason() -> None:
    assert energy_counter(0) is None
    source, reason = energy_source(0)
    assert source == "NVML (nvidia-ml-py)"
    assert reason
