"""A Ray cluster (https://docs.ray.io): joining one or starting it here, and what it has room for.

Ray is imported by this module and cluster.actor_pool alone, and only when `--executor ray` asks for it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asrgate.backends import Variant
from asrgate.backends.base import REMOTE, AsrgateError, BackendUnavailable
from asrgate.harness.worker.client import default_threads

KNOCKING_SECONDS = 5.0
LOCAL_STORE_BYTES = 256 << 20  # of a Ray started here; it holds at most one chunk's samples per actor


class ClusterError(AsrgateError):
    """The cluster cannot measure the run; the message says why and what to do."""


@contextlib.contextmanager
def connected(address: str | None, workers: int | None, threads: int | None) -> Iterator[None]:
    """Join the cluster at the address, or start Ray on this machine; leave or stop it at the end.

    Args:
        address: `host:port`, "auto", or None to start one.
        workers: actors asked for; a Ray started here is told of as many cores, whatever there are.
        threads: cores per actor, default_threads() where None.

    Raises:
        ClusterError: Ray is not installed, or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ClusterError("--executor ray needs Ray: python -m pip install ray") from error
    if address not in (None, "auto"):
        _knock(address)
    own: dict[str, Any] = {} if address else {"num_cpus": _local_cores(workers, threads)}
    if not address:
        own |= {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    try:
        ray.init(
            address=address or "local",
            namespace="asrgate",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **own,
        )
    except Exception as error:  # Ray raises anything from ConnectionError to AssertionError here
        why = str(error).strip().rstrip(".") or type(error).__name__
        raise ClusterError(
            _silent(address, why) if address else f"Ray cannot be started here: {why}"
        ) from error
    # what Ray prints of lost processes, to the end of its shutdown, must not get into stdout: it may be JSON
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            yield
        finally:
            ray.shutdown()


def check(variant: Variant) -> None:
    """Raise if no node can run the variant; whether its engine is installed there shows when it is loaded.

    Raises:
        BackendUnavailable: it needs a GPU and the cluster has none.
        ClusterError: it is a server's.
    """
    if variant.device == REMOTE:
        raise ClusterError(
            f"{variant} is a single server, and requests from many actors at once would measure it under "
            "load. Leave it out, or measure it with --executor local"
        )
    if variant.device == "cuda" and not any(node.get("GPU", 0) >= 1 for node in _nodes()):
        raise BackendUnavailable(
            "no node of the cluster has a GPU", "start Ray on one with `ray start --num-gpus=N`"
        )


def room(variants: Sequence[Variant], threads: int, most: int | None) -> tuple[int, dict[str, float]]:
    """Return how many actors the cluster has room for, and what each takes: `num_cpus` and `num_gpus`.

    An actor takes what the neediest variant does, so that all answer a clip at the same actor.

    Raises:
        ClusterError: there is no room for one.
    """
    gpus = int(any(variant.device == "cuda" for variant in variants))
    nodes = _nodes()
    room = sum(
        int(min(node.get("CPU", 0) // threads, node.get("GPU", 0) // gpus if gpus else math.inf))
        for node in nodes
    )
    if room == 0:
        there = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ClusterError(
            f"no node of the cluster has {threads} CPUs{' and a GPU' if gpus else ''} for one engine; "
            f"its nodes have: {there or 'nothing'}. Lower --threads, choose other --backends, or add a node"
        )
    return min(room, most or room), {"num_cpus": threads, "num_gpus": gpus}


def _knock(address: str) -> None:
    """Raise ClusterError unless somebody listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise ClusterError(f"--ray-address {address!r} is neither HOST:PORT of a Ray head node nor auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), KNOCKING_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(_silent(address, str(error))) from error


def _silent(address: str, why: str) -> str:
    return (
        f"no Ray cluster answers at {address}: {why}. Check the address and that `ray status` works on this "
        "machine, or leave out --ray-address to start Ray here"
    )


def _nodes() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _local_cores(workers: int | None, threads: int | None) -> int:
    cores = default_threads()
    return max(cores, (workers or 1) * (threads or cores))
