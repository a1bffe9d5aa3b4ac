"""Mixers with a delta rule: a matrix-valued state that replaces what a key finds instead of adding to it."""
