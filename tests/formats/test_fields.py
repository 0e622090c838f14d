"""Fields of a config.json mean to us what they mean to transformers."""

import pytest

from jspec.formats.families import FAMILIES, read_config

SIZES = {
    "vocab_size": 61,
    "hidden_size": 256,
    "num_hidden_layers": 14,
    "num_attention_heads": 32,
}
WIDE = {**SIZES, "intermediate_size": 48}
OLD_GEMMA3 = {
    "sliding_window_pattern": 3,
    "rope_theta": 5e5,
    "rope_local_base_freq": 2e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
CASES = {
    "llama": ("llama", WIDE),
    "mistral": ("mistral", WIDE),
    "mistral without window": ("mistral", {**WIDE, "sliding_window": None}),
    "qwen2": ("qwen2", WIDE),
    "qwen2 with a window nobody uses": ("qwen2", {**WIDE, "sliding_window": 64}),
    "qwen2 with late windows": (
        "qwen2",
        {**WIDE, "use_sliding_window": True, "max_window_layers": 9},
    ),
    "qwen2 with windows everywhere": (
        "qwen2",
        {**WIDE, "use_sliding_window": True, "max_window_layers": 0},
    ),
    "qwen3": ("qwen3", WIDE),
    "qwen3 with heads of a size": ("qwen3", {**WIDE, "head_dim": 64, "attention_bias": True}),
    "gemma2": ("gemma2", WIDE),
    "gemma2 without caps": (
        "gemma2",
        {**WIDE, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": ("gemma3_text", WIDE),
    "gemma3 as transformers 4 writes it": ("gemma3_text", {**WIDE, **OLD_GEMMA3}),
    "opt": ("opt", {**SIZES, "ffn_dim": 48}),
    "opt without biases": ("opt", {**SIZES, "ffn_dim": 48, "enable_bias": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_fields_and_those_that_are_absent_mean_what_transformers_makes_of_them(case):
    transformers = pytest.importorskip("transformers")
    family, fields = CASES[case]
    complete = transformers.AutoConfig.for_model(family, **fields).to_dict()
    assert len(complete) > len(fields)
    assert read_config({"model_type": family, **fields}) == read_config(complete)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_reads_the_same_in_either_spelling_alone(case):
    family, fields = CASES[case]
    config = read_config({"model_type": family, **fields})
    written = FAMILIES[family].write_config(config)
    assert read_config(written) == config
    old = {name: value for name, value in written.items() if name != "rope_parameters"}
    assert read_config(old) == config
    names = {"rope_theta", "rope_scaling", "rope_local_base_freq"}
    new = {name: value for name, value in written.items() if name not in names}
    assert read_config(new) == config
