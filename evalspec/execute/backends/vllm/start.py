"""Starting a vLLM engine: its arguments, its environment, its quietness, and what became of it in a sentence.

Here alone stands what depends on vLLM's version and build. Written against 0.25.1 (CUDA) and 0.32.0 (CPU).

The engine runs in processes of its own. Their output goes to a log, not into the run's progress line; when one of them
dies, the first error in that log is the reason that the user reads.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from evalspec.errors import BackendError
from evalspec.models.card import Model
from evalspec.models.engines import vllm_build
from evalspec.spec.model import VllmBlock

UNBOUNDED = 131_072
"""Tokens that a sequence may have where neither the config nor the spec bounds it (recurrent models)."""

CPU_BLOCK = 32
"""Tokens of a block of the prefix cache on a CPU: vLLM's own 128 would recompute up to 127 tokens a request; its
kernels want a multiple of 32."""

STATE_BLOCK = 16
"""The same for recurrent states on a GPU."""

CPU_CACHE = 4 * 2**30
"""Most bytes of keys, values and states on a CPU where the spec does not say; at most a quarter of the free memory."""

_MEMORY = re.compile(
    r"out of memory|OutOfMemory|MemoryError|No available memory|Free memory on device|Available memory on node"
    r"|larger than the available|KV cache is needed|can't allocate memory",
    re.IGNORECASE,
)
_ERROR = re.compile(r"\b((?:\w+\.)*(?:\w+(?:Error|Exception)|AssertionError))(?:: (.*))?$")


@dataclass(frozen=True, eq=False)
class Started:
    """A running engine. `snapshots`: tokens between two states that its cache keeps, None for keys and values."""

    llm: Any
    version: str
    dtype: str
    device: str
    cached: bool
    snapshots: int | None
    log: Path
    processes: tuple[psutil.Process, ...]
    stopped: threading.Event


def start(model: Model, *, threads: int, prefix_caching: bool = True) -> Started:
    """Load a model into an engine. BackendError says in a sentence why there is none; an interruption leaves none."""
    found = vllm_build()
    assert found is not None  # asked when the spec was compiled
    handle, name = tempfile.mkstemp(prefix="evalspec-vllm-", suffix=".log")
    log = Path(name)
    before = set(psutil.Process().children(recursive=True))
    block = model.block.vllm or VllmBlock()
    eager = found.cpu if block.eager is None else block.eager
    cached = prefix_caching and caches(model, cpu=found.cpu)
    arguments = _arguments(model, block, cpu=found.cpu, eager=eager, cached=cached)
    try:
        with (
            _interruptible(),
            _environment(_variables(cpu=found.cpu, eager=eager, threads=threads) | _precision(arguments["dtype"])),
            _output_to(handle),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            from vllm import LLM

            llm = LLM(**arguments)
        logging.getLogger("vllm").setLevel(logging.CRITICAL)  # of this process alone: the others write to the log
    except KeyboardInterrupt:
        _end(_new_processes(before))
        log.unlink(missing_ok=True)
        raise
    except Exception as error:  # vLLM raises what its libraries raise, and a RuntimeError for what its processes did
        _end(_new_processes(before))
        raise BackendError(
            f"models.{model.name}: vLLM cannot load {model.block.weights}: {reason(error, log)}"
        ) from error
    finally:
        os.close(handle)
    started = Started(
        llm=llm,
        version=f"{found.version} (torch {importlib.metadata.version('torch')})",
        dtype=arguments["dtype"],
        device="cpu" if found.cpu else "cuda",
        cached=cached,
        snapshots=STATE_BLOCK if cached and "mamba_cache_mode" in arguments else None,
        log=log,
        processes=_new_processes(before),
        stopped=threading.Event(),
    )
    threading.Thread(target=_watch, args=(started,), name="evalspec-vllm-watch", daemon=True).start()
    return started


def _watch(started: Started) -> None:
    """Wake who waits for an engine whose processes were killed: vLLM itself would wait for its answer for ever.

    What vLLM has to say of an engine that failed by itself comes first.
    """
    while all(_lives(process) for process in started.processes):
        if started.stopped.wait(0.5):
            return
    if not started.stopped.wait(3):
        killed = RuntimeError("one of its processes was killed: by hand, or by the system when memory ran out")
        started.llm.llm_engine.engine_core.outputs_queue.put_nowait(killed)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(started: Started, *, failed: bool = False) -> None:
    """End an engine's processes, which have nothing to save, and remove its log unless it tells why it failed."""
    started.stopped.set()
    _end(started.processes)
    with contextlib.suppress(Exception):  # sockets and threads of this process; it finds the others gone
        started.llm.llm_engine.engine_core.shutdown()
    if not failed:
        started.log.unlink(missing_ok=True)


def _new_processes(before: Collection[psutil.Process]) -> tuple[psutil.Process, ...]:
    """Processes that this one started meanwhile, but for Python's own that watches over shared memory."""
    found = []
    for process in set(psutil.Process().children(recursive=True)).difference(before):
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any("resource_tracker" in argument for argument in process.cmdline()):
                found.append(process)
    return tuple(found)


def _end(processes: Sequence[psutil.Process]) -> None:
    """Ask processes to end, and end those that do not."""
    for act, seconds in ((psutil.Process.terminate, 2), (psutil.Process.kill, 10)):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                act(process)
        _, processes = psutil.wait_procs(processes, timeout=seconds)


def caches(model: Model, *, cpu: bool) -> bool:
    """Whether the engine is to keep prefixes: as the spec says, but not the states of recurrent models on a CPU, where
    vLLM 0.32 dies of it (its CPU kernel gives the last state alone; the cache wants one a chunk)."""
    block = model.block.vllm or VllmBlock()
    return block.prefix_caching and not (cpu and model.recurrent)


def _arguments(model: Model, block: VllmBlock, *, cpu: bool, eager: bool, cached: bool) -> dict[str, Any]:
    """Arguments of `vllm.LLM`."""
    dtype = model.block.dtype
    longest = model.max_length or UNBOUNDED
    arguments: dict[str, Any] = {
        "model": str(model.directory),
        "skip_tokenizer_init": True,  # token ids in, token ids out: text is made as for every other backend
        "dtype": ("float32" if cpu else "bfloat16") if dtype == "auto" else dtype,
        "max_model_len": longest + 1,  # the last token of a continuation is generated there, and never fed
        "tensor_parallel_size": block.tensor_parallel,
        "enforce_eager": eager,
        "enable_prefix_caching": cached,
        "logprobs_mode": "raw_logprobs",
        "max_logprobs": 128,
        "logits_processors": ["evalspec.execute.backends.vllm.forced:Forced"],
        "generation_config": "vllm",  # nothing but what the spec says decides how an answer is decoded
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if block.memory_share is not None:
        arguments["gpu_memory_utilization"] = block.memory_share
    elif cpu and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        arguments["kv_cache_memory_bytes"] = min(CPU_CACHE, psutil.virtual_memory().available // 4)
    if block.max_sequences is not None:
        arguments["max_num_seqs"] = block.max_sequences
    elif model.recurrent and not cpu:
        arguments["max_num_seqs"] = 256  # each wants a state, and Mamba-2's are large
    if model.block.batch_tokens is not None:
        arguments["max_num_batched_tokens"] = model.block.batch_tokens
    if model.recurrent:
        arguments["mamba_ssm_cache_dtype"] = "float32"  # as the native backend keeps its states
        if cached:
            arguments |= {"mamba_cache_mode": "align", "block_size": STATE_BLOCK}
    elif cpu:
        arguments["block_size"] = CPU_BLOCK
    return arguments


def _variables(*, cpu: bool, eager: bool, threads: int) -> dict[str, str]:
    """Environment of the engine's processes. What the user set in the first group stands."""
    theirs = {
        "HF_HUB_OFFLINE": "1",  # the files are here
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # its kernels sample otherwise than vLLM's own, and may not be there
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of two engines would share cores
    }
    ours = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # it takes other logits processors than `Forced`, or (0.25) none
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # for the one token more, and for a `max_length` that the spec states
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # an engine that dies leaves this process alive
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if cpu:
        ours["OMP_NUM_THREADS"] = str(threads)
    if cpu and eager:
        ours["TORCHDYNAMO_DISABLE"] = "1"  # else a C++ compiler is needed for the ranks of log-probabilities
    return {key: os.environ.get(key, value) for key, value in theirs.items()} | ours


def _precision(dtype: str) -> dict[str, str]:
    """On NVIDIA GPUs Triton would multiply float32 as TF32, in SSD among others."""
    return {"TRITON_F32_DEFAULT": os.environ.get("TRITON_F32_DEFAULT", "ieee")} if dtype == "float32" else {}


class _Interrupted(BaseException):
    """Ctrl-C, by a name that vLLM does not catch."""


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C while an engine starts is a KeyboardInterrupt here. vLLM drops one there (`zmq_socket_ctx`), then waits
    ten minutes for processes that the terminal's Ctrl-C has ended."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield  # who catches it otherwise goes on doing so
        return

    def interrupted(*_: object) -> None:
        raise _Interrupted

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    except _Interrupted:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables, and afterwards all as it was: vLLM sets some of its own (LD_PRELOAD on a CPU)."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for key in set(os.environ) - set(before):
            del os.environ[key]
        os.environ.update(before)


@contextlib.contextmanager
def _output_to(handle: int) -> Iterator[None]:
    """Standard output and error of this process, and for good of those that it starts meanwhile, go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        for stream in kept:
            os.dup2(handle, stream)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)


def reason(error: BaseException, log: Path) -> str:
    """Why an engine failed, in a sentence: the first error that its processes wrote, else the exception's own."""
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    first = next(_errors(said), None) or " ".join(str(error).split()) or type(error).__name__
    first = first.removeprefix("Value error, ").strip().rstrip(".")
    first = first if len(first) <= 400 else first[:400] + " …"
    if _MEMORY.search(first) or _MEMORY.search(str(error)):
        first = (
            f"there is not enough memory ({first}); lower `vllm.max_sequences`, `max_length` or `vllm.memory_share`, "
            "or spread the model by `vllm.tensor_parallel`"
        )
    if said:
        return f"{first}. Its log: {log}"
    log.unlink(missing_ok=True)  # it failed before it had anything to say
    return first


def _errors(said: str) -> Iterator[str]:
    """Messages of the exceptions in a log, but for those that only pass another one on."""
    for line in said.splitlines():
        if " WARNING " in line:
            continue
        found = _ERROR.search(line)
        if found and found[2] and "See root cause above" not in line and not found[1].endswith("EngineDeadError"):
            yield found[2].strip() if found[1].endswith(("ValueError", "RuntimeError")) else f"{found[1]}: {found[2]}"
