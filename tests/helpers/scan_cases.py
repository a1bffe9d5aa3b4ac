"""Shared parts of the scans' tests: violent gates, packed rows, and the definition in float64 to compare with.

An op's inputs are a dict of arrays by argument name; what is compared is one too: "output", "last" and the gradient to each input.
`per_token` names the inputs that are [b, t, ...].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from helpers.tolerances import RELATIVE, assert_close, rms

IMPLEMENTATIONS = ["recurrent", "chunkwise"]
VIOLENT = [0.0, -20.0, -100.0, -1e4, -1e6, -np.inf]  # log decays at every 17th token
# With chunks of 4: documents of 1, 2, 3, 4, 5, 6 and 9 tokens, ids that return, padding before, inside, after and everywhere.
IDS = np.array(
    [
        [0, 0, 5, 1, 1, 2, 0, 2, 2, 1, 1, 1, 0, 0, 1, 3, 3, 3, 3, 3, 3, 0, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 2, 0, 1, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4],
        [0] * 37,
    ],
    np.int32,
)


def projection(outputs):
    """The cotangents of an op's two outputs: a fixed random projection."""
    random = np.random.default_rng(7)
    return [random.normal(size=o.shape) for o in outputs]


@functools.cache
def _compiled(op, settings):
    def loss(arrays, segments, weights):
        outputs = op(**arrays, **segments, **dict(settings))
        weights = projection(outputs) if weights is None else weights
        return sum(jnp.sum(o * jnp.asarray(w)) for o, w in zip(outputs, weights, strict=True)), outputs

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def everything(op, arrays, ids=None, initial_segment=None, weights=None, **settings):
    """Both outputs, and the gradients of a projection of both: what the tests compare."""
    segments = {"segment_ids": ids, "initial_segment": initial_segment}
    (_, (output, last)), gradients = _compiled(op, tuple(settings.items()))(arrays, segments, weights)
    return {"output": output, "last": last, **gradients}


def everything64(op, arrays, *arguments, **settings):
    """The same, in float64 from end to end."""
    with jax.enable_x64(True):
        result = everything(op, {name: np.asarray(x, np.float64) for name, x in arrays.items()}, *arguments, **settings)
        assert all(x.dtype == jnp.float64 for x in result.values())
        return {name: np.asarray(x) for name, x in result.items()}


exact = functools.partial(everything64, implementation="reference")


def at(arrays, per_token, tokens):
    """The arrays at some of the tokens."""
    return {name: x[:, tokens] if name in per_token else x for name, x in arrays.items()}


def carried_on(last, ids):
    """The last non-zero id of each row; `last` where there is none."""
    return np.array([ids_row[ids_row != 0][-1] if ids_row.any() else old for old, ids_row in zip(last, ids, strict=True)], np.int32)


def cut_in_two(op, arrays, per_token, cut, ids, initial_segment):
    """The op's outputs for a row in two pieces, the state and its document carried across."""
    pieces, state, segment = [], arrays["initial_state"], initial_segment
    for part in (slice(0, cut), slice(cut, None)):
        piece = {**at(arrays, per_token, part), "initial_state": state}
        output, state = op(**piece, segment_ids=ids[:, part], initial_segment=segment)
        segment = carried_on(segment, ids[:, part])
        pieces.append(output)
    return jnp.concatenate(pieces, axis=1), state


def assert_close_on_the_scale_of(mild, got, wanted, what=""):
    """Violent gates make results small: the errors count against those of mild rows."""
    for name in wanted:
        assert_close(got[name], wanted[name], scale=rms(mild[name]), what=f"{name} {what}")


def assert_documents_are_those_run_alone(op, arrays, per_token, ids, implementation, **settings):
    """One packed row after the state of another document, against each document without ids, from zero, in float64."""
    got = everything(op, arrays, ids[None], np.array([7], np.int32), implementation=implementation, **settings)
    weights = projection((got["output"], got["last"]))
    wanted = {name: np.zeros(x.shape) for name, x in got.items()}
    real = np.flatnonzero(ids)
    documents = np.split(real, np.flatnonzero(np.diff(ids[real])) + 1)[:: -1 if settings.get("reverse") else 1]
    if not real.size:
        documents, wanted["last"], wanted["initial_state"] = [], arrays["initial_state"], weights[1]
    for tokens in documents:
        alone = at({name: x for name, x in arrays.items() if name != "initial_state"}, per_token, tokens)
        reads_last = tokens is documents[-1]  # only the state after the last document is the row's
        result = exact(op, alone, weights=[weights[0][:, tokens], weights[1] * reads_last], **settings)
        wanted["last"] = result.pop("last")
        for name, x in result.items():
            if name in ("output", *per_token):
                wanted[name][:, tokens] = x
            else:
                wanted[name] += x
    assert_close(got, wanted)
    for name in ("output", *per_token):
        assert np.all(np.asarray(got[name])[:, ids == 0] == 0), f"{name} at padding"


def assert_a_cut_changes_nothing(op, arrays, per_token, cut):
    """Values, final state and gradients of the rows of IDS, whole and cut in two."""
    carried = np.array([5, 3, 2], np.int32)  # row 0's state belongs to its first document

    def summed(function):
        def loss(arrays):
            outputs = function(arrays)
            return sum(jnp.sum(jnp.sin(o)) for o in outputs), outputs

        return jax.jit(jax.grad(loss, has_aux=True))(arrays)

    whole = summed(lambda x: op(**x, segment_ids=IDS, initial_segment=carried))
    assert_close(summed(lambda x: cut_in_two(op, x, per_token, cut, IDS, carried)), whole)


def assert_dtypes_are_kept(op, arrays, implementation):
    """float64 stays float64, and bfloat16 accumulates in a float32 state."""
    assert_close(everything64(op, arrays, implementation=implementation), exact(op, arrays), tolerance=RELATIVE["float64"])
    low = {name: jnp.asarray(x, jnp.bfloat16) for name, x in arrays.items()}
    got, wanted = everything(op, low, implementation=implementation), exact(op, low)
    assert {name: str(x.dtype) for name, x in got.items()} == {**dict.fromkeys(got, "bfloat16"), "last": "float32"}
    assert_close(got, wanted, tolerance=RELATIVE["bfloat16"])
    assert_close(got["last"], wanted["last"])


def assert_vmap_checkpoint_and_scan_compose(op, arrays, scaled):
    """Gradients to a factor of the input `scaled`, mapped, looped and scanned over two factors."""

    @jax.checkpoint
    def outputs(scale):
        return op(**{**arrays, scaled: scale * arrays[scaled]})

    def loss(scale):
        output, last = outputs(scale)
        return jnp.sum(output**2) + jnp.sum(last)

    scales = jnp.array([0.5, 2.0])
    wanted = jnp.stack([jax.grad(loss)(s) for s in scales])
    assert_close(jax.vmap(jax.grad(loss))(scales), wanted)
    assert_close(jax.lax.map(jax.grad(loss), scales), wanted)
    assert_close(jax.grad(lambda s: jax.lax.scan(lambda c, x: (c + loss(x), None), 0.0, s)[0])(scales), wanted)


def assert_a_mesh_changes_nothing(op, arrays, ids=None, **settings):
    """A batch of 8 over 8 devices; inputs without a batch stand on all."""
    wanted = everything(op, arrays, ids, **settings)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        specs = {name: jax.P("fsdp") if len(x) == 8 else jax.P() for name, x in arrays.items()}
        placed = {name: jax.device_put(x, jax.NamedSharding(mesh, specs[name])) for name, x in arrays.items()}
        assert_close(everything(op, placed, ids, **settings), wanted)
