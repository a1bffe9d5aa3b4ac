"""Parts that mixers and the backbone share."""

from seqzoo.nn.convolution import ShortConvolution
from seqzoo.nn.dropout import dropout
from seqzoo.nn.linear import Linear, torch_uniform
from seqzoo.nn.norm import LayerNorm, RMSNorm
from seqzoo.nn.rotary import rotate
from seqzoo.nn.taylor import taylor, taylor_width

__all__ = ["LayerNorm", "Linear", "RMSNorm", "ShortConvolution", "dropout", "rotate", "taylor", "taylor_width", "torch_uniform"]
