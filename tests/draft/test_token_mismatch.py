"""Drafts whose tokens are called differently from the target's, or are fewer, or more."""

import warnings

import jax
import numpy as np
import pytest
import tiny_zoo
from tokenizers import Tokenizer

from jspec import Speculator, load, load_draft, transformer
from jspec.draft.draft import TokenMismatchWarning
from jspec.formats.folder import read_json, write_json
from jspec.formats.huggingface import save

PROMPT = "def add(left"


def renamed(models, place, count: int, **changes: int):
    """A draft of which some tokens are called differently."""
    model = transformer(tiny_zoo.config(**changes))
    shared = Tokenizer.from_file(str(models / "target" / "tokenizer.json"))
    save(place, model, model.init(jax.random.key(4)), tokenizer=shared, stop_token_ids=(0,))
    content = read_json(place / "tokenizer.json")
    names = {token: number for token, number in content["model"]["vocab"].items()}
    special = {one["content"]: one for one in content["added_tokens"]}
    for token in list(names)[:count]:
        names[token + "~"] = names.pop(token)
        if token in special:
            special[token]["content"] = token + "~"
    content["model"]["vocab"] = names
    write_json(place / "tokenizer.json", content)
    write_json(place / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return place


def test_tokens_that_differ_are_named_and_so_is_the_way_round(models, tmp_path):
    target = load(models / "target")
    one, many = (renamed(models, tmp_path / str(count), count) for count in (1, 5))
    with pytest.raises(ValueError) as refused:
        load_draft(one, target)
    line = str(refused.value)
    assert "token 0 is '<|endoftext|>~' in the draft and '<|endoftext|>' in the target: a" in line
    assert "allow_token_mismatch=True (--allow-token-mismatch)" in line and "\n" not in line
    with pytest.raises(ValueError, match="token 2 is .*; and 2 more: "):
        load_draft(many, target)
    with pytest.warns(TokenMismatchWarning, match="token 0 is .*; and 2 more: the text is") as told:
        load_draft(many, target, allow_token_mismatch=True)
    assert len(told) == 1 and str(told[0].message).count(" in the draft and ") == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_draft(models / "wide", target, allow_token_mismatch=True)


@pytest.mark.parametrize(
    ("rule", "vocab_size"), [("coupled", 290), ("coupled", 400), ("token_level", 290)]
)
def test_the_text_is_plain_decoding_s_whatever_the_draft_s_tokens_are(
    rule, vocab_size, models, tmp_path
):
    draft = renamed(models, tmp_path / "draft", 3, vocab_size=vocab_size)
    with pytest.warns(TokenMismatchWarning):
        engine = Speculator.load(
            models / "target", draft, rule=rule, tree="chain:2", allow_token_mismatch=True
        )
    shared = rule != "token_level"  # whose text is plain decoding's at temperature 0 alone
    how = {"temperature": [0.0, 0.8 * shared], "max_new_tokens": 60, "seed": [3, 4]}
    # Tokens that the smaller draft does not have are written, and read by it.
    how["logit_bias"] = {310: 4.0, 300: 4.0, 7: 2.0}
    texts = engine.generate([PROMPT] * 2, **how)
    plain = engine.generate([PROMPT] * 2, **how, speculative=False)
    assert [text.token_ids for text in texts] == [text.token_ids for text in plain]
    assert np.max([text.token_ids for text in texts]) >= 300


def test_a_draft_without_a_tokenizer_and_of_another_size_is_taken_where_it_is_allowed(
    models, tmp_path
):
    target, model = load(models / "target"), transformer(tiny_zoo.config(vocab_size=290))
    save(tmp_path / "mute", model, model.init(jax.random.key(4)))
    with pytest.raises(ValueError, match="has no tokenizer, .* 290 .* 320: .*allow_token_mismatch"):
        load_draft(tmp_path / "mute", target)
    with pytest.warns(TokenMismatchWarning, match="vocabulary of 290"):
        assert load_draft(tmp_path / "mute", target, allow_token_mismatch=True).vocab_size == 290
