"""Mixers with a delta rule: a matrix-valued state in which a token replaces the value stored under its key."""
