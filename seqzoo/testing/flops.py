"""FLOPs of the matrix products in a jaxpr."""

from typing import Any

import jax.extend
import numpy as np


def matmul_flops(jaxpr: Any) -> int:
    """FLOPs (multiply-adds x 2) of all matrix products in a jaxpr, those in a scan times its length."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            contracted = [equation.invars[0].aval.shape[axis] for axis in contract]
            total += 2 * int(np.prod(equation.outvars[0].aval.shape, dtype=int) * np.prod(contracted, dtype=int))
        inner = sum(matmul_flops(sub) for value in equation.params.values() for sub in _jaxprs(value))
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def _jaxprs(value):
    if isinstance(value, jax.extend.core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, jax.extend.core.Jaxpr):
        return [value]
    return [jaxpr for item in value for jaxpr in _jaxprs(item)] if isinstance(value, (tuple, list)) else []
