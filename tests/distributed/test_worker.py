"""A worker without Ray: what it opens and refuses, what is shipped, and that pieces give the forest's own results."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import evalspec
from evalspec.errors import BackendError, ModelError
from evalspec.execute.distributed.shipping import Asked, Opened, Reported, Shipment, Trouble
from evalspec.execute.distributed.worker import Worker
from evalspec.execute.opening import open_backend
from evalspec.execute.protocols import Result
from evalspec.execute.walk import walk
from evalspec.models.card import find_model
from evalspec.plan.cutting import cut, subforest
from evalspec.plan.forest import Decoding, Forest, Request, build_forest
from evalspec.spec.model import ModelBlock

ROOT = Path(__file__).parents[2]
MODEL = find_model("mamba2", ModelBlock(weights="zoo/mamba2"), ROOT)
ASKED = Asked("mamba2", MODEL.block, ROOT, MODEL.weights_hash)


def forest() -> Forest:
    rng = np.random.default_rng(0)
    shots = rng.integers(5, 500, 20)
    requests = []
    for number in range(12):
        prompt = np.concatenate([shots, rng.integers(5, 500, 6)]).astype(np.int32)
        requests.append(Request(prompt, tuple(prompt[-3:].tolist())))
        requests.append(Request(prompt, (), Decoding(max_tokens=5, temperature=float(number % 2))))
    return build_forest(requests)


@pytest.fixture(scope="module")
def worker() -> Worker:
    made = Worker()
    opened = made.open(ASKED)
    assert isinstance(opened, Opened)
    assert opened.forks
    assert opened.evalspec == evalspec.__version__
    return made


def reports(worker: Worker, piece: Forest, seconds: float) -> Iterator[Reported]:
    said = worker.walk(pickle.loads(pickle.dumps(Shipment.of(piece))), seconds)
    while isinstance(said, Reported):
        yield said
        if said.done:
            return
        said = worker.walk(None, seconds)


def test_a_worker_computes_as_a_plain_run_does_and_says_so(worker: Worker) -> None:
    """Its answers can be reused by plain runs, and plain ones by it: the cache key holds the backend's identity."""
    opened = worker.open(ASKED)
    backend = open_backend(MODEL)
    assert isinstance(opened, Opened)
    assert (opened.name, opened.version, opened.identity) == (backend.name, backend.version, backend.identity)


@pytest.mark.parametrize("seconds", [0.0001, 60.0])
def test_pieces_walked_by_a_worker_give_the_forests_results_each_once(worker: Worker, seconds: float) -> None:
    whole = forest()
    expected = {result.request: result for result in walk(whole, open_backend(MODEL))}
    got: dict[int, Result] = {}
    fed = 0
    made = cut(whole, 3)
    for piece in made.pieces:
        some = list(reports(worker, subforest(whole, piece.requests), seconds))
        assert len(some) == 1 or seconds < 1, "a report in the middle where time is short"
        for result in (result for report in some for result in report.results):
            number = int(piece.requests[result.request])
            assert number not in got
            got[number] = result
            fed += result.computed_tokens
    assert got.keys() == expected.keys()
    assert fed == whole.distinct_tokens + made.repeated_tokens
    for number, result in got.items():
        assert (result.text, result.greedy) == (expected[number].text, expected[number].greedy)
        np.testing.assert_allclose(result.logprobs, expected[number].logprobs, atol=1e-5)


def test_a_shipped_forest_arrives_as_it_was_and_is_smaller_than_its_requests() -> None:
    sent = forest()
    packed = pickle.dumps(Shipment.of(sent))
    arrived = pickle.loads(packed).forest()
    assert [request.key for request in arrived.requests] == [request.key for request in sent.requests]
    assert arrived.leaf.tolist() == sent.leaf.tolist()
    long = build_forest([Request(np.arange(n % 7, 20_000, dtype=np.int32), (n,)) for n in range(70)])
    assert len(pickle.dumps(Shipment.of(long))) < 20_000 * 4 * 7 * 1.1


def test_a_worker_that_does_not_see_the_weights_names_its_node_and_the_path(worker: Worker, tmp_path: Path) -> None:
    gone = tmp_path / "models" / "gone"
    said = Worker().open(replace(ASKED, block=ModelBlock(weights="models/gone"), root=tmp_path, folder=gone))
    assert isinstance(said, Trouble)
    error = pickle.loads(pickle.dumps(said)).error()
    assert isinstance(error, ModelError)
    assert f"node {worker.node}: " in str(error)
    assert str(gone) in str(error)
    assert "\n" not in str(error)


def test_a_worker_that_sees_other_weights_under_the_same_path_refuses_them() -> None:
    said = Worker().open(replace(ASKED, weights_hash="0" * 64))
    assert isinstance(said, Trouble)
    assert "holds other weights" in str(said.error())


def test_ray_is_asked_for_only_with_ray_and_its_absence_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    spec = {
        "name": "small",
        "models": {"mamba2": {"weights": "zoo/mamba2"}},
        "tasks": {
            "choose": {
                "data": {"generate": "world.labels", "count": 3, "seed": 3},
                "prompt": {
                    "template": "prompts/labels.jinja",
                    "target": "{{ label }}",
                    "choices": "{{ options }}",
                    "shots": 0,
                },
                "metrics": ["accuracy"],
            }
        },
    }
    from evalspec.spec import load

    loaded = load(spec, root=ROOT)
    with pytest.raises(BackendError, match=r"pip install 'evalspec\[ray\]'"):
        evalspec.run(loaded, store=tmp_path / "store.duckdb", ray=True)
    assert evalspec.run(loaded, store=tmp_path / "store.duckdb").status == "finished"
