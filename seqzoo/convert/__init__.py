"""Models of other projects: checkpoint folders in Hugging Face's layout, read into our own modules.

    model = seqzoo.convert.load("mamba-130m-hf")                  # config.json and *.safetensors
    layer = seqzoo.convert.load_mixer("mamba-130m-hf", layer=1)   # one mixer of it

Each architecture is one function, decorated with `@architecture`: it maps config.json to settings of `LanguageModel`, and each
tensor of the files to parameters. A setting that cannot be mapped is refused. Comparisons with other code: docs/convert.md.
"""

from seqzoo.convert import (  # noqa: F401  (each registers architectures)
    fla,
    fla_delta,
    kimi_linear,
    mamba,
    mamba2,
    minimax,
    olmo_hybrid,
    qwen3_5,
    recurrent_gemma,
    rwkv,
    rwkv6,
    rwkv7,
    xlstm,
)
from seqzoo.convert.architecture import names
from seqzoo.convert.checkpoint import ConvertError
from seqzoo.convert.loader import load, load_mixer, settings

__all__ = ["ConvertError", "load", "load_mixer", "names", "settings"]
