"""Mixers on linear recurrences against the formulas of their papers, written out in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax import nnx

from helpers.published import B, D, T, affine, built, matrix_state, recurrent, rms_norm, sigmoid, silu, split, wide
from helpers.tolerances import assert_close
from seqzoo import mixers
from seqzoo.model import params

erf = np.vectorize(math.erf)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def complex_of(real, imaginary):
    return wide(real) + 1j * wide(imaginary)


def causal(kernel, x):
    """sum_l kernel_l x_{t-l}, kernel [t, d], x [b, t, d]."""
    return np.stack([(kernel[t::-1][None] * x[:, : t + 1]).sum(1) for t in range(x.shape[1])], axis=1)


def gated(output, y, gelu):
    """Activation and GLU of a state-space model; without gelu outside the gate where the layer is made so."""
    u = gelu(y)
    value = u if output.gelu else y
    if output.gate is None:
        return value
    return (value if output.value is None else affine(output.value, u)) * sigmoid(affine(output.gate, u))


def convolved(convolution, x):
    kernel = wide(convolution.w)  # the last one is the present token's
    padded = np.concatenate([np.zeros((x.shape[0], len(kernel) - 1, x.shape[2])), x], axis=1)
    return sum(w * padded[:, j : j + x.shape[1]] for j, w in enumerate(kernel)) + wide(convolution.b)


def assert_uniform(values, low, high):
    """The sorted values are those of a uniform distribution, but for what so many draws leave open."""
    assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    count = values.size
    assert_close(np.sort(values) - low, (high - low) * (np.arange(count) + 0.5) / count, tolerance=2.5 / np.sqrt(count))


@pytest.mark.parametrize("settings", ["", "expand=2, positive=False, bias=False"])
def test_min_gru_moves_each_cell_towards_a_candidate(settings):
    mixer, x, y = built(f"min_gru({settings})")
    z, c = sigmoid(affine(mixer.update_gate, x)), affine(mixer.candidate, x)
    c = c if settings else np.where(c >= 0, c + 0.5, sigmoid(c))
    assert_close(y, recurrent(1 - z, z * c) @ wide(mixer.out.w))


@pytest.mark.parametrize("settings", ["", "expand=2, positive=False, bias=False"])
def test_min_lstm_divides_its_gates_by_their_sum(settings):
    mixer, x, y = built(f"min_lstm({settings})")
    f, i, c = sigmoid(affine(mixer.forget_gate, x)), sigmoid(affine(mixer.input_gate, x)), affine(mixer.candidate, x)
    c = c if settings else np.where(c >= 0, c + 0.5, sigmoid(c))
    assert_close(y, recurrent(f / (f + i), i / (f + i) * c) @ wide(mixer.out.w))


@pytest.mark.parametrize("settings", ["", "expand=2", "lower_bound=0", "lower_bound=0.75"])
def test_hgrn_forgets_no_faster_than_its_bound(settings):
    mixer, x, y = built(f"hgrn({settings})")
    bound = mixer.bounded.lower_bound if mixer.bounded.logit is None else sigmoid(wide(mixer.bounded.logit))
    a = bound + (1 - bound) * sigmoid(affine(mixer.forget, x))
    i, g = affine(mixer.input, x), affine(mixer.gate, x)
    h = recurrent(a, (1 - a) * i * sigmoid(i))
    h = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5) * wide(mixer.norm.scale)
    assert_close(y, (g * sigmoid(g) * h) @ wide(mixer.out.w))


def test_hgrn_bounds_start_at_the_share_of_layers_below():
    """A softmax over layers of equal logits, summed over the layers from the second to one's own."""
    for index in range(4):
        mixer = mixers.create("hgrn", D, depth=(index, 4), rngs=nnx.Rngs(0))
        table = np.full(4, 1 / 4)
        assert_close(sigmoid(wide(mixer.bounded.logit)), np.full(D, max(table[1 : index + 1].sum(), 0.01)))


@pytest.mark.parametrize("settings", ["", "state=12, r_min=0.9, r_max=0.99, max_phase=0.3"])
def test_lru_rotates_and_shrinks_in_the_complex_plane(settings):
    mixer, x, y = built(f"lru({settings})")
    eigenvalues = np.exp(-np.exp(wide(mixer.nu)) + 1j * np.exp(wide(mixer.theta)))
    written = np.exp(wide(mixer.g)) * (x @ (wide(mixer.b_real.w) + 1j * wide(mixer.b_imaginary.w)))
    h = recurrent(np.broadcast_to(eigenvalues, written.shape), written)
    assert_close(y, (h @ (wide(mixer.c_real.w) + 1j * wide(mixer.c_imaginary.w))).real + wide(mixer.skip) * x)


@pytest.mark.parametrize(("low", "high", "phase"), [(0.0, 1.0, 2 * np.pi), (0.9, 0.99, 0.3)])
def test_lru_starts_uniform_on_its_ring(low, high, phase):
    """Uniform by area: the squared radius is uniform. Gamma undoes what the radius does to the variance of white noise."""
    settings = f"state=4096, r_min={low}, r_max={high}, max_phase={phase}"
    mixer = mixers.create(f"lru({settings})", 4, rngs=nnx.Rngs(0))
    square, angle = np.exp(-2 * np.exp(wide(mixer.nu))), np.exp(wide(mixer.theta))
    for values, first, last in ((square, low**2, high**2), (angle, 0, phase)):
        assert first <= values.min() * (1 + 1e-6) and values.max() <= last * (1 + 1e-6)
        assert_close(np.sort(values), first + (last - first) * (np.arange(4096) + 0.5) / 4096, tolerance=0.03)
    assert_close(np.exp(2 * wide(mixer.g)), 1 - square, tolerance=1e-4)


@pytest.mark.parametrize("settings", ["", "state=6, init='inv', glu='half'", "state=2, glu='none'"])
def test_s4d_convolves_with_its_kernel(settings):
    """K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n): the convolution that the released code does by FFT."""
    mixer, x, y = built(f"s4d({settings})")
    a, dt = -np.exp(wide(mixer.log_rate)) + 1j * wide(mixer.frequency), np.exp(wide(mixer.log_dt))[:, None]
    weight = complex_of(mixer.c_real, mixer.c_imaginary) * (np.exp(dt * a) - 1) / a
    kernel = 2 * np.einsum("dn,dnl->ld", weight, np.exp((dt * a)[..., None] * np.arange(T))).real
    assert_close(y, gated(mixer.out, causal(kernel, x) + wide(mixer.skip) * x, gelu))


@pytest.mark.parametrize(
    ("init", "frequencies"), [("lin", [0, np.pi, 2 * np.pi]), ("inv", [6 / np.pi * 5, 6 / np.pi, 6 / np.pi / 5])]
)
def test_s4d_starts_at_the_frequencies_of_its_name(init, frequencies):
    mixer = mixers.create(f"s4d(state=6, init='{init}', dt_min=0.01, dt_max=0.5)", 1024, rngs=nnx.Rngs(0))
    assert_close(wide(mixer.frequency), np.broadcast_to(frequencies, (1024, 3)))
    assert_close(-np.exp(wide(mixer.log_rate)), np.full((1024, 3), -0.5))
    assert_uniform(wide(mixer.log_dt), np.log(0.01), np.log(0.5))
    c = complex_of(mixer.c_real, mixer.c_imaginary)
    assert abs((np.abs(c) ** 2).mean() - 1) < 0.1 and abs((c**2).mean()) < 0.1  # circular: equal variance in both planes


@pytest.mark.parametrize(
    "settings", ["", "state=12, blocks=2, stable=False, glu='full'", "state=8, blocks=1, glu='none'", "glu='half2'", "glu='linear'"]
)
def test_s5_is_a_dense_system_held_for_a_step(settings):
    """The conjugates written out, and the input held: [[dt A, dt B], [0, 0]] exponentiated as one matrix."""
    mixer, x, y = built(f"s5({settings})")
    both = lambda half: np.concatenate([half, half.conj()], axis=0)
    a, dt = both(complex_of(mixer.real, mixer.imaginary)), both(np.exp(wide(mixer.log_dt)))
    b, c = both(complex_of(mixer.b_real.w, mixer.b_imaginary.w).T), both(complex_of(mixer.c_real.w, mixer.c_imaginary.w))
    n = len(a)
    generator = np.zeros((n + D, n + D), complex)
    generator[:n, :n], generator[:n, n:] = np.diag(dt * a), dt[:, None] * b
    step = scipy.linalg.expm(generator)
    h, read = np.zeros((B, n), complex), []
    for t in range(T):
        h = h @ step[:n, :n].T + x[:, t] @ step[:n, n:].T
        read.append(h @ c)
    read = np.stack(read, axis=1)
    assert np.abs(read.imag).max() < 1e-12, "a state and its conjugate read as a real number"
    assert_close(y, gated(mixer.out, read.real + wide(mixer.skip) * x, gelu_tanh))


def test_s5_by_the_bilinear_rule_solves_for_the_mean_of_two_states():
    """h_t - h_{t-1} = dt A (h_t + h_{t-1}) / 2 + dt B x_t, solved for h_t."""
    mixer, x, y = built("s5(discretization='bilinear', glu='linear')")
    a, dt = complex_of(mixer.real, mixer.imaginary), np.exp(wide(mixer.log_dt))
    b, c = complex_of(mixer.b_real.w, mixer.b_imaginary.w), complex_of(mixer.c_real.w, mixer.c_imaginary.w)
    h, read = np.zeros((B, len(a)), complex), []
    for t in range(T):
        h = np.linalg.solve(np.diag(1 - dt * a / 2), ((1 + dt * a / 2) * h + dt * (x[:, t] @ b)).T).T
        read.append(2 * (h @ c).real)
    assert_close(y, np.stack(read, axis=1) + wide(mixer.skip) * x)


def test_s5_starts_at_blocks_of_hippo():
    """Back in its own coordinates, A is the normal part of HiPPO-LegS, one block after the other, and B is real."""
    n, blocks, d = 64, 4, 256
    mixer = mixers.create(f"s5(state={n}, blocks={blocks})", d, rngs=nnx.Rngs(0))
    size = n // blocks
    order = np.arange(size)
    legs = -np.tril(np.sqrt(np.outer(2 * order + 1, 2 * order + 1)), -1) - np.diag(order + 1)
    normal = legs + np.outer(np.sqrt(order + 0.5), np.sqrt(order + 0.5))
    eigenvalues = np.linalg.eigvals(normal)
    wanted = np.sort(eigenvalues.imag[eigenvalues.imag < 0])
    assert_close(wide(mixer.real), np.full(n // 2, -0.5))
    assert_close(wide(mixer.imaginary), np.tile(wanted, blocks))
    for real, imaginary, variance in ((mixer.b_real, mixer.b_imaginary, 1 / n), (mixer.c_real, mixer.c_imaginary, 2 / n)):
        assert abs((np.abs(complex_of(real.w, imaginary.w)) ** 2).mean() / variance - 1) < 0.05


def test_s5_keeps_its_eigenvalues_stable_by_default():
    for stable in (True, False):
        mixer = mixers.create(f"s5(stable={stable})", D, rngs=nnx.Rngs(0))
        mixer.real = nnx.Param(jnp.ones_like(mixer.real[...]))
        decay, _ = mixer.decay_and_input(jnp.ones((1, 1, D)))
        assert (np.abs(decay).max() < 1) == stable


def by_document(x, ids, function):
    """function of each document alone, [t, d] -> [t, e], in the rows of x."""
    y = None
    for row, start in zip(*np.nonzero(np.diff(ids, prepend=0)), strict=True):
        tokens = slice(start, start + np.argmin(np.append(ids[row, start:] == ids[row, start], False)))
        alone = function(x[row : row + 1, tokens])
        y = np.zeros((*x.shape[:2], alone.shape[2])) if y is None else y
        y[row, tokens] = alone[0]
    return y


@pytest.mark.parametrize("settings", ["", "expand=1.5, heads=2, conv_size=1"])
def test_rg_lru_writes_what_it_forgets_and_the_first_token_whole(settings):
    mixer, x, _ = built(f"rg_lru({settings})")
    ids = np.repeat([[1, 2], [3, 4]], [7, T - 7], axis=1).astype(np.int32)
    got, _ = jax.jit(lambda mixer, x: mixer(x, segment_ids=ids))(mixer, x.astype(np.float32))

    def dense(gate, u):
        return u @ scipy.linalg.block_diag(*wide(gate.w)) + wide(gate.b).ravel()

    def alone(x):
        u = convolved(mixer.conv_1d, affine(mixer.linear_x, x))
        r, i = sigmoid(dense(mixer.recurrent_gate, u)), sigmoid(dense(mixer.input_gate, u))
        a = sigmoid(-wide(mixer.recurrent_param)) ** (8 * r)  # the paper's form
        m = np.sqrt(1 - a**2)
        m[:, 0] = 1
        return affine(mixer.linear_out, gelu_tanh(affine(mixer.linear_y, x)) * recurrent(a, m * i * u))

    assert_close(got, by_document(x, ids, alone))


@pytest.mark.parametrize("limit", [(0.0, None), (0.1, None), (0.05, 0.2)])
def test_mamba2_clips_its_steps(limit):
    """dt = clip(softplus(W_dt u + b), limit), in the decay and in what is written."""
    mixer, u, y = built(f"mamba2(head_dim=8, state=4, groups=2, dt_limit={limit})")
    heads = mixer.heads
    x, bc = (silu(convolved(f, affine(p, u))) for f, p in ((mixer.convolution, mixer.x), (mixer.bc_convolution, mixer.bc)))
    b, c = (np.repeat(split(part, 2), heads // 2, axis=2) for part in np.split(bc, 2, axis=-1))
    dt = np.log1p(np.exp(affine(mixer.dt, u) + wide(mixer.dt_bias)))
    assert (dt < 0.05).any() and (dt > 0.2).any(), "both limits bind somewhere"
    dt, x = np.clip(dt, *limit)[..., None], split(x, heads)
    o = matrix_state(c, b, x * dt, np.exp(-dt * np.exp(wide(mixer.a_log))[:, None])) + wide(mixer.skip)[:, None] * x
    gated = o.reshape(B, T, -1) * silu(affine(mixer.z, u))
    normed = rms_norm(split(gated, 2), wide(mixer.norm.scale).reshape(2, -1), 1e-5).reshape(gated.shape)
    assert_close(y, affine(mixer.out, normed))


@pytest.mark.parametrize("start", [0, 3])
def test_rg_lru_starts_at_the_positions_that_it_is_given(start):
    """A token of position 0 forgets all before it and is written whole; no other is, also not the first of a row."""
    mixer, x, _ = built("rg_lru")
    positions = np.broadcast_to(np.concatenate([np.arange(start, start + 9), np.arange(T - 9)]), (B, T)).astype(np.int32)
    got = jax.jit(lambda mixer, x: mixer(x, positions=positions)[0])(mixer, x.astype(np.float32))
    dense = lambda gate, u: u @ scipy.linalg.block_diag(*wide(gate.w)) + wide(gate.b).ravel()
    u, reset = convolved(mixer.conv_1d, affine(mixer.linear_x, x)), (positions == 0)[..., None]
    r, i = sigmoid(dense(mixer.recurrent_gate, u)), sigmoid(dense(mixer.input_gate, u))
    a = sigmoid(-wide(mixer.recurrent_param)) ** (8 * r)
    h = recurrent(np.where(reset, 0, a), np.where(reset, 1, np.sqrt(1 - a**2)) * i * u)
    assert_close(got, affine(mixer.linear_out, gelu_tanh(affine(mixer.linear_y, x)) * h))


def test_rg_lru_has_finite_gradients_with_closed_gates():
    """At a = 1 the square root has no slope; that of sigmoid is 0 there, and their product is taken as that."""
    mixer = mixers.create("rg_lru", D, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, T, D))
    for bias in (-1e4, -60.0, 1e4):
        mixer.recurrent_gate.b = nnx.Param(jnp.full_like(mixer.recurrent_gate.b[...], bias))
        slopes = jax.jit(jax.grad(lambda mixer: (mixer(x)[0] ** 2).sum()))(mixer)
        assert all(np.isfinite(slope).all() for slope in jax.tree.leaves(slopes))


def test_rg_lru_starts_uniform_on_its_ring_and_divides_by_depth():
    mixer = mixers.create("rg_lru", 2048, depth=(3, 8), rngs=nnx.Rngs(0))
    assert_uniform(sigmoid(-wide(mixer.recurrent_param)) ** 2, 0.9**2, 0.999**2)
    assert abs(wide(mixer.linear_out.w).var() * 2048 * 8 / 2 - 1) < 0.05
    assert abs(wide(mixer.input_gate.w).var() * 2048 / 4 - 1) < 0.05
    assert abs(wide(mixer.conv_1d.w).var() * 4 / 0.01 - 1) < 0.1


@pytest.mark.parametrize("settings", ["", "expand=1, conv_size=2, reversed=False"])
def test_qlstm_gates_what_it_keeps_writes_and_reads(settings):
    mixer, x, y = built(f"qlstm({settings})")
    u = convolved(mixer.conv_1d, affine(mixer.linear_x, x))
    f, i, o = (affine(gate, u) for gate in (mixer.forget_gate, mixer.input_gate, mixer.output_gate))
    a = sigmoid(f) if mixer.alpha is None else sigmoid(-f) ** max(wide(mixer.alpha)[0], 0)
    h = recurrent(a, sigmoid(i) * u)
    assert_close(y, affine(mixer.linear_out, gelu(affine(mixer.linear_y, x)) * sigmoid(o) * h))


def test_qlstm_never_grows_though_alpha_may_fall_below_zero():
    mixer = mixers.create("qlstm", D, rngs=nnx.Rngs(0))
    assert wide(mixer.alpha) == [1.0]
    mixer.alpha = nnx.Param(-jnp.ones(1))
    log_decay, _ = mixer.decay_and_input(jnp.ones((1, 2, 2 * D)), None, None, None)
    assert not np.any(log_decay)


@pytest.mark.parametrize("settings", ["", "state=1"])
def test_mega_averages_are_a_convolution(settings):
    """k_l = sum_n gamma_n p_n beta_n (1 - p_n q_n)^l / sqrt(n): the kernel that the released code transforms."""
    mixer, x, y = built(f"mega_ema({settings})")
    p, q = sigmoid(wide(mixer.alpha)), sigmoid(wide(mixer.delta))
    weight = wide(mixer.gamma) * p * wide(mixer.beta) / np.sqrt(p.shape[1])
    kernel = np.einsum("dn,dnl->ld", weight, (1 - p * q)[..., None] ** np.arange(T))
    assert_close(y, silu(causal(kernel, x) + wide(mixer.omega) * x))


def test_mega_starts_with_signs_that_alternate():
    mixer = mixers.create("mega_ema", 1024, rngs=nnx.Rngs(0))
    alpha, beta, gamma, delta, omega = map(wide, (mixer.alpha, mixer.beta, mixer.gamma, mixer.delta, mixer.omega))
    assert_close(beta.mean(0), np.array([1, -1] * 8), tolerance=0.01)
    for values, deviation in ((beta - beta.mean(0), 0.02), (alpha, 0.2), (delta, 0.2), (gamma, 1), (omega, 1)):
        assert abs(values.std() / deviation - 1) < 0.1


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ("s4d", {"c_real", "c_imaginary", "out/value/w", "out/gate/w"}),
        ("s5", {"c_real/w", "c_imaginary/w", "out/gate/w"}),
        ("mega_ema", {"beta", "gamma"}),
        (
            "rg_lru",
            {"linear_x/w", "linear_y/w", "conv_1d/w", "recurrent_gate/w", "input_gate/w", "linear_out/w"},
        ),
    ],
)
def test_weight_decay_does_not_act_on_the_parameters_of_decays(spec, kept):
    _, state = params.split(mixers.create(spec, D, rngs=nnx.Rngs(0)))
    decays = jax.tree_util.tree_leaves_with_path(params.decay_mask(state))
    assert {"/".join(str(key.key) for key in path) for path, decayed in decays if decayed} == kept


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("min_gru(expand=0.01)", "expand=0.01 makes an inner width of 0 of d_model=32"),
        ("hgrn(lower_bound=1.0)", r"lower_bound=1.0, wanted number in \[0, 1\) or None"),
        ("lru(state=0)", "lru: state=0, wanted int in"),
        ("lru(r_min=0.9, r_max=0.8)", "wanted 0 <= r_min < r_max <= 1"),
        ("lru(max_phase=0)", "max_phase=0, wanted number > 0"),
        ("s4d(state=5)", "state=5: wanted an even number"),
        ("s4d(init='legs')", "init='legs', wanted 'lin' or 'inv'"),
        ("s4d(glu='whole')", "glu='whole', wanted 'full' or 'half' or 'half2' or"),
        ("s4d(dt_min=0.2)", "dt_min=0.2 and dt_max=0.1: wanted 0 < dt_min <= dt_max"),
        ("s5(state=24)", "state=24 and blocks=8: wanted 2 \\* blocks to divide state"),
        ("mamba2(dt_limit=(0.2, 0.1))", "dt_limit=\\(0.2, 0.1\\): wanted the smaller step size first"),
        ("mamba2(dt_limit=(-1, None))", "dt_limit=\\(-1, None\\), wanted \\(number >= 0, number > 0 or None\\)"),
        ("s5(dt_min=0)", "dt_min=0, wanted number > 0"),
        ("rg_lru(heads=3)", "heads=3 does not divide the widths 32 and 32"),
        ("rg_lru(conv_size=0)", "conv_size=0, wanted int in"),
        ("qlstm(expand=0)", "expand=0, wanted number in"),
        ("mega_ema(state=0)", "mega_ema: state=0, wanted int in"),
    ],
)
def test_settings_that_do_not_fit_are_refused(spec, says):
    with pytest.raises(ValueError, match=says):
        mixers.create(spec, D, rngs=nnx.Rngs(0))
