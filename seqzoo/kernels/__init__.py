"""Array-in, array-out sequence kernels.

The sources lie in the checkout's top-level `kernels/`, one folder per op; a wheel carries them here. Each op is imported by its
folder, `from seqzoo.kernels.linear_attention import linear_attention`, so using one never pays for the others. `explain` tells
what the ops in a function decide: the implementation, and how a mesh cuts them.
"""

from pathlib import Path as _Path

# In a checkout the ops lie beside the package. The pyproject.toml must be there too: in an installed copy this path is
# site-packages, where a foreign `kernels` (Hugging Face's) may live.
_root = _Path(__file__).resolve().parents[2]
if (_root / "pyproject.toml").is_file() and (_root / "kernels").is_dir():
    __path__.insert(0, str(_root / "kernels"))

from seqzoo.kernels.common.notes import explain  # noqa: E402  (the path above comes first)

__all__ = ["explain"]
