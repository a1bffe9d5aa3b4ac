"""Text data: sources, tokenizers and shards. Independent of models and training.

`prepare(source, folder)` tokenises files into shards; `load(source)` opens them, or reads a small
source into memory.
"""

from seqzoo.data.corpus import Corpus, Split, check, load, manifest_of, tokenizer_of
from seqzoo.data.errors import DataError
from seqzoo.data.prepare import prepare
from seqzoo.data.shards import SPLITS
from seqzoo.data.tokenizers import Bytes, HuggingFace, Tokenizer

__all__ = [
    "SPLITS",
    "Bytes",
    "Corpus",
    "DataError",
    "HuggingFace",
    "Split",
    "Tokenizer",
    "check",
    "load",
    "manifest_of",
    "prepare",
    "tokenizer_of",
]
