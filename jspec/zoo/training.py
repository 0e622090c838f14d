"""From a recipe to a model folder: corpus, tokenizer, training, files."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
from tokenizers import Tokenizer

from jspec import zoo
from jspec.distill.data import Blocks, cut
from jspec.distill.evaluation import held_out_loss
from jspec.distill.loop import train
from jspec.distill.objective import language_model
from jspec.distill.recipe import Pretraining
from jspec.formats.huggingface import load, save
from jspec.models.protocol import LinenModel, Params
from jspec.models.transformer import transformer
from jspec.zoo.corpus import held_out_documents, training_documents
from jspec.zoo.tokenizer import END_OF_TEXT, train_tokenizer

TOKENIZER = "tokenizer.json"


def make(recipe: Pretraining, note: Callable[[str], None]) -> Path:
    """Trains on the standard library and writes `output/name/model`, whose path it returns.

    Args:
      note: told what is being done before the first step.
    """
    run = Path(recipe.output).absolute() / recipe.name
    run.mkdir(parents=True, exist_ok=True)
    model = transformer(recipe.model)
    initial = _initial(recipe, model)
    note("reading the standard library")
    documents = training_documents()
    tokenizer = find_tokenizer(run, documents, recipe.model.vocabulary)
    note("encoding the corpus")
    end = tokenizer.token_to_id(END_OF_TEXT)
    blocks = Blocks(cut(documents, tokenizer, end, recipe.length), recipe.seed)
    held_out = Blocks(cut(held_out_documents(), tokenizer, end, recipe.length))
    note(f"{len(blocks) * recipe.length:,} tokens to train on")
    objective = functools.partial(language_model, model=model, chunk=recipe.chunk)
    measure = held_out_loss(objective, (), held_out, recipe.batch)
    params = train(recipe, objective, initial, (), blocks, measure)
    folder = run / "model"
    save(folder, model, params, tokenizer=tokenizer, end_of_text=(end,), dtype="bfloat16")
    return folder


def _initial(recipe: Pretraining, model: LinenModel) -> Params:
    """Parameters to start from: fresh ones, or those of `recipe.initial`, a model of that shape."""
    if not recipe.initial:
        return model.init(jax.random.key(recipe.seed))
    found = load(zoo.find(recipe.initial), dtype="float32")
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
        tokenizer.save(str(file))
    if tokenizer.get_vocab_size() > vocabulary:
        raise ValueError(
            f"model.vocabulary={vocabulary} is less than the {tokenizer.get_vocab_size()} tokens "
            f"of {file}: give the model at least as many"
        )
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise ValueError(f"{file} has no token {END_OF_TEXT}: training closes documents with it")
    return tokenizer
