"""Hugging Face's `generate` on the same weights: plain, and assisted by the same draft.

Needs PyTorch, which only this comparison uses.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jspec.bench.metrics import RoundCounts
from jspec.bench.suite import Workload
from jspec.bench.timing import Run

PLAIN, ASSISTED = "transformers generate", "transformers assisted"
THREADS = (1, 2)
NO_TORCH = "against_transformers needs PyTorch, which is not installed: pip install torch"


class Peer:
    """A generation method of transformers with a number of threads; a `Runner`."""

    def __init__(self, name: str, threads: int, model: Any, assistant: Any, work: Workload) -> None:
        self.name = label(name, threads)
        self._threads, self._model, self._assistant, self._work = threads, model, assistant, work

    def __call__(self, batch: int, temperature: float) -> Run:
        """`Runner.__call__`."""
        import torch

        torch.set_num_threads(self._threads)
        torch.manual_seed(batch)
        prompts = self._work.batches[batch]
        length = int(prompts.length[0])
        tokens = torch.from_numpy(np.asarray(prompts.tokens)[:, :length].astype(np.int64))
        options = {"assistant_model": self._assistant} if self._assistant is not None else {}
        if temperature > 0:
            options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0}
        passes = _Passes(self._model)
        started = time.perf_counter()
        with torch.inference_mode(), passes:
            output = self._model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=temperature > 0,
                max_new_tokens=self._work.tokens,
                **options,
            )
        seconds = time.perf_counter() - started
        new = output[:, length:].numpy().astype(np.int32)
        if new.shape[1] != self._work.tokens:
            raise RuntimeError(f"{self.name} wrote {new.shape[1]} of {self._work.tokens} tokens")
        counts = RoundCounts(rounds=passes.count * len(new), tokens=new.size)
        return Run(seconds, new, counts)


class _Passes:
    """Counts forward passes of a model while it is entered."""

    def __init__(self, model: Any) -> None:
        self._model, self.count = model, 0

    def __enter__(self) -> None:
        self._hook = self._model.register_forward_hook(self._counted)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _counted(self, *_: object) -> None:
        self.count += 1


def peers(target: Path, drafts: Sequence[tuple[str, Path]], work: Workload) -> list[Peer]:
    """Every method with every number of threads, each run once so that nothing is built during
    timing.

    Args:
      target: a Hugging Face folder.
      drafts: names and folders of the assistants.
      work: batches of one row where there are drafts: assisted generation takes no more.
    """
    check_torch()
    if any(int(p.length.min()) != int(p.length.max()) for p in work.batches):
        raise ValueError("prompts of several lengths in a batch: give transformers equal ones")
    model = _load(target)
    found = [Peer(PLAIN, threads, model, None, work) for threads in THREADS]
    if work.rows == 1:
        for name, folder in drafts:
            assistant = _load(folder)
            named = f"{ASSISTED} {name}"
            found += [Peer(named, threads, model, assistant, work) for threads in THREADS]
    for peer in found:
        peer(0, 0.0)
    return found


def label(name: str, threads: int) -> str:
    """The name in tables of a method with a number of threads."""
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def peer_method(label: str) -> str | None:
    """A label without its number of threads; None for methods that are not transformers'."""
    if not label.startswith((PLAIN, ASSISTED)):
        return None
    return label.rpartition(", ")[0]


def check_torch() -> None:
    """Raises `ValueError`, which says how to install it, where PyTorch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ValueError(NO_TORCH) from None


def _load(folder: Path) -> Any:
    """A model in float32 that does not stop at an end of text."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
