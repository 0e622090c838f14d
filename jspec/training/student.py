"""The student: a draft beside its target (`Draft`), while it is trained."""

import functools
from collections.abc import Callable, Mapping

from jspec.config import ModelConfig
from jspec.draft.draft import Draft, HeadDraft, ModelDraft
from jspec.models.eagle3 import eagle3, usual_layers
from jspec.models.heads import Head, alignment_alone, eagle, fspad, sampling_alone
from jspec.models.protocol import Params
from jspec.models.transformer import TransformerModel, check_layers
from jspec.training.losses import mixture
from jspec.training.objectives import Objective, distillation_loss, head_distillation_loss
from jspec.training.recipe import Distillation, FeatureHead

FEATURE_HEADS: Mapping[str, Callable[[ModelConfig], Head]] = {
    "eagle": eagle,
    "fspad": fspad,
    "sampling_alone": sampling_alone,
    "alignment_alone": alignment_alone,
}


def trained_part(student: Draft) -> tuple[TransformerModel | Head, Params]:
    """What is trained of a student: its model or its head, and the parameters to start from."""
    if isinstance(student, HeadDraft):
        return student.checkpoint.head, student.checkpoint.params
    if isinstance(student, ModelDraft):
        return student.checkpoint.model, student.checkpoint.params
    raise ValueError(f"draft={student.name!r}: prompt lookup has nothing to train")


def frozen_params(student: Draft) -> Params:
    """What a student's objective reads and does not train: the target's parameters and, of a head,
    the table of its tokens."""
    if isinstance(student, HeadDraft):
        return student.params._replace(head=())
    return student.target.params


def make_objective(
    part: TransformerModel | Head, recipe: Distillation, target: TransformerModel
) -> Objective:
    """What a training step lowers.

    Args:
      part: what is trained, as `trained_part` returns it.
      target: which returns the hidden states that a head reads.
    """
    loss = mixture(recipe.losses.weights(), beta=recipe.losses.beta)
    if isinstance(part, Head):
        wanted = recipe.head or FeatureHead()
        return functools.partial(
            head_distillation_loss,
            head=part,
            teacher=target,
            loss=loss,
            feature_weight=wanted.feature_weight,
            logits_weight=wanted.logits_weight,
            ttt_steps=wanted.ttt_steps,
            ttt_decay=wanted.ttt_decay,
            feature_noise=wanted.feature_noise,
            seed=recipe.seed,
            chunk_size=recipe.chunk_size,
        )
    return functools.partial(
        distillation_loss, model=part, teacher=target, loss=loss, chunk_size=recipe.chunk_size
    )


def make_head(wanted: FeatureHead, target: ModelConfig) -> Head:
    """The head that a recipe asks for: one layer of a Llama, as wide as the target."""
    config = ModelConfig(
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        intermediate_size=wanted.intermediate_size or target.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=wanted.num_attention_heads or target.num_attention_heads,
        num_key_value_heads=wanted.num_key_value_heads
        or (wanted.num_attention_heads or target.num_key_value_heads),
        head_dim=wanted.head_dim or target.head_dim,
        max_position_embeddings=target.max_position_embeddings,
        rope_theta=target.rope_theta,
        rope_scaling=target.rope_scaling,
        norm_eps=target.norm_eps,
    )
    if wanted.kind != "eagle3":
        return FEATURE_HEADS[wanted.kind](config)
    if wanted.draft_vocab_size > target.vocab_size:
        raise ValueError(
            f"head.draft_vocab_size={wanted.draft_vocab_size}: the target has "
            f"{target.vocab_size} tokens; 0 is for all"
        )
    try:
        layers = wanted.layers or usual_layers(target.num_hidden_layers)
        check_layers(layers, target.num_hidden_layers)
        return eagle3(config, layers=layers, draft_vocab_size=wanted.draft_vocab_size or None)
    except ValueError as error:
        raise ValueError(f"head.layers={wanted.layers}: {error}") from error


def check_head(wanted: FeatureHead, head: Head) -> None:
    """Raises `ValueError` where a recipe says of a head that was loaded what is not so."""
    there = {
        "kind": head.kind,
        "intermediate_size": head.config.intermediate_size,
        "num_attention_heads": head.config.num_attention_heads,
        "num_key_value_heads": head.config.num_key_value_heads,
        "head_dim": head.config.head_dim,
        "layers": head.layers,
        "draft_vocab_size": head.draft_vocab_size,
    }
    for name, value in there.items():
        asked = getattr(wanted, name)
        if asked and asked != value:
            raise ValueError(f"head.{name}={asked!r}, and the draft has {value!r}: ask for that")
