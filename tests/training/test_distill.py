"""`jspec distill`, from a recipe to a draft that decodes."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_zoo
from commands import distil, distil_refused

from jspec.cli.main import main
from jspec.formats import folder as model_folders
from jspec.formats.huggingface import load
from jspec.training import generated_data, run, text_data
from jspec.training.checkpoints import Checkpoints

pytestmark = pytest.mark.law

CONFIG = """
from jspec.training.recipe import Distillation, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="run", target="zoo:target", draft="zoo:wide", output={output!r},
        text=Text(source={source!r}, weight=0.5, held_out=0.3),
        teacher_data=TeacherData(
            weight=0.5, count=6, prompt_length=4, max_new_tokens=20, batch_size=2, tree="chain:2"
        ),
        sequence_length=32, batch_size=8, chunk_size=16, steps=6, warmup_steps=1,
        evaluate_every=3, save_every=2, keep=9,
        temperatures="0,1", tree="chain:2", prompts=2, max_new_tokens=8,
    )
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Whose heads can be cut in four."""
    return tiny_zoo.write(
        tmp_path_factory.mktemp("zoo"), num_attention_heads=4, num_key_value_heads=4
    )


@pytest.fixture(autouse=True)
def small(models, monkeypatch):
    monkeypatch.setattr(model_folders, "ZOO_MODELS", models)


@pytest.fixture
def config(tmp_path) -> Path:
    source, file = tmp_path / "texts.jsonl", tmp_path / "config.py"
    tiny_zoo.write_texts(source)
    file.write_text(CONFIG.format(output=str(tmp_path / "runs"), source=str(source)))
    return file


def weights(folder: str | Path) -> list[np.ndarray]:
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(load(folder).params)]


def log(config: Path, name: str = "run") -> list[dict]:
    file = config.parent / "runs" / name / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def checkpoints(config: Path, name: str = "run") -> Path:
    return config.parent / "runs" / name / "checkpoints"


def test_a_run_leaves_a_draft_a_log_and_where_it_came_from(capsys, config):
    done = distil(capsys, config)
    draft = load(done["folder"])
    assert draft.model.config == load("zoo:wide").model.config
    assert draft.tokenizer is not None and draft.stop_token_ids == (0,)
    first, last = log(config)
    assert (first["step"], last["step"]) == (3, 6)
    assert last["held_out_loss"] < first["held_out_loss"]
    for temperature in ("0", "1"):
        kept = [last[f"accepted_at_{depth}@{temperature}"] for depth in (1, 2)]
        assert 1 >= kept[0] >= kept[1] >= 0
        # 8 tokens of which the last round may keep fewer than it has right.
        assert 1 <= last[f"acceptance_length@{temperature}"] <= 1 + sum(kept) + 1e-6
    folder = config.parent / "runs" / "run"
    assert list((folder / "tensorboard").iterdir())
    with closing(Checkpoints(folder / "checkpoints", print)) as kept:
        assert kept.steps == [2, 4, 6] and kept.best == 6
    metadata = list((folder / "checkpoints" / "metadata").rglob("*"))
    assert any('"zoo:target"' in file.read_text() for file in metadata if file.is_file())


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_and_goes_on_as_if_it_had_not(capsys, config, monkeypatch):
    whole = distil(capsys, config, "name=whole")
    capsys.readouterr()
    sources = run.make_source

    def stopping(*arguments):
        source_at = sources(*arguments)

        def at(step, params):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return source_at(step, params)

        return at

    with monkeypatch.context() as patched:
        patched.setattr(run, "make_source", stopping)
        assert main(("distill", str(config))) == 0
    assert "stopped, and saved" in capsys.readouterr().err
    assert not (config.parent / "runs" / "run" / "model").exists()
    with closing(Checkpoints(checkpoints(config), print)) as kept:
        assert kept.steps == [2, 3]
    done = distil(capsys, config)
    for mine, theirs in zip(weights(done["folder"]), weights(whole["folder"]), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    curves = [
        [{k: v for k, v in x.items() if k not in ("seconds", "tokens_per_second")} for x in lines]
        for lines in (log(config), log(config, "whole"))
    ]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_where_the_newest_checkpoint_is_broken_the_one_before_is_taken(capsys, config):
    whole = distil(capsys, config, "name=whole")
    distil(capsys, config)
    for file in (checkpoints(config) / "6").rglob("*"):
        if file.is_file():
            file.write_bytes(b"broken")
    capsys.readouterr()
    assert main(("distill", str(config))) == 0
    assert "checkpoint 6 cannot be read" in capsys.readouterr().err
    assert [line["step"] for line in log(config)] == [3, 6, 6]  # and not from the beginning
    assert (checkpoints(config) / "6.broken").is_dir()
    folder = config.parent / "runs" / "run" / "model"
    for mine, theirs in zip(weights(folder), weights(whole["folder"]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "meshes",
    [
        ("mesh=data=2,tensor=4", "mesh=fsdp=8"),
        ("mesh=fsdp=8", "mesh="),
        ("mesh=data=8", "mesh=fsdp=2,tensor=4"),
    ],
)
def test_a_run_can_move_from_mesh_to_mesh_and_is_the_one_without(capsys, config, meshes):
    """To the rounding of sums that are added in another order, which Adam's division by the root of
    small squares makes larger."""
    fields = ("optimizer=adamw", "schedule=constant")
    distil(capsys, config, "name=alone", *fields)
    distil(capsys, config, "steps=4", meshes[0], *fields)
    distil(capsys, config, meshes[1], *fields)
    moved = [line for line in log(config) if line["step"] != 4]
    for mine, theirs in zip(moved, log(config, "alone"), strict=True):
        for name in ("loss", "held_out_loss", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name


@pytest.mark.slow
def test_on_policy_texts_are_the_students_own_and_generated_again(capsys, config):
    fields = (
        "on_policy.weight=1", "on_policy.every=2", "on_policy.count=3",
        "on_policy.max_new_tokens=10", "on_policy.prompt_length=4", "teacher_data.weight=0",
        "steps=4",
    )  # fmt: skip
    done = distil(capsys, config, *fields)
    written = sorted((config.parent / "runs" / "run" / "on_policy").iterdir())
    assert [folder.name for folder in written] == ["00000", "00001"]
    before = [(folder / "part-00000.jsonl").read_bytes() for folder in written]
    assert before[0] != before[1]
    assert not (config.parent / "runs" / "run" / "teacher_data").exists()
    again = distil(capsys, config, *fields, "name=again")
    for mine, theirs in zip(weights(done["folder"]), weights(again["folder"]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_a_draft_can_begin_again_from_nothing(capsys, config, models):
    text = config.read_text().replace('draft="zoo:wide"', "model=SHAPE")
    shape = "SHAPE = ModelConfig(320, 24, 24, 1, 2, 1, 8, 320)\n"
    config.write_text("from jspec.config import ModelConfig\n" + shape + text)
    fields = ("compute_dtype=bfloat16", "gradient_accumulation_steps=2", "remat=true")
    done = distil(capsys, config, *fields)
    draft = load(done["folder"])
    assert draft.model.config.hidden_size == 24 and draft.tokenizer is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("steps=0", "steps=0: must be at least 1"),
        ("temperatures=warm", "temperatures='warm': write a number from 0 on, a set such as"),
        ("loss_temperature=2..1", "loss_temperature='2..1': write a number"),
        ("losses.forward_kl=0", "losses: all weights are 0"),
        ("losses.forward_kl=-1", "losses.forward_kl=-1.0: must be 0 or more"),
        ("losses.beta=1", "losses.beta=1.0: must be between 0 and 1"),
        ("chunk_size=-16", "chunk_size=-16: must be 0"),
        ("name=", "name='': it names a folder below output"),
        ("name=../run", "name='../run': it names a folder below output"),
        ("teacher_data.tree=bush", "teacher_data.tree: tree='bush'"),
        ("text.source=zoo:prose", "text.source='zoo:prose': of the zoo it can be zoo:corpus"),
        ("losses.kl=1", "losses.kl is not a field"),
        ("draft=", "draft='', model=None, head=None: give one of the three"),
        ("teacher_data.weight=-1", "teacher_data.weight=-1.0: must be 0 or more"),
        ("text.column=body", "text.column='body' does not exist: there are text"),
        ("text.source=none.json", "text.source='none.json', split 'train': cannot be read"),
        ("target=zoo:huge", "target='zoo:huge': zoo:huge is not in the zoo"),
        ("mesh=data=3", "mesh data=3, fsdp=1, tensor=1 has 3 devices, and there are 8"),
        ("mesh=rows=8", "mesh='rows=8': write each of data, fsdp, tensor"),
        ("optimizer=sgd", "optimizer='sgd' is none of: muon, adamw"),
        (
            "sequence_length=512",
            "sequence_length=512 is longer than the context of 320 that target and draft share",
        ),
        ("tree=chain:400", "tree='chain:400' has 401 nodes"),
        ("prompts=0", "prompts=0: must be at least 1"),
    ],
)
def test_bad_recipes_are_refused(capsys, config, change, said):
    assert said in distil_refused(capsys, config, change)
    assert not (config.parent / "runs").exists() or not list(checkpoints(config).glob("*"))


def test_reverse_kl_is_refused_where_it_is_infinite(capsys, config):
    fields = ("losses.reverse_kl=1", "losses.forward_kl=0")
    for greedy in ("teacher_data.temperature=0,1", "loss_temperature=0"):
        assert "it is infinite at temperature 0" in distil_refused(capsys, config, greedy, *fields)


@pytest.mark.slow
def test_what_a_run_does_otherwise_when_it_goes_on_is_said(capsys, config):
    distil(capsys, config, "steps=1")
    assert main(("distill", str(config), "steps=1", "losses.total_variation=1")) == 0
    said = "resumes with losses.total_variation=1.0 where it has 0.0"
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_answers_that_are_done_are_kept_when_a_run_is_told_to_stop(capsys, config, monkeypatch):
    whole = distil(capsys, config, "name=whole", "steps=1")
    written, seen = generated_data.generate_many, []

    def stopping(*arguments, **more):
        for one in written(*arguments, **more):
            yield one
            seen.append(one)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(generated_data, "generate_many", stopping)
    assert main(("distill", str(config), "steps=1")) == 0
    assert "stopped; run the same command again" in capsys.readouterr().err
    part = config.parent / "runs" / "run" / "teacher_data" / "part-00000.jsonl"
    assert len(part.read_text().splitlines()) == 2
    again = distil(capsys, config, "steps=1")
    for mine, theirs in zip(weights(again["folder"]), weights(whole["folder"]), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_another_draft_does_not_go_on_with_a_run(capsys, config):
    distil(capsys, config, "steps=1")
    said = distil_refused(capsys, config, "draft=zoo:distilled")
    assert "draft='zoo:distilled' where it has 'zoo:wide'" in said


@pytest.mark.slow
def test_a_loss_that_is_nan_ends_the_run_and_keeps_what_was_good(capsys, config, monkeypatch):
    distil(capsys, config, "steps=4")
    capsys.readouterr()
    assert main(("distill", str(config), "learning_rate=3e38")) == 1
    err = capsys.readouterr().err
    assert "the last good checkpoint is kept" in err and "step 5" in err or "step 6" in err
    with closing(Checkpoints(checkpoints(config), print)) as kept:
        assert kept.steps == [2, 4]


FULL = """
import resource, signal, sys
from pathlib import Path
from jspec.cli.main import main
from jspec.formats import folder

folder.ZOO_MODELS = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_full_disk_ends_a_run_and_leaves_what_was_saved(capsys, config, models):
    distil(capsys, config, "steps=2")
    asked = [sys.executable, "-c", FULL, str(models), "distill", str(config)]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2, ended.stderr
    complaint = ended.stderr.splitlines()[-1]
    assert "a checkpoint cannot be written" in complaint and "File too large" in complaint
    with closing(Checkpoints(checkpoints(config), print)) as kept:
        assert kept.steps == [2]
    assert distil(capsys, config)["steps"] == 6


@pytest.mark.slow
def test_a_checkpoint_is_exported_while_its_run_goes_on(capsys, config, tmp_path):
    done = distil(capsys, config)
    run = config.parent / "runs" / "run"
    under_way = run / "checkpoints" / "8.orbax-checkpoint-tmp"
    under_way.mkdir()
    for step in ("", "newest", "best", "6"):
        asked = ["--step", step] if step else []
        assert main(("export", str(run), str(tmp_path / f"out{step}"), *asked)) == 0
        mine = weights(tmp_path / f"out{step}")
        for ours, theirs in zip(mine, weights(done["folder"]), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert main(("export", str(run), str(tmp_path / "earlier"), "--step", "2")) == 0
    earlier = zip(weights(tmp_path / "earlier"), mine, strict=True)
    assert any((ours != theirs).any() for ours, theirs in earlier)
    assert load(tmp_path / "earlier").tokenizer is not None and under_way.is_dir()
    capsys.readouterr()
    assert main(("export", str(run), str(tmp_path / "none"), "--step", "5")) == 2
    assert "step='5': " in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert main(("export", "wide", str(tmp_path / "none"), "--step", "5")) == 2
    assert "wide is not the folder of a distillation" in capsys.readouterr().err
    for file in (run / "checkpoints" / "6" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"broken")
    assert main(("export", str(run), str(tmp_path / "none"))) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "step='newest': checkpoint 6 cannot be read" in said and "there is 2, 4" in said


@pytest.mark.slow
def test_the_zoos_own_corpus_is_a_source(capsys, config, monkeypatch):
    texts = ["def add(left, right):\n    return left + right\n" * 3] * 4
    monkeypatch.setattr(text_data, "training_documents", lambda: texts)
    monkeypatch.setattr(text_data, "held_out_documents", lambda: texts)
    assert distil(capsys, config, "text.source=zoo:corpus", "steps=1")["steps"] == 1
