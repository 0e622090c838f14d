"""Text in, text out: the front door says what the functions below it compute."""

import dataclasses
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jspec
from jspec import SamplingParams, Speculator, generate, pad_prompts
from jspec.formats.tokenizer import read_tokenizer

PROMPT = "def add(left, right):\n"
PROMPTS = (PROMPT, "return", "left + right " * 8)
HOT = {"temperature": 1.0, "max_new_tokens": 40}
# Long enough to have a stop string in it.
LONG = {**HOT, "min_new_tokens": 40}


@pytest.fixture(scope="module")
def engine(models: Path) -> Speculator:
    """A draft that is right by chance only."""
    return Speculator.load(models / "target", models / "wide", tree="2x2")


@pytest.fixture(scope="module")
def sure(models: Path) -> Speculator:
    """A draft that is always right."""
    return Speculator.load(models / "target", models / "target", tree="chain:3")


@pytest.fixture(scope="module")
def stop(engine: Speculator) -> str:
    """Two characters from the middle of a text, of which the first is in no earlier place."""
    text = engine.generate(PROMPT, **LONG, seed=1).text
    found = [text[i : i + 2] for i in range(6, len(text) - 8) if text.index(text[i : i + 2]) == i]
    return next(pair for pair in found if "\ufffd" not in pair)


def same(left: jspec.TextOutput, right: jspec.TextOutput) -> None:
    assert (left.text, left.token_ids) == (right.text, right.token_ids)
    assert left.finish_reason == right.finish_reason
    assert left.num_prompt_tokens == right.num_prompt_tokens


def test_a_text_is_that_of_the_function_with_the_same_seed(engine):
    ids = engine.encode(PROMPT)
    config = engine.target.model.config
    model, drafter, params = engine.drafter_for(0.9)
    output = generate(
        engine.target.params,
        params,
        pad_prompts([ids], context_length=config.max_position_embeddings, max_new_tokens=24),
        jax.random.key(7)[None],
        SamplingParams.create(
            1, temperature=0.9, top_p=0.95, stop_token_ids=engine.target.stop_token_ids
        ),
        target=model,
        drafter=drafter,
        max_new_tokens=24,
    )
    out = engine.generate(PROMPT, temperature=0.9, top_p=0.95, seed=7, max_new_tokens=24)
    count = int(output.length[0])
    assert out.token_ids == output.tokens[0, :count].tolist()
    assert out.is_draft_token == output.is_draft_token[0, :count].tolist()
    whole = engine.target.tokenizer.decode([*ids, *out.token_ids])
    assert engine.target.tokenizer.decode(ids) + out.text == whole
    assert out.num_prompt_tokens == len(ids)
    assert out.num_rounds == output.num_rounds[0]
    assert out.acceptance_length == count / out.num_rounds
    assert out.accepted_by_position == output.accepted_by_position[0, 1:].tolist()
    assert out.finish_reason == ("length" if count == 24 else "stop")


def test_tokens_are_a_prompt_too(engine):
    same(engine.generate(engine.encode(PROMPT), **HOT), engine.generate(PROMPT, **HOT))


def test_a_batch_is_its_rows_alone(engine):
    seeds, temperatures, most = [3, 4, 5], [0.0, 0.7, 1.5], [9, 40, 23]
    together = engine.generate(PROMPTS, seed=seeds, temperature=temperatures, max_new_tokens=most)
    for row, out in enumerate(together):
        alone = engine.generate(
            PROMPTS[row],
            seed=seeds[row],
            temperature=temperatures[row],
            max_new_tokens=most[row],
        )
        same(out, alone)
        assert len(out.token_ids) == most[row] or out.finish_reason == "stop"


def test_one_value_is_the_same_for_every_prompt(engine):
    options = {
        "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1,
        "presence_penalty": 0.1, "frequency_penalty": 0.1, "min_new_tokens": 3, "seed": 6,
        "max_new_tokens": 20, "logit_bias": {5: 1.0},
    }  # fmt: skip
    spread = {name: [value] * len(PROMPTS) for name, value in options.items()}
    found, expected = (engine.generate(list(PROMPTS), **how) for how in (options, spread))
    for one, other in zip(found, expected, strict=True):
        same(one, other)


@pytest.mark.parametrize(
    "draft",
    [
        "target",
        "fspad",
        "lookup",
        *(pytest.param(draft, marks=pytest.mark.slow) for draft in ("wide", "eagle")),
    ],
)
def test_whatever_drafts_the_text_is_plain_decodings(draft, models):
    tree = "dynamic:2x3x6" if draft == "fspad" else "chain:3"
    source = draft if draft == "lookup" else models / draft
    engine = Speculator.load(models / "target", source, tree=tree)
    for temperature in (0.0, 1.0):
        how = {"temperature": temperature, "max_new_tokens": 40, "seed": [1, 2, 3]}
        drafted = engine.generate(PROMPTS, **how)
        for one, other in zip(
            drafted, engine.generate(PROMPTS, **how, speculative=False), strict=True
        ):
            same(one, other)
            assert other.num_rounds == len(other.token_ids)
            assert not any(other.is_draft_token)
    assert draft != "target" or min(out.acceptance_length for out in drafted) > 2


def test_without_a_draft_decoding_is_plain(engine, models):
    plain = Speculator.load(models / "target")
    same(plain.generate(PROMPT, **HOT), engine.generate(PROMPT, **HOT))
    with pytest.raises(ValueError, match="^draft=None: there is no drafter"):
        plain.drafter_for(1.0)


@pytest.mark.parametrize("speculative", [True, False])
def test_a_stream_is_the_text_in_pieces(speculative, engine, stop):
    for how in ({"seed": 1}, {"seed": 1, "stop": stop}, {"seed": 2, "stop": [stop, "zzz"]}):
        expected = engine.generate(PROMPT, **LONG, **how)
        pieces = list(engine.stream(PROMPT, **LONG, **how, speculative=speculative))
        assert "".join(pieces) == expected.text
        assert len(pieces) > 1 or "stop" in how


@pytest.mark.parametrize("speculative", [True, False])
@pytest.mark.parametrize("sizes", [(4,), pytest.param((1, 6, 9), marks=pytest.mark.slow)], ids=str)
def test_how_many_are_decoded_at_a_time_changes_no_text(sizes, speculative, engine, stop):
    prompts, how = [*PROMPTS, "+", ":", PROMPT], {"speculative": speculative, **LONG}
    for more in ({}, {"stop": stop}):
        together = engine.generate(prompts, seed=range(6), **how, **more)
        for size in sizes:
            found = engine.generate(prompts, seed=range(6), batch_size=size, **how, **more)
            for one, other in zip(found, together, strict=True):
                same(one, other)


def test_a_text_ends_before_a_stop_string(sure, engine, stop):
    whole = engine.generate(PROMPT, **LONG, seed=1)
    assert whole.finish_reason == "length" and stop in whole.text
    for each in (engine, sure):
        out = each.generate(PROMPT, **LONG, seed=1, stop=[stop])
        assert out.text == whole.text[: whole.text.index(stop)]
        assert out.finish_reason == "stop"
        # Its tokens are as few as have the stop string.
        assert out.token_ids == whole.token_ids[: len(out.token_ids)]
        assert len(out.is_draft_token) == len(out.token_ids) < len(whole.token_ids)
        same(out, each.generate(PROMPT, **LONG, seed=1, stop=stop))


def test_a_text_ends_at_a_stop_token(engine):
    whole = engine.generate(PROMPT, **HOT, seed=1)
    token = whole.token_ids[10]
    out = engine.generate(PROMPT, **HOT, seed=1, stop_token_ids=[token])
    count = whole.token_ids.index(token) + 1
    assert out.token_ids == whole.token_ids[:count]
    assert out.finish_reason == "stop"
    assert whole.text.startswith(out.text)


def test_a_name_of_the_zoo_is_one_everywhere(small_zoo, engine):
    named = Speculator.load("zoo:target", draft="zoo:wide", tree="2x2")
    same(named.generate(PROMPT, **HOT), engine.generate(PROMPT, **HOT))
    given = Speculator.load(jspec.load("zoo:target"), draft=jspec.load("zoo:wide"), tree="2x2")
    same(given.generate(PROMPT, **HOT), engine.generate(PROMPT, **HOT))


@pytest.mark.parametrize(
    "rule", ["token_level", pytest.param("without_replacement", marks=pytest.mark.slow)]
)
def test_a_rule_is_named(rule, models):
    engine = Speculator.load(models / "target", models / "target", rule=rule, tree="chain:2")
    assert engine.rule.name == rule
    assert engine.generate(PROMPT, **HOT).acceptance_length > 1


def test_drafting_can_stop_early(engine):
    stopping = dataclasses.replace(engine, tree="chain:4", stop_drafting="confidence:0.9")
    out = stopping.generate(PROMPT, **HOT, seed=1)
    same(out, engine.generate(PROMPT, **HOT, seed=1))
    assert out.output.num_draft_levels[0] < 4 * out.num_rounds


def test_it_is_frozen(engine):
    with pytest.raises(dataclasses.FrozenInstanceError):
        engine.tree = "chain:2"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_conversation_is_written_by_the_chat_template(models):
    engine = Speculator.load(models / "target", models / "wide", tree="chain:2")
    messages = [{"role": "user", "content": "return"}]
    with pytest.raises(ValueError, match="^messages: the tokenizer of .* has no chat template"):
        engine.chat(messages)
    engine.target.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    written = "user:return\nassistant:"
    same(engine.chat(messages, **HOT, seed=3), engine.generate(written, **HOT, seed=3))
    engine.target.tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ValueError, match="^messages: the chat template of .* cannot write"):
        engine.chat(messages)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda e: e.generate(PROMPT, temprature=1.0), "did you mean temperature="),
        (lambda e: e.generate(PROMPT, tokens=5), "tokens= is no argument of generate"),
        (lambda e: e.stream(PROMPT, max_tokens=5), "did you mean max_new_tokens="),
        (lambda e: e.chat([], sed=5), "no argument of chat|chat template|did you mean seed="),
        (lambda e: Speculator.load("zoo:target", draft_model="x"), "no argument of load"),
        (lambda e: Speculator.load("zoo:target", treee="x"), "did you mean tree="),
    ],
)
def test_a_misspelt_argument_is_refused_with_the_nearest_name(call, says, engine):
    with pytest.raises((TypeError, ValueError), match=says) as caught:
        call(engine)
    assert "\n" not in str(caught.value)
    assert "chat" in says or isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: "),
        ({"max_new_tokens": 1000}, "prompt 0 has .* more than the context of 320"),
        ({"max_new_tokens": [5, 6]}, r"max_new_tokens=\[5, 6\]: one number, or 3, one a prompt"),
        ({"max_new_tokens": [5, 0, 6]}, r"max_new_tokens=\[5, 0, 6\]: must be in 1..320"),
        ({"temperature": -1.0}, "temperature=-1.0: "),
        ({"temperature": [1.0, 2.0]}, r"temperature=\[1.0, 2.0\]: one value, or 3"),
        ({"seed": -1}, "seed=-1: "),
        ({"seed": [1, 2]}, r"seed=\[1, 2\]: one number, or 3, one a prompt"),
        ({"stop": ["x", ""]}, "stop='': "),
        ({"batch_size": 0}, "batch_size=0: "),
        ({"logit_bias": {320: 1.0}}, r"logit_bias of token 320: tokens are 0\.\.319"),
        ({"stop_token_ids": 5}, "stop_token_ids=5: "),
    ],
    ids=str,
)
@pytest.mark.parametrize("speculative", [True, False])
def test_an_option_outside_its_range_is_refused_in_one_line(options, says, speculative, engine):
    with pytest.raises(ValueError, match=f"^{says}") as caught:
        engine.generate(list(PROMPTS), **options, speculative=speculative)
    assert "\n" not in str(caught.value)


def test_no_prompt_and_an_empty_one_are_refused(engine):
    for prompts, says in (([], "prompt"), ("", "prompt"), ([PROMPT, ""], "prompt 1 is empty")):
        with pytest.raises(ValueError, match=f"^{says}"):
            engine.generate(prompts)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rule": "cupled"}, "rule='cupled' is not known: did you mean 'coupled'"),
        ({"draft": "./nowhere"}, ".*no such folder"),
        ({"draft": None, "tree": "chain:2"}, "tree and stop_drafting are for a draft"),
        ({"stop_drafting": "luck:0.3"}, "stop_drafting='luck:0.3': "),
        (
            {"rule": "token_level", "stop_drafting": "margin:0.3"},
            "stop_drafting=margin reads noise",
        ),
        ({"mesh": {"tensor": 3}}, "mesh data=1, fsdp=1, tensor=3 has 3 devices"),
        ({"mesh": "tensor=3"}, "mesh data=1, fsdp=1, tensor=3 has 3 devices"),
        ({"mesh": {"tenso": 2}}, "mesh='tenso=2': write each of "),
        ({"tree": "chain5"}, "tree='chain5'"),
        ({"tree": "chain:1000"}, "tree='chain:1000'"),
        ({"tree": [2, 1]}, r"tree=\[2, 1\]: give a Tree, or its text form"),
        ({"rule": "token_level", "tree": "4x2x1"}, "rule='token_level' "),
        ({"rule": "token_level", "tree": "dynamic:2x2x5"}, "rule='token_level' "),
        ({"tree": "dynamic:2x2x5", "stop_drafting": "confidence:0.3"}, "stop_drafting"),
    ],
)
def test_what_does_not_go_together_is_refused_when_it_is_loaded(change, says, models):
    with pytest.raises((ValueError, OSError, TypeError), match=f"^{says}") as caught:
        Speculator.load(models / "target", **{"draft": models / "wide", **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda e: e.generate(5), "prompts=5: give a text, its tokens, or a list of either"),
        (lambda e: e.generate([PROMPT], stop=5), "stop=5: give one string, or a list"),
        (lambda e: e.generate(PROMPT, stop=[["a"]]), r"stop=\[\['a'\]\]: give one string"),
        (lambda e: e.stream([PROMPT, PROMPT]), r"prompt=\[.*\]: here it is one text"),
        (lambda e: e.generate(PROMPT, temperature="hot"), "temperature=hot: must be 0"),
        (lambda e: Speculator("zoo:target"), "target='zoo:target': Speculator.load reads one"),
    ],
)
def test_what_is_of_another_type_is_named_with_what_belongs_there(call, says, engine):
    with pytest.raises((TypeError, ValueError), match=f"^{says}"):
        call(engine)


def test_it_prints_without_its_weights(engine):
    out = engine.generate(PROMPT, max_new_tokens=4)
    for one in (engine, engine.draft, out):
        assert 20 < len(repr(one)) < 4000 and "array" not in repr(one).lower()


def test_the_folder_of_a_run_is_no_draft_and_the_line_says_which_is(models, tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match=f"is the folder of a run: give {tmp_path}/model"):
        Speculator.load(models / "target", draft=tmp_path)


@pytest.mark.slow
def test_on_a_mesh_the_text_is_the_one_without(engine, models):
    spread = Speculator.load(
        models / "target", models / "wide", tree="2x2", mesh={"data": 8}, replicate_draft=True
    )
    for one, other in zip(
        spread.generate(PROMPTS, **HOT, seed=[1, 2, 3]),
        engine.generate(PROMPTS, **HOT, seed=[1, 2, 3]),
        strict=True,
    ):
        same(one, other)
    assert "".join(spread.stream(PROMPT, **HOT)) == engine.generate(PROMPT, **HOT).text
    np.testing.assert_array_equal(
        spread.generate(PROMPT, **HOT, speculative=False).token_ids,
        engine.generate(PROMPT, **HOT).token_ids,
    )


def test_a_text_whose_logits_are_not_finite_says_so(models):
    """It ends there, and what streams it warns, for a stream has no finish reason."""
    target = jspec.load(models / "target")
    broken = jax.tree.map(lambda x: x * np.nan, target.params)
    engine = Speculator.load(
        dataclasses.replace(target, params=broken), models / "wide", tree="2x2"
    )
    for how in ({}, {"speculative": False}, {"stop": "zz"}, {"batch_size": 1}):
        for out in engine.generate([PROMPT, PROMPT], **HOT, **how):
            assert (out.text, out.token_ids, out.finish_reason) == ("", [], "nonfinite")
            assert out.acceptance_length == 0
    with pytest.warns(RuntimeWarning, match="the target's logits are not finite"):
        assert "".join(engine.stream(PROMPT, **HOT)) == ""


def test_a_token_that_the_model_does_not_have_is_named_with_its_text(models, tmp_path):
    shutil.copytree(models / "target", tmp_path / "target")
    tokenizer = read_tokenizer(models / "target")
    tokenizer.add_tokens([f"<{n}>" for n in range(len(tokenizer), 321)])
    tokenizer.save_pretrained(tmp_path / "target")
    engine = Speculator.load(tmp_path / "target")
    said = re.escape("prompt: token 320 ('<320>') is not one of the model's 320")
    with pytest.raises(ValueError, match=said):
        engine.generate("def <320>", max_new_tokens=2)
    assert len(engine.generate("def <319>", max_new_tokens=2).token_ids) == 2
