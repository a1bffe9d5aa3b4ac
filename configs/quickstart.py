"""MQAR, 64 tokens, 8 pairs in training and 2 to 16 in evaluation: six mixers at equal steps.

    python train.py configs/quickstart.py

The same as `python train.py` alone. The settings are in seqzoo/quickstart.py, where an installed package finds them.
"""

from seqzoo.quickstart import config

__all__ = ["config"]
