"""What minGRU and minLSTM have in common: a candidate that does not see the past, and a projection back."""

import jax.numpy as jnp

from seqzoo.mixers.linear_recurrence.recurrence import Recurrence, cells
from seqzoo.nn import Linear, positive


class MinimalRNN(Recurrence):
    """Candidate and output of the minimal recurrent networks of Feng et al. 2024; subclasses have the gates."""

    GATES: int  # how many projections of x make the gates; part of the FLOPs

    def __init__(
        self,
        d_model,
        *,
        expand=1.0,
        positive=True,
        bias=True,
        implementation=None,
        dtype=None,
        param_dtype=jnp.float32,
        rngs,
    ):
        e = cells(d_model, expand)
        settings = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.make_gates(lambda: Linear(d_model, e, bias=bias, **settings))
        self.candidate = Linear(d_model, e, bias=bias, **settings)
        self.out = Linear(e, d_model, axes=("heads", "embed"), **settings)
        self.sizes, self.positive, self.implementation = (d_model, e), positive, implementation
        self.dtype = param_dtype if dtype is None else dtype

    def make_gates(self, make) -> None:
        """Sets the gates' projections; `make()` gives one [d_model -> e]."""
        raise NotImplementedError

    def candidates(self, x):
        """What each token would write: [b, t, e], float32 or wider."""
        candidate = self.candidate(x)
        candidate = candidate.astype(jnp.promote_types(candidate.dtype, jnp.float32))
        return positive(candidate) if self.positive else candidate

    def read(self, x, h):
        return self.out(h.astype(jnp.result_type(x, self.out.w[...])))

    def flops(self, batch, length) -> int:
        d_model, e = self.sizes
        return 2 * batch * length * d_model * e * (self.GATES + 2)
