"""data.json of a run: what its task reads, and what its model needs of that, so that the model can be used without the data.

    files          digest of each file: a run does not continue with other contents
    vocab_size     number of token ids
    max_length     tokens of the longest row
    tokenizer      "bytes", or "tokenizer.json", which is copied into the run folder; absent for a task that is not text
    separator      the token before every document, as tokenizer.json writes it; null for bytes

A task that reads no files has no data.json: its settings say everything.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from seqzoo import tasks
from seqzoo.data import tokenizers
from seqzoo.data.atomic_io import atomic_write
from seqzoo.data.json_files import read_json, require
from seqzoo.data.shards import TOKENIZER
from seqzoo.tasks.base import Task

DATA = "data.json"


class Sizes(NamedTuple):
    """The sizes that a model takes from its task."""

    vocab_size: int
    max_length: int


def record_of(task: Task) -> dict[str, Any]:
    """The record of a task; {} if it reads no files."""
    files = task.fingerprint()
    if not files:
        return {}
    found: dict[str, Any] = {"vocab_size": task.vocab_size, "max_length": task.max_length, "files": files}
    if isinstance(task, tasks.Text):
        tokenizer = task.tokenizer
        file = isinstance(tokenizer, tokenizers.HuggingFace)
        found |= {
            "tokenizer": TOKENIZER if file else tokenizers.BYTES,
            "separator": tokenizer.separator_token if file else None,
        }
    return found


def copy_tokenizer(task: Task, folder: Path) -> None:
    """Copies the tokenizer.json of a task into the run folder, if there is one."""
    if isinstance(task, tasks.Text) and isinstance(task.tokenizer, tokenizers.HuggingFace):
        with atomic_write(folder / TOKENIZER) as file, task.tokenizer.path.open("rb") as given:
            shutil.copyfileobj(given, file)


def read(folder: Path) -> dict[str, Any]:
    """The record of a run; {} if its task reads no files. Raises DamagedFile."""
    path = Path(folder) / DATA
    found = read_json(path, absent={})
    if found:
        require(found, str(path), vocab_size=int, max_length=int, files=dict)
    return found


def sizes(folder: str | Path) -> Sizes | None:
    """The sizes that a run recorded; None where its task knows them without reading files."""
    found = read(Path(folder))
    return Sizes(found["vocab_size"], found["max_length"]) if found else None


def tokenizer_of(folder: str | Path) -> tokenizers.Tokenizer | None:
    """The tokenizer that a run recorded; None if its task is no text. Raises DamagedFile, DataError."""
    found = read(Path(folder))
    if "tokenizer" not in found:
        return None
    if found["tokenizer"] == tokenizers.BYTES:
        return tokenizers.Bytes()
    require(found, str(Path(folder) / DATA), separator=str)
    digest = str(found["files"].get("tokenizer")).removeprefix("sha256:")
    return tokenizers.load_copy(Path(folder) / TOKENIZER, found["separator"], digest)
