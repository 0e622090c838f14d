"""Bad input at the command line: exit 2, one line on stderr, nothing on stdout.

What each function refuses is in tests/test_refusals.py; here are two cases of each command, and
what a command refuses itself.
"""

import pytest
from commands import refused, run

pytestmark = pytest.mark.usefixtures("small_zoo")

X = ("generate", "--prompt", "x")
SHAPES = ("plan", "--target", "llama3.1-8b", "--hardware", "h100", "--drafts", "llama3.2-1b")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "demo"),
        (("dance",), "dance"),
        (("demo", "--seed", "-1"), "seed"),
        (("demo", "--tokenz", "3"), "--tokenz"),
        ((*X, "--temperature", "-0.5"), "temperature=-0.5"),
        ((*X, "--tokenz", "3"), "--tokenz"),
        (("bench", "--repetitions", "0"), "repetitions=0: must be at least 1"),
        (("bench", "--temperatures", "0", "-1"), "temperature=-1.0"),
        (("verify", "--draft", "lookup", "--tree", "2x2"), "use a chain or a fork"),
        (("verify", "--prompts", "0"), "prompts=0: must be at least 1"),
        (("verify", "--seed", "-1"), "seed=-1: must lie in"),
        (("train", "none.py"), "no such file"),
        (("train", "zoo_target.txt", "steps=0"), "zoo_target.txt"),
        (("distill", "none.py"), "no such file"),
        (("distill", "none.txt", "steps=0"), "none.txt"),
        (("decide", "--epochs", "0"), "epochs=0: must be at least 1"),
        (("decide", "--kind", "soft"), "soft"),
        ((*SHAPES, "--batch", "0"), "batch=0: must be at least 1"),
        ((*SHAPES, "--temperature", "-1"), "temperature"),
        (("study", "weather"), "weather"),
        (("study", "temperature", "stepz=5"), "stepz is not a field"),
        (("export", "zoo:huge", "out"), "zoo:huge"),
        (("export", "target"), "Where to"),
        (("import", "./nowhere", "out"), "no such folder"),
        (("import", "./nowhere"), "Where to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_every_command_ends_with_2_and_one_line(capsys, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        # What is told before a model is read.
        (("--temperature", "warm"), "--temperature: could not convert"),
        (("--seed", "-1"), "seed=-1"),
        (("--draft", "lookup", "--plain"), "draft='lookup': plain decoding drafts nothing"),
        (("--plain", "--tree", "2x2"), "tree='2x2': plain decoding drafts nothing"),
        (("--plain", "--rule", "token_level"), "rule='token_level': plain"),
        (("--stop-drafting", "margin:0.3", "--plain"), "stop_drafting='margin:0.3': plain"),
        (("--target", "somebody/large"), "give --draft (a model, a head or lookup) or --plain"),
        (("--stop", "end", ""), "stop='': a stop string has at least one character"),
        (("--replicate-draft",), "replicate_draft: no mesh, or no draft"),
        (
            ("--mesh", "fsdp=8", "--draft", "lookup", "--replicate-draft"),
            "replicate_draft: no mesh, or no draft",
        ),
        (("--distributed",), "distributed: the other processes were not found"),
        (("--target", "zoo:huge", "--plain"), "zoo:huge is not in the zoo"),
        (("--target", "./nowhere", "--plain"), "target='./nowhere': no such folder"),
        (("--dtype", "int8"), "int8"),
        # What only the target or the draft can tell.
        (("--prompt", "x" * 300), "more than the context of 320"),
        (("--max-new-tokens", "320"), "is 1 more than the context of 320"),
        (("--max-new-tokens", "0"), "max_new_tokens=0"),
        (("--logit-bias", "3=1e39"), "logit_bias of 1e+39"),
        (("--draft", ""), "draft=''"),
        (("--draft", "lookup", "--tree", "2x2"), "use a chain or a fork"),
        (
            ("--draft", "lookup", "--rule", "token_level"),
            "rule='token_level' with candidates chosen",
        ),
        (("--draft", "lookup", "--rule", "by_confidence"), "rule='by_confidence'"),
        (("--draft", "lookup", "--stop-drafting", "margin:0.3"), "a stop reads a model's draft"),
        (("--rule", "by_confidence", "--stop-drafting", "margin:0.3"), "rule='by_confidence'"),
        (("--rule", "cupled"), "rule='cupled' is not known: did you mean 'coupled'?"),
        (("--mesh", "tensor=8"), "mesh tensor=8 does not divide num_attention_heads=2"),
        (("--stop-drafting", "network"), "has no decision.json: jspec decide writes"),
        (
            ("--stop-drafting", "margin:0.3", "--tree", "dynamic:2x2x4"),
            "stop_drafting='margin:0.3': tree of 4 nodes is dynamic",
        ),
        (
            ("--stop-drafting", "margin:0.3", "--rule", "token_level"),
            "stop_drafting=margin",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else None,
)
def test_generate_refuses_what_does_not_go_together(capsys, arguments, said):
    prompt = () if "--prompt" in arguments else ("--prompt", "x")
    assert said in refused(capsys, "generate", *prompt, *arguments)


def test_a_tree_in_a_file_is_refused_by_its_name(capsys, tmp_path):
    file = tmp_path / "paths.json"
    file.write_text("[[0], 7]")
    line = refused(capsys, *X, "--tree", str(file))
    assert str(file) in line and "no list of paths" in line


def test_a_recipe_is_refused_before_anything_is_written(capsys, tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(
        "from jspec.config import ModelConfig\n"
        "from jspec.training.recipe import Pretraining\n\n\n"
        "def config() -> Pretraining:\n"
        "    model = ModelConfig(320, 16, 16, 1, 2, 1, 8, 64)\n"
        f"    output = {str(tmp_path / 'runs')!r}\n"
        "    return Pretraining(name='tiny', model=model, sequence_length=64, output=output)\n"
    )
    assert "steps=0: must be at least 1" in refused(capsys, "train", str(config), "steps=0")
    assert not (tmp_path / "runs").exists()


def test_debug_adds_the_traceback(capsys):
    code, _, err = run(capsys, "generate", "--prompt", "", "--debug")
    assert code == 2 and "Traceback" in err and err.rstrip().splitlines()[-1].startswith("jspec: ")
