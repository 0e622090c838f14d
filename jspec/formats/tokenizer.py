"""Tokenizer files of a model folder."""

import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jspec.formats.folder import TOKENIZER_FILES, read_json, write_json, write_text

# The files of a tokenizer where there is no tokenizer.json: as Llama and OPT were published.
OLDER = (("tokenizer.model",), ("vocab.json", "merges.txt"))

TokenizerSource = Any  # a folder, a tokenizer of transformers or tokenizers, or None


def read_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer of a folder; None when it holds no tokenizer files."""
    import transformers  # takes seconds, and many uses of a model need no text

    kind: Any
    options: dict[str, Any] = {}
    alone = (folder / "tokenizer.json").is_file()
    if alone:
        # Taken as the file says: the automatic choice follows model_type, and for llama it replaces
        # the file's normalisation by Llama 1's; transformers 4 adds tokens that 5 does not.
        kind = transformers.PreTrainedTokenizerFast
    elif any(all((folder / name).is_file() for name in names) for names in OLDER):
        kind, options = transformers.AutoTokenizer, {"trust_remote_code": False}
    else:
        return None
    try:
        settings = {} if alone else _settings(folder)
        if settings.get("model_type") == "llama":
            options["legacy"] = settings.get("legacy", False)
        # Cleaned spaces would differ from what the tokens say, and change while text streams.
        tokenizer = kind.from_pretrained(
            folder, local_files_only=True, clean_up_tokenization_spaces=False, **options
        )
        # Of transformers 4, Llama's class begins texts with a token that 5 adds where it is asked.
        if not alone and hasattr(tokenizer, "update_post_processor"):
            tokenizer.add_bos_token = bool(settings.get("add_bos_token"))
            tokenizer.add_eos_token = bool(settings.get("add_eos_token"))
        return tokenizer
    # A bad file raises whatever the parser, the converter or transformers raise.
    except Exception as error:
        raise ValueError(
            f"{folder}: the tokenizer cannot be read: put a tokenizer.json there that "
            f"transformers reads ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error


def write_tokenizer(
    folder: Path, tokenizer: TokenizerSource, *, stop_token_ids: tuple[int, ...]
) -> None:
    """Writes a tokenizer's files so that transformers 4.56 and 5 both read them.

    Args:
      folder: where to.
      tokenizer: a folder to copy from, or a tokenizer of transformers or tokenizers, or None.
      stop_token_ids: tokens that end a text; the first is named in the files of a
        `tokenizers.Tokenizer`.
    """
    if tokenizer is None:
        return
    if isinstance(tokenizer, str | Path):
        _copy(Path(tokenizer).expanduser(), folder)
    elif isinstance(tokenizer, Tokenizer):
        write_text(folder / "tokenizer.json", tokenizer.to_str())
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if stop_token_ids:
            settings["eos_token"] = tokenizer.id_to_token(stop_token_ids[0])
        write_json(folder / "tokenizer_config.json", settings)
    elif hasattr(tokenizer, "save_pretrained"):
        _save(tokenizer, folder)
        _use_older_names(folder / "tokenizer_config.json")
    else:
        raise ValueError(
            f"tokenizer={type(tokenizer).__name__} is no tokenizer: give a folder, or a tokenizer "
            "of transformers or tokenizers"
        )


def _settings(folder: Path) -> dict[str, Any]:
    """What a folder's files say of its tokenizer."""
    files = [folder / name for name in ("config.json", "tokenizer_config.json")]
    found = [read_json(file) for file in files if file.is_file()]
    return {name: value for part in found for name, value in part.items()}


def _copy(source: Path, folder: Path) -> None:
    files = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not files:
        raise FileNotFoundError(f"tokenizer={str(source)!r} has none of: tokenizer.json, ...")
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _save(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    # What writes tokenizer.json raises an exception of no kind where the disk is full.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{folder}: the tokenizer cannot be written ({reason})") from error


def _use_older_names(file: Path) -> None:
    """Replaces two names of transformers 5 that 4.56 cannot read; 5 reads the older ones too."""
    settings = read_json(file)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_json(file, settings)
