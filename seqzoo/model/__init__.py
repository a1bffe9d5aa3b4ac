"""The model: an embedding, blocks of mixers and channel mixers, and a head; metadata and sharding of its parameters."""

from seqzoo.model import params, sharding
from seqzoo.model.block import AnySpec, Block, BlockSettings, BlockState, LayerPattern, Norm, NormPosition
from seqzoo.model.language_model import LanguageModel, ModelState
from seqzoo.model.stack import Remat, Stack, StackMode, StackState

__all__ = [
    "AnySpec",
    "Block",
    "BlockSettings",
    "BlockState",
    "LanguageModel",
    "LayerPattern",
    "ModelState",
    "Norm",
    "NormPosition",
    "Remat",
    "Stack",
    "StackMode",
    "StackState",
    "params",
    "sharding",
]
