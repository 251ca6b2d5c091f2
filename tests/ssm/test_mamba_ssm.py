"""mamba-ssm's and causal-conv1d's kernels, brought to packs and starting states, equal the recurrences path by path.

Each test runs twice: with stand-ins, which do on any device what those functions' documentation and checks say, so that
the padding, the levels and the identity for starting states are held everywhere; and with the installed packages, where
there is a GPU to run them on.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evalspec.execute.backends.native import NativeBackend
from evalspec.execute.protocols import Span
from evalspec.models.card import zoo_folder
from evalspec.plan.pack import Pack
from evalspec.ssm import checkpoints
from evalspec.ssm.kernels.causal_conv1d import causal_conv1d
from evalspec.ssm.kernels.choice import Kernels
from evalspec.ssm.kernels.mamba_ssm_kernels import NO_STEP, load_mamba_ssm
from evalspec.ssm.kernels.packed import batches_on
from evalspec.ssm.state import LayerState, RecurrentState
from tests.ssm.mamba_ssm_stand_ins import STAND_INS
from tests.ssm.packs import PACKS, few_shot, random_pack
from tests.ssm.test_kernels import along_paths, close, mamba, mamba2

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INSTALLED = torch.cuda.is_available() and all(map(importlib.util.find_spec, ("mamba_ssm", "causal_conv1d")))
LOOSE = {
    "stand-ins": {torch.float32: 1e-5, torch.bfloat16: 2e-2},
    "installed": {torch.float32: 1e-4, torch.bfloat16: 2e-2},
}
SUMS = 2e-3  # in float32: their SSD subtracts sums of log decays, which lose digits where decays are strong


@pytest.fixture(params=["stand-ins", "installed"])
def origin(request: pytest.FixtureRequest) -> str:
    if request.param == "installed" and not INSTALLED:
        pytest.skip("needs a GPU, mamba-ssm and causal-conv1d")
    return str(request.param)


@pytest.fixture
def kernels(origin: str) -> Kernels:
    return load_mamba_ssm() if origin == "installed" else STAND_INS


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def scan_inputs(pack: Pack, dtype: torch.dtype, strength: float = 1.0) -> dict[str, Tensor]:
    """e 24, n 16, with decays from hardly any to total."""
    torch.manual_seed(pack.tokens)
    t = pack.tokens
    return {
        "x": draw(t, 24, dtype=dtype), "delta": (F.softplus(draw(t, 24) * 3) * strength).to(dtype),
        "A": -torch.exp(draw(24, 16) * 2), "B": draw(t, 16, dtype=dtype), "C": draw(t, 16, dtype=dtype),
        "D": draw(24), "state": draw(pack.given, 24, 16),
    }  # fmt: skip


def ssd_inputs(pack: Pack, dtype: torch.dtype, strength: float = 1.0) -> dict[str, Tensor]:
    """h 4 in 2 groups, p 16, n 16."""
    torch.manual_seed(pack.tokens)
    t = pack.tokens
    return {
        "x": draw(t, 4, 16, dtype=dtype), "delta": F.softplus(draw(t, 4) * 3) * strength,
        "A": -torch.exp(draw(4) * 2), "B": draw(t, 2, 16, dtype=dtype), "C": draw(t, 2, 16, dtype=dtype),
        "D": draw(4), "state": draw(pack.given, 4, 16, 16),
    }  # fmt: skip


@pytest.mark.parametrize("most", [1, 3, 256])
@pytest.mark.parametrize("name", PACKS)
def test_batches_hold_each_token_once_parents_first_and_little_padding(name: str, most: int) -> None:
    pack = PACKS[name]
    batches = batches_on(pack, most, torch.device("cpu"))
    known = set(range(pack.given))
    places: list[Tensor] = []
    for rows in batches.rows:
        assert len(rows.token) <= most
        assert set(rows.source.tolist()) <= known
        assert rows.roots == bool((rows.source < pack.given).all())
        length = rows.real.sum(1)
        assert int(length.min()) * 2 >= rows.token.shape[1] == int(length.max())
        assert bool((rows.real == (torch.arange(rows.token.shape[1]) < length[:, None])).all())
        known.update(rows.slot.tolist())
        places.append(rows.token.masked_fill(~rows.real, -1).flatten())
    assert known == set(range(pack.given + len(pack.ends)))
    assert torch.equal(torch.cat(places)[batches.order], torch.arange(pack.tokens))
    assert int((torch.cat(places) >= 0).sum()) == pack.tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PACKS)
def test_the_scan_equals_the_recurrence_along_each_path(
    name: str, dtype: torch.dtype, kernels: Kernels, origin: str
) -> None:
    pack, loose = PACKS[name], LOOSE[origin][dtype]
    inputs = scan_inputs(pack, dtype)
    truth = along_paths(mamba, inputs, pack)
    y, ends = kernels.scan(**inputs, pack=pack)
    assert (y.dtype, ends.dtype) == (dtype, torch.float32)
    close((y, ends), truth, loose)
    nothing = {**inputs, "state": torch.zeros_like(inputs["state"])}
    close(kernels.scan(**{**inputs, "state": None}, pack=pack), along_paths(mamba, nothing, pack), loose)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("started", [False, True])
def test_the_scans_softplus_and_gate_are_parts_of_it(
    started: bool, dtype: torch.dtype, kernels: Kernels, origin: str
) -> None:
    pack = random_pack(30)
    inputs = scan_inputs(pack, dtype)
    inputs["delta"], bias, z = draw(pack.tokens, 24, dtype=dtype), draw(24), draw(pack.tokens, 24, dtype=dtype)
    if not started:
        inputs["state"].zero_()
    step = F.softplus(inputs["delta"].float() + bias)
    y, ends = along_paths(mamba, {**inputs, "delta": step}, pack)
    asked = inputs if started else {**inputs, "state": None}
    found = kernels.scan(**asked, pack=pack, z=z, delta_bias=bias)
    close(found, (y * F.silu(z.double()), ends), LOOSE[origin][dtype])


def test_padding_takes_no_step() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert F.softplus(torch.tensor(NO_STEP, dtype=dtype).float() + 100.0).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PACKS)
def test_ssd_equals_the_recurrence_along_each_path(
    name: str, dtype: torch.dtype, kernels: Kernels, origin: str
) -> None:
    pack = PACKS[name]
    loose = LOOSE[origin][dtype] if origin == "stand-ins" else max(SUMS, LOOSE[origin][dtype])
    inputs = ssd_inputs(pack, dtype)
    y, ends = kernels.ssd(**inputs, pack=pack)
    assert (y.dtype, ends.dtype) == (dtype, torch.float32)
    close((y, ends), along_paths(mamba2, inputs, pack), loose)
    nothing = {**inputs, "state": torch.zeros_like(inputs["state"])}
    close(kernels.ssd(**{**inputs, "state": None}, pack=pack), along_paths(mamba2, nothing, pack), loose)


@pytest.mark.parametrize("strength", [1e-4, 100.0])
def test_decays_of_any_strength_stay_exact_and_finite(strength: float, kernels: Kernels, origin: str) -> None:
    for pack in (PACKS["one segment"], few_shot(70, 3)):
        inputs = scan_inputs(pack, torch.float32, strength)
        close(kernels.scan(**inputs, pack=pack), along_paths(mamba, inputs, pack), LOOSE[origin][torch.float32])
        inputs = ssd_inputs(pack, torch.float32, strength)
        found = kernels.ssd(**inputs, pack=pack)
        assert all(bool(part.isfinite().all()) for part in found)
        # Theirs subtracts sums of log decays in float32: where they are large, differences lose their digits.
        if origin == "stand-ins" or strength < 1:
            close(found, along_paths(mamba2, inputs, pack), 1e-5 if origin == "stand-ins" else SUMS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "silu"), [(2, False), (3, True), (4, True)])
@pytest.mark.parametrize("name", PACKS)
def test_the_convolution_equals_the_plain_one(
    name: str, width: int, silu: bool, dtype: torch.dtype, kernels: Kernels, origin: str
) -> None:
    pack = PACKS[name]
    torch.manual_seed(0)
    x = draw(pack.tokens, 24, dtype=dtype)[:, :16]  # a slice of a projection
    weight, bias = draw(16, width, dtype=dtype), draw(16, dtype=dtype)
    for state in (draw(pack.given, width - 1, 16, dtype=dtype), None):
        before = torch.zeros(pack.given, width - 1, 16, device=DEVICE) if state is None else state.float()
        y, window = causal_conv1d(x.float(), weight.float(), bias.float(), pack=pack, state=before)
        found, kept = kernels.convolve(x, weight, bias, pack=pack, state=state, silu=silu)
        assert found.dtype == dtype
        close((found, kept), (F.silu(y) if silu else y, window), LOOSE[origin][dtype])


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_equal_segments_of_one_token(
    dtype: torch.dtype, kept: torch.dtype, kernels: Kernels, origin: str
) -> None:
    """States in bfloat16 are read as they are, and what is written into them is rounded."""
    pack = Pack.of_rows(5, 1)
    loose = LOOSE[origin][dtype]
    after = max(loose, 0.0 if kept == torch.float32 else 4e-3)
    inputs = scan_inputs(pack, dtype)
    inputs["delta"], bias, z = draw(5, 24, dtype=dtype), draw(24), draw(5, 24, dtype=dtype)
    state = inputs["state"] = inputs["state"].to(kept)
    y, ends = along_paths(mamba, {**inputs, "delta": F.softplus(inputs["delta"].float() + bias)}, pack)
    found = kernels.scan_step(**inputs, z=z, delta_bias=bias)
    close((found,), (y * F.silu(z.double()),), loose)
    close((state,), (ends,), after)
    inputs = scan_inputs(pack, dtype)
    y, _ = along_paths(mamba, inputs, pack)
    close((kernels.scan_step(**inputs),), (y,), loose)

    inputs = ssd_inputs(pack, dtype)
    state = inputs["state"] = inputs["state"].to(kept)
    y, ends = along_paths(mamba2, inputs, pack)
    close((kernels.ssd_step(**inputs),), (y,), loose)
    close((state,), (ends,), after)

    x, weight, bias = draw(5, 24, dtype=dtype)[:, :16], draw(16, 4, dtype=dtype), draw(16, dtype=dtype)
    window = draw(5, 3, 16, dtype=dtype)
    y, last = causal_conv1d(x.float(), weight.float(), bias.float(), pack=pack, state=window.float())
    close((kernels.convolve_step(x, weight, bias, state=window, silu=True),), (F.silu(y),), loose)
    assert torch.equal(window.float(), last)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@torch.inference_mode()
def test_a_whole_model_reads_and_steps_as_on_plain_kernels(name: str, kernels: Kernels, origin: str) -> None:
    loose = 1e-4 if origin == "stand-ins" else 2e-2
    pack = random_pack(12, given=2)
    results = []
    for choice in (kernels, "torch"):
        model = checkpoints.load(zoo_folder() / name, device=DEVICE).freeze().use(choice)
        ids = torch.arange(3, 3 + pack.tokens, device=DEVICE) % 200
        _, before = model(ids[:10].unflatten(0, (2, 5)))
        hidden, after = model(ids, before, pack)
        state = RecurrentState(tuple(LayerState(layer.conv.clone(), layer.ssm.clone()) for layer in after.layers))
        stepped = [model.step(ids[: after.batch] + step, state) for step in range(3)]
        results.append([hidden, *stepped, *(tensor for layer in state.layers for tensor in (layer.conv, layer.ssm))])
    for one, other in zip(*results, strict=True):
        close((one,), (other,), loose)


@pytest.mark.skipif(not INSTALLED, reason="needs a GPU, mamba-ssm and causal-conv1d")
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_backend_records_their_steps_in_graphs(name: str, dtype: torch.dtype) -> None:
    found = []
    for choice in (load_mamba_ssm(), "auto"):
        model = checkpoints.load(zoo_folder() / name, dtype=dtype, device=DEVICE)
        backend = NativeBackend(model, kernels=choice)
        tokens = torch.arange(5, 45).numpy().astype("int32")
        states = [part.state for part in backend.extend([Span(tokens[: 20 + n], keep=True) for n in range(3)])]
        batch, logits = backend._gather(states, 4), []
        for step in range(4):
            given, batch = backend._step(torch.full((3,), 7 + step, device=DEVICE), batch)
            logits.append(given)
        found.append(torch.stack(logits))
    close((found[0],), (found[1],), 2e-2 if dtype == torch.float32 else 0.1)
