"""Parts that mixers and the backbone share."""

from seqzoo.nn.block_diagonal import BlockDiagonal
from seqzoo.nn.convolution import ShortConvolution
from seqzoo.nn.dropout import dropout
from seqzoo.nn.exponential_gate import exponential_gates, nonzero_divisor, scaled, subtract_maximum
from seqzoo.nn.gated_output import GatedOutput
from seqzoo.nn.gates import complementary, normalised_gates, positive
from seqzoo.nn.linear import Linear, torch_uniform
from seqzoo.nn.low_rank import LowRank
from seqzoo.nn.lower_bounded_gate import LowerBoundedGate
from seqzoo.nn.norm import LayerNorm, RMSNorm
from seqzoo.nn.rotary import check_rotary, rotate
from seqzoo.nn.soft_capped_gate import SoftCappedGate
from seqzoo.nn.state_space import bilinear, hippo_normal, read_out, zero_order_hold
from seqzoo.nn.taylor import taylor_feature_dim, taylor_features
from seqzoo.nn.token_blend import TokenBlend, small
from seqzoo.nn.token_shift import lerp, mixes, token_shift

__all__ = [
    "BlockDiagonal",
    "GatedOutput",
    "LayerNorm",
    "Linear",
    "LowRank",
    "LowerBoundedGate",
    "RMSNorm",
    "ShortConvolution",
    "SoftCappedGate",
    "TokenBlend",
    "bilinear",
    "check_rotary",
    "complementary",
    "dropout",
    "exponential_gates",
    "hippo_normal",
    "lerp",
    "mixes",
    "nonzero_divisor",
    "normalised_gates",
    "positive",
    "read_out",
    "rotate",
    "scaled",
    "small",
    "subtract_maximum",
    "taylor_feature_dim",
    "taylor_features",
    "token_shift",
    "torch_uniform",
    "zero_order_hold",
]
