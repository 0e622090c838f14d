"""What is refused, by the function that refuses it: one line that says what is wrong and where.

Commands turn it into exit 2 and that line: tests/cli/test_refusals.py.
"""

import functools
from pathlib import Path

import pytest

from jspec import DynamicTree, SamplingParams, Tree, make_mesh, verify
from jspec.cli.generate import _read_biases
from jspec.cli.writing import read_prompt
from jspec.config import ModelConfig
from jspec.core.checks import check_seed
from jspec.core.sampling import make_keys
from jspec.core.tree_text import read_tree
from jspec.draft.stopping import read_stop
from jspec.parallel.sharding import read_mesh
from jspec.training.config_files import override
from jspec.training.recipe import Pretraining

NAN, INFINITY = float("nan"), float("inf")
RECIPE = Pretraining(
    name="tiny", model=ModelConfig(320, 16, 16, 1, 2, 1, 8, 64), sequence_length=64
)
OF_64, OF_320 = (functools.partial(read_tree, context=context) for context in (64, 320))


def two_rows(**how):
    return SamplingParams.create(2, **how)


def changed(*changes):
    return override(RECIPE, changes)


def stop_of(text):
    return read_stop(text, folder=None, width=16)


# What is called, with what, and how the line begins, and other words in it.
REFUSALS = [
    (two_rows, {"temperature": -0.1}, "temperature=-0.1"),
    (two_rows, {"temperature": NAN}, "temperature=nan"),
    (two_rows, {"temperature": INFINITY}, "temperature=inf"),
    (two_rows, {"temperature": 1e39}, "temperature=1e+39"),
    (two_rows, {"temperature": [0.5, -1.0]}, "temperature="),
    (two_rows, {"top_k": -1}, "top_k=-1"),
    (two_rows, {"top_k": [3, -2]}, "top_k="),
    (two_rows, {"top_k": 2.5}, "top_k=2.5: must be 0 (all) or a whole number"),
    (two_rows, {"top_k": 99999999999999}, "top_k=99999999999999"),
    (two_rows, {"top_p": 0.0}, "top_p=0.0: must be in (0, 1]"),
    (two_rows, {"top_p": -0.5}, "top_p=-0.5"),
    (two_rows, {"top_p": 1.5}, "top_p=1.5: must be in (0, 1]"),
    (two_rows, {"top_p": 1.0001}, "top_p=1.0001: must be in (0, 1]"),
    (two_rows, {"top_p": 1e-50}, "top_p=1e-50: must be in (0, 1]"),
    (two_rows, {"top_p": NAN}, "top_p=nan"),
    (two_rows, {"top_p": [0.9, 0.9, 0.9]}, "top_p="),
    (two_rows, {"min_p": 1.5}, "min_p=1.5: must be in"),
    (two_rows, {"repetition_penalty": 0.0}, "repetition_penalty=0.0: must be a positive"),
    (two_rows, {"repetition_penalty": NAN}, "repetition_penalty=nan: must be a positive"),
    (two_rows, {"presence_penalty": INFINITY}, "presence_penalty=inf: must be a number"),
    (two_rows, {"min_new_tokens": -1}, "min_new_tokens=-1: must be a whole number of tokens"),
    (two_rows, {"min_new_tokens": 0.9}, "min_new_tokens=0.9: must be a whole number"),
    (
        two_rows,
        {"logit_bias": {61: 1.0}, "vocab_size": 61},
        "logit_bias of token 61: tokens are 0..60",
    ),
    (
        two_rows,
        {"logit_bias": {-1: 1.0}, "vocab_size": 61},
        "logit_bias of token -1: tokens are 0..60",
    ),
    (
        two_rows,
        {"logit_bias": {1.7: 1.0}, "vocab_size": 61},
        "logit_bias of token 1.7: tokens are 0..60",
    ),
    (two_rows, {"logit_bias": {1: NAN}, "vocab_size": 61}, "logit_bias of nan for token 1"),
    (two_rows, {"logit_bias": {3: 1e39}, "vocab_size": 61}, "logit_bias of 1e+39"),
    (two_rows, {"logit_bias": {1: 1.0}}, "logit_bias is given without vocab_size"),
    (
        two_rows,
        {"logit_bias": [{1: 1.0}] * 3, "vocab_size": 61},
        "logit_bias of 3 rows: one for all, or 2",
    ),
    (_read_biases, (("5=1", "05=2"),), "logit_bias='05=2': token 5 has a bias already"),
    (_read_biases, (("five=1",),), "logit_bias='five=1': write token=number"),
    (make_keys, (-1, 1), "seed=-1: must be a whole number in 0..4294967295"),
    (make_keys, (2**32, 1), "seed=4294967296: must be a whole number"),
    (make_keys, (0.5, 1), "seed=0.5: must be a whole number"),
    (make_keys, ([1, 2], 3), "seed=[1, 2]: one number, or 3, one a prompt"),
    (check_seed, (-1,), "seed=-1: must lie in 0..4294967295"),
    (check_seed, (2**32,), "seed=4294967296: must lie in 0..4294967295"),
    (verify.get, ("cupled",), "rule='cupled' is not known: did you mean 'coupled'?"),
    (verify.get, ("?",), "rule='?' is not known: ", "token_level", "traversal"),
    (Tree, ((),), "parents=()"),
    (Tree, ((0, 0),), "parents=(0, 0)"),
    (Tree, ((-1, 2, 1),), "parents[1]=2", "cycle"),
    (Tree, ((-1, 1),), "parents[1]=1", "cycle"),
    (Tree, ((-1, 0, 3, 0),), "parents[2]=3", "before its children"),
    (Tree, ((-1, 0, -1),), "parents[2]=-1"),
    (Tree, ((-1, 0, 1, 0),), "parents=", "not breadth-first"),
    (Tree.branching, ((2, 0, 1),), "widths=(2, 0, 1)"),
    (Tree.comb, ((2, 0),), "widths=(2, 0)"),
    (Tree.fork, (0, 3), "width=0, depth=3"),
    (Tree.fork, (2, 0), "width=2, depth=0"),
    (Tree.chain, (0,), "depth=0"),
    (Tree.from_paths, ([(1,)],), "path (1,)"),
    (Tree.from_paths, ([(0, -1)],), "path (0, -1)"),
    (DynamicTree, (0, 2, 3), "width=0, depth=2"),
    (DynamicTree, (2, 0, 3), "width=2, depth=0"),
    (DynamicTree, (2, 2, 8), "nodes=8", "make 7"),
    (DynamicTree, (2, 3, 3), "nodes=3", "a path of 3 has 4"),
    *(
        (OF_64, (text,), f"tree='{text}'")
        for text in (
            *("chain:0", "0x2", "fork:3x0", "fork:9x0", "chain:2x2", "fork:4", "2x", "-1"),
            *(
                "dynamic:2x3",
                "dynamic:0x2x3",
                "dynamic:2x0x3",
                "dynamic:2x2x0",
                "dynamic:2x3x3",
                "dynamic:2x2x8",
            ),
            *("dynamic:9x9x65", "dynamic:16x3x20", "4xx"),
        )
    ),
    (OF_320, ("4xx",), "tree='4xx' is no tree and no file: write chain:5"),
    (OF_320, ("",), "tree='' is no tree"),
    (OF_320, ("\u0663x2",), "tree=", "is no tree and no file"),
    (OF_320, ("x" * 5000,), "tree=", "is no tree and no file"),
    (OF_320, ("20x20",), "tree='20x20' has 421 nodes with its root"),
    (OF_320, ("999999x999999x999999",), "tree=", "the target's context of 320"),
    (OF_320, ("[[0], [2]]",), "tree=", "child 2 is there and child 1 is not"),
    (OF_320, ("[[0, -1]]",), "tree=", "ranks count from 0"),
    (OF_320, ("[[0], 7]",), "tree=", "no list of paths"),
    (OF_320, ("[[0]",), "tree=", "is not JSON"),
    (OF_320, ("[]",), "tree=", "1 nodes with its root"),
    (make_mesh, {"tensor": 3}, "mesh data=1, fsdp=1, tensor=3 has 3 devices, and there are 8"),
    (make_mesh, {"tensor": 0}, "mesh data=1, fsdp=1, tensor=0: every axis"),
    (read_mesh, ("rows=8",), "mesh='rows=8': write each of data, fsdp, tensor"),
    (read_mesh, ("data=²",), "mesh='data=²': write each of data, fsdp, tensor"),
    (read_mesh, ("data=3",), "mesh data=3, fsdp=1, tensor=1 has 3 devices"),
    (read_prompt, ("", None), "prompt='' is empty"),
    (read_prompt, ("\udcff", None), "prompt=", "is not text in UTF-8"),
    (read_prompt, (None, Path("nowhere.txt")), "file='nowhere.txt': no such file"),
    (stop_of, ("luck:0.3",), "stop_drafting='luck:0.3': no stop, and no folder with"),
    (stop_of, ("confidence",), "stop_drafting='confidence': it has no threshold"),
    (stop_of, ("margin:much",), "stop_drafting='margin:much': 'much' is no threshold"),
    (stop_of, ("entropy:1.5",), "stop_drafting='entropy:1.5': threshold=1.5: must be"),
    (stop_of, ("running:nan",), "stop_drafting='running:nan': threshold=nan: must be"),
    (stop_of, ("",), "stop_drafting='': no stop, and no folder"),
    (changed, ("stepz=5",), "stepz is not a field (did you mean steps?): there are name, output, "),
    (
        changed,
        ("model.depth=5",),
        "model.depth is not a field: there are model.vocab_size, model.hidden_size",
    ),
    (changed, ("steps=five",), "steps='five' must be of type int"),
    (changed, ("steps=0",), "steps=0: must be at least 1"),
    (
        changed,
        ("model.tie_word_embeddings=perhaps",),
        "model.tie_word_embeddings='perhaps' must be of type bool",
    ),
    (changed, ("steps.more=1",), "steps=2000 has no fields of its own"),
    (changed, ("model=big",), "model='big' must be of type ModelConfig"),
    (changed, ("steps",), "'steps' is not a change: write field=value"),
    (changed, ("chunk_size=48",), "chunk_size=48: sequence_length=64 is not a multiple"),
    (changed, ("seed=-1",), "seed=-1: must be in 0..4294967295"),
    (
        changed,
        ("sequence_length=65",),
        "sequence_length=65 is longer than the model's context of 64",
    ),
]


@pytest.mark.parametrize(
    ("function", "given", "begins", "words"),
    [
        pytest.param(function, given, begins, words, id=f"{begins}{'-'.join(words)}"[:60])
        for function, given, begins, *words in REFUSALS
    ],
)
def test_what_is_wrong_is_refused_in_one_line_that_names_it(function, given, begins, words):
    with pytest.raises((ValueError, OSError)) as caught:
        function(**given) if isinstance(given, dict) else function(*given)
    said = str(caught.value)
    assert said.startswith(begins) and "\n" not in said
    assert all(word in said for word in words), said
