"""Our ops against flash-linear-attention's chunk kernels: documents packed into one row after a state, values and gradients."""

import jax.numpy as jnp
import numpy as np
import pytest

from helpers import comparing
from helpers.tolerances import error
from seqzoo.kernels.linear_attention import linear_attention

pytestmark = pytest.mark.fla

ENDS = [0, 1, 20, 52, 75]  # documents of 1, 19, 32 and 23 tokens
IDS = np.repeat(np.arange(1, len(ENDS), dtype=np.int32), np.diff(ENDS))[None]
T, H, K, V = ENDS[-1], 2, 16, 24


def arrays(decay):
    """q, k, v, the log decay g, and the state before the first token; every 17th log decay is -20."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    g = {"head": (1, T, H), "channel": (1, T, H, K)}[decay]
    g = -np.exp(normal(*g) - 2)
    g[:, ::17] = -20
    return {"q": normal(1, T, H, K), "k": normal(1, T, H, K), "v": normal(1, T, H, V), "g": g, "state": normal(1, H, K, V)}


def ours(q, k, v, g, state):
    return linear_attention(q, k, v, log_decay=g, initial_state=state, initial_segment=jnp.ones(1, jnp.int32), segment_ids=IDS)


def packed(torch, kernel):
    """Theirs has a state for every document: the first one's is given, the others' are empty; the last one's final state counts."""

    def run(state, **inputs):
        states = torch.cat([state, torch.zeros(len(ENDS) - 2, H, K, V)])
        output, last = kernel(**inputs, initial_state=states, output_final_state=True, cu_seqlens=torch.tensor(ENDS))
        return output, last[-1:]

    return run


@pytest.mark.parametrize(("decay", "module"), [("head", "simple_gla"), ("channel", "gla")])
def test_packed_documents_after_a_state_equal_those_of_flas_chunk_kernel(torch, fla, decay, module):
    kernel, inputs = getattr(fla(f"ops.{module}"), f"chunk_{module}"), arrays(decay)
    comparing.assert_equal(comparing.ours(ours, inputs), comparing.theirs(torch, packed(torch, kernel), inputs), what=module)


def test_rwkv6_equals_flas_chunk_kernel(torch, fla):
    """Read before written, with a bonus for the present token."""
    inputs = arrays("channel") | {"bonus": np.random.default_rng(1).normal(size=(H, K)).astype(np.float32)}

    def exclusive(q, k, v, g, state, bonus):
        first = {"initial_state": state, "initial_segment": jnp.ones(1, jnp.int32)}
        return linear_attention(q, k, v, log_decay=g, read_before_write=True, bonus=bonus, segment_ids=IDS, **first)

    kernel = packed(torch, fla("ops.rwkv6").chunk_rwkv6)
    theirs = lambda q, k, v, g, state, bonus: kernel(r=q, k=k, v=v, w=g, u=bonus, state=state)
    comparing.assert_equal(comparing.ours(exclusive, inputs), comparing.theirs(torch, theirs, inputs))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # NumPy does not overflow in silence as a device does
def test_after_a_reset_flas_recurrent_kernel_agrees_and_its_chunk_kernel_does_not(torch, fla):
    inputs = arrays("channel")
    inputs["g"][:, ::17] = -1e6
    gla = fla("ops.gla")
    tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
    run = lambda kernel, gate: packed(torch, kernel)(**{gate if name == "g" else name: x for name, x in tensors.items()})
    wanted = run(gla.fused_recurrent_gla, "gk")[0].numpy()
    assert error(ours(**inputs)[0], wanted) < 1e-6
    assert error(run(gla.chunk_gla, "g")[0].numpy(), wanted) > 1e-3
