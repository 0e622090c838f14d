"""Joining the processes of one launch."""

import os

import jax

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Connects the processes of a launch, so that jax sees the devices of all. Call it first.

    The environment says where to meet: a cluster that jax knows (TPU pods, SLURM, Open MPI,
    Kubernetes), or JAX_COORDINATOR_ADDRESS (`host:port` of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID. Raises `ValueError` if the other processes are not found.
    """
    processes, process = _number(PROCESSES), _number(PROCESS)
    try:
        jax.distributed.initialize(num_processes=processes, process_id=process)
    # A bad address raises errors of many types, depending on which part of it is wrong.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"distributed: the other processes were not found ({reason}): launch by SLURM or on a "
            f"TPU pod, or set {COORDINATOR}, {PROCESSES} and {PROCESS} for each process"
        ) from error


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name}={text!r}: must be a number")
    return int(text)
