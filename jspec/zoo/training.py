"""From a recipe to a model folder: corpus, tokenizer, training, files."""

import functools
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from jspec import zoo
from jspec.distill.checkpoints import Note
from jspec.distill.data import Document, pack
from jspec.distill.evaluation import held_out_loss
from jspec.distill.loop import train
from jspec.distill.objective import computed_in, language_model
from jspec.distill.optimizer import optimizer
from jspec.distill.recipe import Pretraining
from jspec.distill.step import program
from jspec.formats.huggingface import load, save
from jspec.models.protocol import LinenModel, Params, initial
from jspec.models.transformer import transformer
from jspec.parallel.sharding import REPLICATED, RULES
from jspec.zoo.corpus import held_out_documents, training_documents
from jspec.zoo.tokenizer import END_OF_TEXT, train_tokenizer

TOKENIZER = "tokenizer.json"


def make(recipe: Pretraining, mesh: Mesh | None, note: Note) -> Path | None:
    """Trains on the standard library and writes `output/name/model`, whose path it returns.

    None if the machine was taken away before the last step; the run goes on when it is made again.

    Args:
      note: told what is being done before the first step, and what went wrong.
    """
    run = Path(recipe.output).absolute() / recipe.name
    run.mkdir(parents=True, exist_ok=True)
    model = transformer(recipe.model, remat=recipe.remat)
    params = _initial(recipe, model, mesh)
    note("reading the standard library")
    documents = training_documents()
    tokenizer = find_tokenizer(run, documents, recipe.model.vocabulary)
    note("encoding the corpus")
    end = tokenizer.token_to_id(END_OF_TEXT)
    blocks = pack(
        [joined(documents, tokenizer, end, recipe.length)], recipe.length, seed=recipe.seed
    )
    held_out = joined(held_out_documents(), tokenizer, end, recipe.length)
    note(f"{len(blocks) * recipe.length:,} tokens to train on")
    objective = functools.partial(language_model, model=model, chunk=recipe.chunk)
    steps = program(
        params,
        (),
        objective=computed_in(objective, recipe.compute),
        optimizer=optimizer(recipe),
        mesh=mesh,
    )
    done = train(
        recipe,
        steps,
        params,
        (),
        lambda step, params: blocks,
        held_out_loss(objective, (), pack([held_out], recipe.length), recipe.batch, mesh),
        lambda found: -found["held_out_loss"],
        mesh=mesh,
        note=note,
    )
    if done.step < recipe.steps:
        return None
    folder = run / "model"
    save(folder, model, done.params, tokenizer=tokenizer, end_of_text=(end,), dtype="bfloat16")
    return folder


def joined(documents: Iterable[str], tokenizer: Tokenizer, end: int, length: int) -> Document:
    """Documents, each closed by the token `end`, as one whose tokens fill rows of `length`.

    What is left over at the end is dropped.
    """
    encoded = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    tokens = np.concatenate([np.array([*e.ids, end], np.int32) for e in encoded])
    filled = (len(tokens) - 1) // length * length + 1
    if filled <= 1:
        raise ValueError(
            f"length={length}: the documents hold {len(tokens)} tokens, fewer than one block"
        )
    return Document(tokens[:filled], np.ones(filled, np.float32))


def _initial(recipe: Pretraining, model: LinenModel, mesh: Mesh | None) -> Params:
    """Parameters to start from: fresh ones, or those of `recipe.initial`, a model of that shape."""
    rules = REPLICATED if recipe.replicated else RULES
    if not recipe.initial:
        return initial(model, jax.random.key(recipe.seed), mesh=mesh, rules=rules)
    found = load(zoo.find(recipe.initial), dtype="float32", mesh=mesh, rules=rules)
    if found.model.config != model.config:
        raise ValueError(
            f"initial={recipe.initial!r} is {found.model.config}, and the recipe trains "
            f"{model.config}: the two must be alike"
        )
    return found.params


def find_tokenizer(run: Path, documents: list[str], vocabulary: int) -> Tokenizer:
    """The target's tokenizer where the zoo has one, since drafts share it; else the run's own.

    The run's own is trained on the documents when the run begins, and kept in its folder.
    """
    for file in (zoo.MODELS / "target" / TOKENIZER, run / TOKENIZER):
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
            break
    else:
        tokenizer = train_tokenizer(documents, vocabulary)
        run.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(file), pretty=False)
    if tokenizer.get_vocab_size() > vocabulary:
        raise ValueError(
            f"model.vocabulary={vocabulary} is less than the {tokenizer.get_vocab_size()} tokens "
            f"of {file}: give the model at least as many"
        )
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise ValueError(f"{file} has no token {END_OF_TEXT}: training closes documents with it")
    return tokenizer
