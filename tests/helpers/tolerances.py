"""The tolerances and the comparison of arrays that the law uses, for every test."""

from seqzoo.testing import RELATIVE, assert_close, error, rms

__all__ = ["RELATIVE", "assert_close", "error", "rms"]
