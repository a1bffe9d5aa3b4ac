"""The backbone: an embedding, blocks of mixers and channel mixers, and a head, with the parameters' metadata and sharding."""

from seqzoo.model.block import NORMS, Block, BlockState
from seqzoo.model.language_model import LanguageModel, ModelState
from seqzoo.model.stack import REMAT, STACKS, Stack, StackState

__all__ = ["NORMS", "REMAT", "STACKS", "Block", "BlockState", "LanguageModel", "ModelState", "Stack", "StackState"]
