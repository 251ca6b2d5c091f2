"""The Ray cluster: started on this machine or joined, how many workers it has room for, models opened on them.

Only here, and only when it is asked for, is Ray imported.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evalspec.errors import BackendError, in_a_line
from evalspec.execute.distributed.engine import SpreadEngine
from evalspec.execute.distributed.shipping import Asked
from evalspec.execute.distributed.worker import Worker
from evalspec.execute.opening import SMALL
from evalspec.execute.places import Here, Place
from evalspec.execute.protocols import Engine, ForkingBackend
from evalspec.models.card import Model
from evalspec.paths import path_from
from evalspec.plan.cutting import workers_for

LOCAL = "local"
OBJECT_STORE = 512 * 2**20
"""Bytes for what is under way between the processes of a local cluster: pieces and results, which are small."""


@dataclass(frozen=True)
class Placement:
    """What each worker of a model takes of its node, and for how many there is room."""

    gpus: int
    cpus: int
    room: int
    kinds: tuple[str, ...]

    def __str__(self) -> str:
        each = f", {self.gpus} GPUs each" if self.gpus > 1 else ""
        return f"{self.room} workers over Ray ({', '.join(self.kinds)}{each})"


class RayCluster:
    """Where models run with `--ray`: one actor a GPU, or on CPUs where there is none."""

    def __init__(self, address: str, root: Path, say: Callable[[str], None]) -> None:
        """Join the cluster at an address (`auto`: this machine's), or start one for this run (`local`).

        `root` is where relative paths of models start. Raises BackendError without Ray or cluster.
        """
        self.ray, self.root, self.say = _import_ray(), root, say
        self.started = not self.ray.is_initialized()
        if self.started:
            _connect(self.ray, address)
            _keep_off_standard_output()

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self.started:
            self.ray.shutdown()

    def describe(self, model: Model) -> str:
        """What the column `device` says of a model: its workers and their kind."""
        return str(self._placement(model))

    @contextmanager
    def open(self, model: Model, tokens: int) -> Iterator[ForkingBackend | Engine]:
        """A model on as many workers as there is room for, and as so many tokens, fed or generated, are worth."""
        if model.served:  # nothing is computed here: one process asks as well as many
            self.say(f"  {model.name}: asked from here, since its server does the work")
            with Here().open(model, tokens) as backend:
                yield backend
            return
        placement = self._placement(model)
        actor = self.ray.remote(Worker).options(
            num_gpus=placement.gpus, num_cpus=placement.cpus, scheduling_strategy="SPREAD", max_restarts=0
        )
        engine = SpreadEngine(
            self.ray,
            actor.remote,
            lambda: self._placement(model).room,
            workers_for(tokens, placement.room),
            _asked(model, self.root.resolve()),
            model.cost,
            self.say,
        )
        try:
            yield engine
        finally:
            engine.close()

    def _placement(self, model: Model) -> Placement:
        """One worker a GPU; without GPUs one a CPU for a small model, one a node for others."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        gpus = [int(node.get("GPU", 0)) for node in nodes]
        block, where = model.block, f"models.{model.name}"
        if block.device != "cpu" and any(gpus):
            each = max(gpus) if block.device_map else block.vllm.tensor_parallel if block.vllm else 1
            room = sum(here // each for here in gpus)
            if not room:
                raise BackendError(f"{where} needs {each} GPUs of one node; the largest of the cluster has {max(gpus)}")
            kinds = {key.split(":", 1)[1] for node in nodes for key in node if key.startswith("accelerator_type:")}
            return Placement(each, 0, room, tuple(sorted(kinds)) or ("GPU",))
        if block.device.startswith("cuda"):
            raise BackendError(f"{where}: `device: {block.device}`: the Ray cluster has no GPU; use `auto` or `cpu`")
        cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
        small = model.cost is not None and model.cost.parameters < SMALL
        each = 1 if small else min(cpus, default=1)
        return Placement(0, each, sum(here // each for here in cpus), ("CPU",))


def _import_ray() -> Any:
    """Ray, without its dashboard's and its usage statistics' talk."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if torch.version.hip:
        show_ray_the_gpus(os.environ, torch.cuda.device_count())
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise BackendError(f"`--ray`: Ray cannot be imported: {in_a_line(error)}") from error
        raise BackendError("`--ray` needs Ray, which is not installed: pip install 'evalspec[ray]'") from None
    except Exception as error:  # a library that is missing; or GPUs hidden by a variable that Ray does not take
        raise BackendError(f"`--ray`: Ray cannot be imported: {in_a_line(error)}") from error
    return ray


def show_ray_the_gpus(environ: MutableMapping[str, str], count: int) -> None:
    """On ROCm: set HIP_VISIBLE_DEVICES to the `count` GPUs that this process sees, if other variables hid the rest.

    Ray knows no other variable there: it gives out GPUs that CUDA_VISIBLE_DEVICES hides, and cannot even be imported
    where ROCR_VISIBLE_DEVICES is set alone, as Slurm sets it. For this process nothing changes.
    """
    if "HIP_VISIBLE_DEVICES" in environ:
        return
    if environ.get("CUDA_VISIBLE_DEVICES"):
        environ["HIP_VISIBLE_DEVICES"] = environ["CUDA_VISIBLE_DEVICES"]
    elif "ROCR_VISIBLE_DEVICES" in environ:
        environ["HIP_VISIBLE_DEVICES"] = ",".join(map(str, range(count)))


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address.startswith("ray://"):
        raise BackendError(
            f"`--ray {address}`: Ray Client is not supported; run on a node of the cluster, `--ray auto`"
        )
    if address == LOCAL:
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # else a process a core, for nothing
        try:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise BackendError(f"`--ray`: Ray cannot start a cluster here: {in_a_line(error)}") from error
        return
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself would try for two minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:  # a port beyond 65,535 overflows
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "" if os.environ.get("RAY_AUTH_MODE") else "; one that wants a token needs RAY_AUTH_MODE=token here too"
        raise BackendError(f"`--ray {address}`: there is no Ray cluster to join: {first}{hint}") from error


def _keep_off_standard_output() -> None:
    """Ray prints pages about each lost worker to standard output, amid what `--json` writes, and has no setting for it.
    Who was lost, and why, is said by the engine."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, ignore_prefix: None


def _asked(model: Model, root: Path) -> Asked:
    """What a worker needs to open a model. A GPU's number is Ray's to choose."""
    block = model.block
    if block.device.startswith("cuda:"):
        block = block.model_copy(update={"device": "cuda"})
    folder = path_from(root, block.weights).resolve()
    named = model.directory.resolve() == folder  # else a hub id, or what is shipped with evalspec, wherever that is
    return Asked(model.name, block, root, model.weights_hash, folder if named else None)


@contextmanager
def place_of(ray: str | None, root: Path, say: Callable[[str], None]) -> Iterator[Place]:
    """This process, or with `ray` (an address, `auto`, or `local` for a cluster of this run's own) a Ray cluster.

    `root` is where relative paths of models start; `say` hears what happens to workers.
    """
    if ray is None:
        yield Here()
        return
    cluster = RayCluster(ray, root, say)
    try:
        yield cluster
    finally:
        cluster.close()
