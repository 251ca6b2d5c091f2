"""Committed means durable: whole or not at all, on a full disk too, and values come back as they went in."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from evalspec.errors import RunError, StoreError
from evalspec.store import CommitError, Store, query


def test_values_come_back_as_they_went_in(store: Store, begin) -> None:
    hostile = "a\x00b \"quoted\" 'single' \\ 😀\u2028\r\n\ttab, <script>; DROP TABLE samples; --"
    key = {"cell_id": "c1", "draw": 0, "repeat": 0, "stage": None}
    rows = [
        {**key, "sample_id": hostile, "prompt": hostile, "choices": [hostile, "NaN"], "output": ""},
        {**key, "sample_id": "numbers", "logprobs": [[-1.5, -math.inf], [math.nan, np.float32(0.5)]], "cached": True},
        {**key, "sample_id": "text is json", "logprobs": "[[-Infinity, 1]]", "shot_ids": ["a"], "prompt_tokens": 2**40},
        {
            **key,
            "sample_id": "numpy",
            "shot_ids": np.array([1, 2]),
            "prompt_tokens": np.int32(7),
            "cached": np.bool_(0),
        },
        {**key, "sample_id": "surrogate", "prompt": "half \ud83d", "choices": ["\ud83d"]},
    ]
    writer = begin()
    writer.commit({"samples": rows})
    for _ in ("from the segment", "from the database"):
        found = {row["sample_id"]: row for row in store.rows("samples", writer.run_id)}
        assert found[hostile]["prompt"] == hostile and found[hostile]["choices"] == [hostile, "NaN"]
        assert found[hostile]["output"] == "" and found[hostile]["target"] is None and found[hostile]["stage"] is None
        (a, b), (c, d) = found["numbers"]["logprobs"]
        assert (a, b, d) == (-1.5, -math.inf, 0.5) and math.isnan(c) and found["numbers"]["cached"] is True
        assert found["text is json"]["logprobs"] == [[-math.inf, 1]] and found["text is json"]["prompt_tokens"] == 2**40
        assert found["numpy"]["shot_ids"] == [1, 2] and found["numpy"]["prompt_tokens"] == 7
        assert found["numpy"]["cached"] is False and found["surrogate"]["prompt"] == "half ?"
        store.merge()


def test_times_are_kept_in_utc(store: Store, begin) -> None:
    writer = begin(started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))))
    assert store.runs()[0]["started_at"] == datetime(2026, 1, 2, 1, 4, 5)
    writer.finish(finished_at="2026-01-02T03:00:00+00:00")
    assert store.runs()[0]["finished_at"] == datetime(2026, 1, 2, 3, 0)
    assert datetime.now(UTC).replace(tzinfo=None) - store.rows("runs", writer.run_id)[0]["started_at"] > timedelta(0)


def test_a_commit_is_readable_when_it_returns_and_a_later_row_replaces_an_earlier_one(store, begin, samples) -> None:
    writer = begin()
    writer.commit({"samples": samples(0, 3, error="out of memory", output=None)})
    assert store.finished(writer.run_id) == frozenset()
    writer.commit({"samples": samples(1, 4), "metrics": [{"cell_id": "c1", "metric": "f1", "value": 0.1}]})
    writer.commit({"metrics": [{"cell_id": "c1", "metric": "f1", "value": 0.9}]})
    assert {key.sample_id for key in store.finished(writer.run_id)} == {"s1", "s2", "s3"}
    expected = [("s0", None), ("s1", "Oslo"), ("s2", "Oslo"), ("s3", "Oslo")]
    statement = "SELECT sample_id, output FROM samples ORDER BY 1"
    assert query(store, statement).rows == expected
    assert query(store, "SELECT value FROM metrics").rows == [(0.9,)]
    store.merge()
    writer.commit({"samples": samples(0, 1), "metrics": [{"cell_id": "c1", "metric": "f1", "value": 0.95}]})
    assert query(store, statement).rows == [("s0", "Oslo"), *expected[1:]]  # database and segment together
    assert query(store, "SELECT value FROM metrics").rows == [(0.95,)]
    store.merge()
    assert query(store, statement).rows == [("s0", "Oslo"), *expected[1:]]
    assert query(store, "SELECT value FROM metrics").rows == [(0.95,)]


def test_a_store_may_stand_in_a_folder_with_an_awkward_name(tmp_path: Path, samples) -> None:
    store = Store(tmp_path / "we[ir]d * 'k=1' é" / "my store.duckdb")
    with store.begin({"spec_name": "rag"}, []) as writer:
        writer.commit({"samples": samples(0, 2)})
        assert query(store, "SELECT count(*) FROM samples").rows == [(2,)]
    assert store.merge() == 3
    assert query(store, "SELECT count(*) FROM samples").rows == [(2,)]
    with pytest.raises(StoreError, match="cannot contain"):
        Store("what?/evalspec.duckdb")


def test_a_run_left_without_a_word_is_interrupted_and_can_be_resumed(store, begin, samples) -> None:
    writer = begin()
    writer.commit({"samples": samples(0, 1)})
    assert store.runs()[0]["status"] == "running"
    writer.close()
    assert store.runs()[0]["status"] == "interrupted"
    with store.resume(writer.run_id) as again:
        assert store.runs()[0]["status"] == "running"
        again.commit({"samples": samples(1, 2)})
        again.finish("finished", device="cpu")
    (run,) = store.runs()
    assert (run["status"], run["device"], run["spec_name"]) == ("finished", "cpu", "rag")
    assert run["finished_at"] >= run["started_at"]
    with pytest.raises(StoreError, match="was finished"):
        again.commit({"samples": samples(2, 3)})
    with pytest.raises(ZeroDivisionError), store.resume(writer.run_id):
        _ = 1 / 0
    assert store.runs()[0]["status"] == "interrupted"


def test_resuming_works_after_a_merge_and_when_merged_segments_were_deleted(store, begin, samples) -> None:
    writer = begin()
    writer.commit({"samples": samples(0, 1)})
    writer.finish("interrupted")
    store.merge()
    shutil.rmtree(store.folder)
    with store.resume(writer.run_id) as again:
        again.commit({"samples": samples(0, 2, output="Rome")})
        again.finish()
    for _ in range(2):
        assert query(store, "SELECT output, count(*) FROM samples GROUP BY 1").rows == [("Rome", 2)]
        assert store.runs()[0]["status"] == "finished"
        store.merge()


def test_a_run_is_found_again_by_its_plan_and_its_weights(store: Store, begin) -> None:
    first, second = begin(run_id="a"), begin(run_id="b")
    assert store.find("p1", {("mamba", "w1")})["run_id"] == second.run_id
    second.close()
    assert store.find("p1", {("mamba", "w1")})["status"] == "interrupted"
    assert store.find("p1", {("mamba", "w2")}) is None
    assert store.find("p1", {("mamba", "w1"), ("transformer", "w3")}) is None
    assert store.find("p2", {("mamba", "w1")}) is None
    with pytest.raises(StoreError, match=r"no run aa\. Did you mean `a`\?|no run aa"):
        store.resume("aa")
    with pytest.raises(StoreError, match="is in the store already"):
        begin(run_id=first.run_id)
    for name in ("../x", "", ".hidden", "a/b", "x" * 200):
        with pytest.raises(StoreError, match="cannot be a run_id"):
            store.resume(name)


def test_answers_of_other_runs_are_found_by_their_cache_key_unless_they_failed(store, begin, samples) -> None:
    writer = begin()
    writer.commit({"samples": samples(0, 2, logprobs=[[-0.5]]) + samples(2, 3, error="timeout")})
    writer.commit({"samples": samples(3, 4, cache_key=None)})
    assert store.cached([]) == {}
    found = store.cached(["k0", "k1", "k2", "k3", "nothing"])
    assert set(found) == {"k0", "k1"}
    assert found["k1"]["sample_id"] == "s1" and found["k1"]["logprobs"] == [[-0.5]]
    store.merge()
    assert store.cached(["k0", "k1", "k2"]) == found


FULL = """
import resource, sys
from evalspec.errors import RunError
from evalspec.store import Store
store = Store(sys.argv[1])
writer = store.begin({"spec_name": "rag"}, [])
def rows(start, size):
    import random
    samples = ({"cell_id": "c", "sample_id": f"s{i}"} for i in range(start, start + 10))
    return {"samples": [{**sample, "prompt": random.randbytes(size).hex()} for sample in samples]}
writer.commit(rows(0, 100))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    writer.commit(rows(10, 20_000))
except RunError as error:
    print(type(error).__name__, error.exit_code, error)
writer.commit(rows(20, 100))
writer.finish()
"""


def test_a_commit_that_does_not_fit_is_refused_whole_and_the_rest_is_kept(store: Store) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(store.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CommitError 1 ") and "Everything committed before is kept" in done.stdout
    ids = {row[0] for row in query(store, "SELECT sample_id FROM samples").rows}
    assert ids == {f"s{i}" for i in [*range(10), *range(20, 30)]}
    assert not list(store.folder.rglob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_what_was_committed_stays(small_disk: Path, samples) -> None:
    store = Store(small_disk / "evalspec.duckdb")
    writer = store.begin({"spec_name": "rag"}, [])
    written = 0
    with pytest.raises(CommitError, match="could not be written") as caught:
        for number in range(100):
            writer.commit({"samples": samples(number, number + 1, prompt=os.urandom(8000).hex())})
            written += 1
    assert caught.value.exit_code == 1 and isinstance(caught.value, RunError)
    assert written >= 2
    writer.close()
    assert query(store, "SELECT count(*) FROM samples").rows == [(written,)]
    assert not list(store.folder.rglob(".*"))


def test_a_store_where_a_file_stands_in_the_way_cannot_be_begun(tmp_path: Path) -> None:
    (tmp_path / "evalspec.duckdb.d").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written") as caught:
        Store(tmp_path / "evalspec.duckdb").begin({"spec_name": "rag"}, [])
    assert caught.value.exit_code == 2


def test_what_killed_writers_leave_is_ignored_and_swept(store, begin, samples) -> None:
    writer = begin()
    writer.commit({"samples": samples(0, 1)})
    left = store.folder / writer.run_id / ".000002-0123456789ab.tmp"
    left.mkdir()
    (left / "samples.parquet").write_bytes(b"PAR1 half")
    assert query(store, "SELECT count(*) FROM samples").rows == [(1,)]
    store.merge()
    assert left.exists()  # the run is alive: this could be its commit
    writer.close()
    store.merge()
    assert not left.exists()
    left.mkdir()
    store.resume(writer.run_id).close()
    assert not left.exists()
    assert store.problems == []


def _damage(path: Path, how: str) -> None:
    file = path / "samples.parquet"
    content = file.read_bytes()
    match how:
        case "short":
            file.write_bytes(content[: len(content) // 2])
        case "missing":
            file.unlink()
        case "altered":
            file.write_bytes(content[:20] + bytes(60) + content[80:])
        case "empty":
            file.write_bytes(b"")
        case "manifest":
            (path / "segment.json").write_text("{")
        case "no manifest":
            (path / "segment.json").unlink()


@pytest.mark.parametrize("how", ["short", "missing", "altered", "empty", "manifest", "no manifest"])
def test_a_damaged_segment_is_named_and_left_out_and_everything_else_is_read(how: str, store, begin, samples) -> None:
    writer = begin()
    for number in range(3):
        writer.commit({"samples": samples(number, number + 1, prompt="some text " * 30)})
    writer.close()
    (damaged,) = store.folder.glob("*/000002-*")
    _damage(damaged, how)
    table = query(store, "SELECT sample_id, length(prompt) FROM samples ORDER BY 1")
    assert table.rows == [("s0", 300), ("s2", 300)]
    assert any(str(damaged) in problem for problem in store.problems)
    again = Store(store.path)
    again.merge()
    assert any("set aside as" in problem for problem in again.problems)
    assert not damaged.exists() and damaged.with_name(f"corrupt-{damaged.name}").exists()
    again.problems.clear()
    assert {key.sample_id for key in again.finished(writer.run_id)} == {"s0", "s2"}
    again.resume(writer.run_id).commit({"samples": samples(1, 2)})
    assert query(again, "SELECT count(*) FROM samples").rows == [(3,)] and again.problems == []


def test_a_segment_of_a_newer_evalspec_is_left_alone_and_said(store, begin, samples) -> None:
    writer = begin()
    writer.commit({"samples": samples(0, 1)})
    (path,) = store.folder.glob("*/000001-*")
    manifest = json.loads((path / "segment.json").read_text())
    (path / "segment.json").write_text(json.dumps({**manifest, "schema": 99, "files": "something new"}))
    assert query(store, "SELECT count(*) FROM samples").rows == [(0,)]
    store.merge()
    assert path.exists() and "schema version 99" in store.problems[0]


def test_the_size_limit_of_this_process_was_left_alone() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
