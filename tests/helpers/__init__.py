"""Helpers of the tests: tolerances, the law's instrument, tiny experiments, test cases of kernels."""
