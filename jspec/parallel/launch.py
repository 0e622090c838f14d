"""Joining the processes of one launch."""

import os

import jax

COORDINATOR, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Makes the devices of all processes of a launch one set, before jax is used for anything.

    Where to meet comes from the environment: from a cluster that jax knows (TPU pods, SLURM, Open
    MPI, Kubernetes), or from JAX_COORDINATOR_ADDRESS (`host:port` of process 0), JAX_NUM_PROCESSES
    and JAX_PROCESS_ID. Raises `ValueError` if it says nothing.
    """
    processes, process = _number(PROCESSES), _number(PROCESS)
    try:
        jax.distributed.initialize(num_processes=processes, process_id=process)
    # An address that is none surfaces as whatever its parts lead to.
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
