"""Parts that mixers and the backbone share."""

from seqzoo.nn.convolution import ShortConvolution
from seqzoo.nn.dropout import dropout
from seqzoo.nn.gates import complementary, positive, share
from seqzoo.nn.linear import Linear, torch_uniform
from seqzoo.nn.lower_bound import BoundedGate
from seqzoo.nn.norm import LayerNorm, RMSNorm
from seqzoo.nn.rotary import check_rotary, rotate
from seqzoo.nn.taylor import taylor, taylor_width

__all__ = [
    "BoundedGate",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "ShortConvolution",
    "check_rotary",
    "complementary",
    "dropout",
    "positive",
    "rotate",
    "share",
    "taylor",
    "taylor_width",
    "torch_uniform",
]
