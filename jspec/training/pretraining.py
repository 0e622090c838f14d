"""Pretraining of a language model on the zoo's corpus, from a recipe to a model folder."""

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from jspec.formats import folder as files
from jspec.formats.families import fitting_family
from jspec.formats.huggingface import Checkpoint, save
from jspec.models.protocol import Params, init_params
from jspec.models.transformer import TransformerModel, transformer
from jspec.parallel.sharding import REPLICATED, RULES, on_mesh, read_mesh
from jspec.training.checkpoints import Note
from jspec.training.config_files import find_recipe
from jspec.training.data import Document, pack
from jspec.training.evaluation import held_out_loss
from jspec.training.loading import load_model
from jspec.training.loop import claim_run, last_metrics, print_note, train
from jspec.training.objectives import in_dtype, language_model_loss
from jspec.training.recipe import Pretraining
from jspec.training.step import compile_program, make_optimizer
from jspec.zoo.corpus import held_out_documents, training_documents
from jspec.zoo.tokenizer import END_OF_TEXT, train_tokenizer

TOKENIZER, MODEL = "tokenizer.json", "model"


@dataclass(frozen=True, eq=False)
class PretrainingRun:
    """What `pretrain` returns.

    Attributes:
      recipe: that it followed; the run's own folder is `recipe.folder`.
      model: with the trained parameters, in float32.
      step: of these parameters.
      folder: where the model is written; None if the run was preempted before its last step.
      metrics: that were logged last, by the names in `log.jsonl`.
    """

    recipe: Pretraining
    model: Checkpoint
    step: int
    folder: Path | None
    metrics: dict[str, float]


def pretrain(
    config: str | os.PathLike[str] | Pretraining, *, note: Note = print_note, **changes: Any
) -> PretrainingRun:
    """Trains a model on the Python standard library, and writes it to `output/name/model`.

    The run resumes from its newest checkpoint, also when it is called again with more `steps`.

    Args:
      config: a file of `configs/`, or a recipe.
      note: called with what is done before the first step, and what went wrong; prints on stderr
        if not given.
      changes: fields of the recipe, such as `steps=60` or `model={"num_hidden_layers": 2}`.

    Raises `ValueError` for a recipe that cannot be followed, and `FloatingPointError` when a loss
    is not finite; the last good checkpoint stays.

    >>> pretrain("configs/zoo_wide.py", steps=60).folder  # doctest: +SKIP
    """
    recipe = find_recipe(config, Pretraining, changes)
    mesh = read_mesh(recipe.mesh)
    with on_mesh(mesh):
        return _pretrain(recipe, mesh, note)


def _pretrain(recipe: Pretraining, mesh: Mesh | None, note: Note) -> PretrainingRun:
    run, length = recipe.folder, recipe.sequence_length
    claim_run(recipe, note)
    model = transformer(recipe.model, remat=recipe.remat)
    family = fitting_family(
        model.config, None
    ).model_type  # before the work: a model that no family holds
    params = _initial(recipe, model, mesh)
    note("reading the standard library")
    documents = training_documents()
    tokenizer = find_tokenizer(run, documents, recipe.model.vocab_size)
    note("encoding the corpus")
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None  # `find_tokenizer` checks it
    blocks = pack([join_documents(documents, tokenizer, end, length)], length, seed=recipe.seed)
    held_out = join_documents(held_out_documents(), tokenizer, end, length)
    note(f"{len(blocks) * length:,} tokens to train on")
    objective = functools.partial(language_model_loss, model=model, chunk_size=recipe.chunk_size)
    program = compile_program(
        params,
        (),
        objective=in_dtype(objective, recipe.compute_dtype),
        optimizer=make_optimizer(recipe),
        mesh=mesh,
    )
    done = train(
        recipe,
        program,
        params,
        (),
        lambda step, params: blocks,  # noqa: ARG005
        held_out_loss(objective, (), pack([held_out], length), recipe.batch_size, mesh),
        lambda found: -found["held_out_loss"],
        mesh=mesh,
        note=note,
    )
    folder = None
    if done.step == recipe.steps:
        folder = run / MODEL
        save(
            folder, model, done.params, tokenizer=tokenizer, stop_token_ids=(end,), dtype="bfloat16"
        )
    trained = Checkpoint(model, done.params, (end,), folder or run, family)
    return PretrainingRun(recipe, trained, done.step, folder, last_metrics(run))


def join_documents(
    documents: Iterable[str], tokenizer: Tokenizer, end: int, length: int
) -> Document:
    """Documents, each closed by the token `end`, as one whose tokens fill rows of `length`.

    The rest at the end is dropped.
    """
    encoded = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    tokens = np.concatenate([np.array([*e.ids, end], np.int32) for e in encoded])
    filled = (len(tokens) - 1) // length * length + 1
    if filled <= 1:
        raise ValueError(
            f"sequence_length={length}: the documents hold {len(tokens)} tokens, fewer than one row"
        )
    return Document(tokens[:filled], np.ones(filled, np.float32))


def find_tokenizer(run: Path, documents: list[str], vocabulary: int) -> Tokenizer:
    """The target's tokenizer where the zoo has one, since drafts share it; else the run's own.

    The run's own is trained on the documents when the run starts, and kept in its folder.
    """
    for file in (files.ZOO_MODELS / "target" / TOKENIZER, run / TOKENIZER):
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
            break
    else:
        tokenizer = train_tokenizer(documents, vocabulary)
        run.mkdir(parents=True, exist_ok=True)
        files.write_text(file, tokenizer.to_str())
    if tokenizer.get_vocab_size() > vocabulary:
        raise ValueError(
            f"model.vocab_size={vocabulary} is less than the {tokenizer.get_vocab_size()} tokens "
            f"of {file}: give the model at least as many"
        )
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise ValueError(f"{file} has no token {END_OF_TEXT}: training closes documents with it")
    return tokenizer


def _initial(recipe: Pretraining, model: TransformerModel, mesh: Mesh | None) -> Params:
    """Random parameters, or those of `recipe.initial`, a model of the same shape."""
    rules = REPLICATED if recipe.replicated else RULES
    if not recipe.initial:
        return init_params(model, jax.random.key(recipe.seed), mesh=mesh, rules=rules)
    found = load_model("initial", recipe.initial, "float32", mesh, rules)
    if found.model.config != model.config:
        raise ValueError(
            f"initial={recipe.initial!r} is {found.model.config}, and the recipe trains "
            f"{model.config}: the two must be the same"
        )
    return found.params
