"""Parts that mixers and the backbone share."""

from seqzoo.nn.convolution import ShortConvolution
from seqzoo.nn.dropout import dropout
from seqzoo.nn.linear import Linear, torch_uniform
from seqzoo.nn.norm import LayerNorm, RMSNorm
from seqzoo.nn.rotary import rotate

__all__ = ["LayerNorm", "Linear", "RMSNorm", "ShortConvolution", "dropout", "rotate", "torch_uniform"]
