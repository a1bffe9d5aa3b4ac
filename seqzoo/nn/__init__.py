"""Parts that mixers and the backbone share."""

from seqzoo.nn.block_diagonal import BlockDiagonal
from seqzoo.nn.capped_gate import CappedGate
from seqzoo.nn.convolution import ShortConvolution
from seqzoo.nn.dropout import dropout
from seqzoo.nn.exponential_gate import exponential_gates, nonzero, over_larger
from seqzoo.nn.gated_output import GatedOutput
from seqzoo.nn.gates import complementary, positive, share
from seqzoo.nn.linear import Linear, torch_uniform
from seqzoo.nn.low_rank import LowRank
from seqzoo.nn.lower_bound import BoundedGate
from seqzoo.nn.norm import LayerNorm, RMSNorm
from seqzoo.nn.rotary import check_rotary, rotate
from seqzoo.nn.state_space import hippo_normal, read_out, zero_order_hold
from seqzoo.nn.taylor import taylor, taylor_width
from seqzoo.nn.token_blend import TokenBlend, small
from seqzoo.nn.token_shift import lerp, mixes, token_shift

__all__ = [
    "BlockDiagonal",
    "BoundedGate",
    "CappedGate",
    "GatedOutput",
    "LayerNorm",
    "Linear",
    "LowRank",
    "RMSNorm",
    "ShortConvolution",
    "TokenBlend",
    "check_rotary",
    "complementary",
    "dropout",
    "exponential_gates",
    "hippo_normal",
    "lerp",
    "mixes",
    "nonzero",
    "over_larger",
    "positive",
    "read_out",
    "rotate",
    "share",
    "small",
    "taylor",
    "taylor_width",
    "token_shift",
    "torch_uniform",
    "zero_order_hold",
]
