"""flash-linear-attention itself, kernels and all, on a CPU: Triton's interpreter runs them with NumPy.

In a separate environment (the extra `fla`): with fla and Triton installed, models of transformers would run Triton kernels. This
folder must not be tests/fla: tests/ is on the path, and `fla` would be found as an empty package if fla is not installed.

Never in bfloat16: there the interpreter gives garbage, and says nothing.
"""

import importlib
import sys
import warnings

import pytest


class _Index(int):
    """A loop index as compiled kernels have it: it can be cast, which changes nothing here."""

    def to(self, *dtype):
        return self


def _range(*bounds):
    return map(_Index, range(*map(int, bounds)))


def _run_first(self, *arguments, **settings):
    """In place of Autotuner.run: the first configuration that fits, since without a device there is nothing to time."""
    self.nargs = dict(zip(self.arg_names, arguments, strict=False))
    chosen = self.prune_configs(settings)[0].all_kwargs()
    return self.fn.run(*arguments, **settings, **chosen)


def _as_written(function=None, **settings):
    """In place of torch.compile, which needs a C++ compiler: it decorates an activation or two."""
    return _as_written if function is None else function


def _chunks_in_float32(patch):
    """DeltaNet's and DeltaProduct's layers by chunks: the functions refuse float32, the kernels that they call take it."""
    layers = {
        "delta_net": ("chunk_delta_rule", "delta_rule.chunk", "ChunkDeltaRuleFunction", "q k v beta scale"),
        "gated_deltaproduct": (
            "chunk_gated_delta_product",
            "gated_delta_product.chunk",
            "ChunkGatedDeltaProductFunction",
            "q k v g beta scale num_householder",
        ),
    }
    last = "initial_state output_final_state use_qk_l2norm_in_kernel cu_seqlens cu_seqlens_cpu"
    for layer, (name, module, function, first) in layers.items():
        function = getattr(importlib.import_module(f"fla.ops.{module}"), function)
        order = f"{first} {last}".split()

        def call(function=function, order=order, **given):
            given = {"scale": given["k"].shape[-1] ** -0.5, "cu_seqlens_cpu": None} | given
            return function.apply(*(given[name] for name in order))

        patch.setattr(importlib.import_module(f"fla.layers.{layer}"), name, call)


@pytest.fixture(scope="session")
def fla(torch):
    """fla("ops.gla") is the module fla.ops.gla, whose kernels are interpreted."""
    assert "triton" not in sys.modules, "Triton was imported before TRITON_INTERPRET could be set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        try:
            from triton.runtime import autotuner, interpreter

            made = interpreter.InterpretedFunction.__init__

            def make(self, function, **settings):
                made(self, function, **settings)
                function.__globals__.setdefault("range", _range)

            patch.setattr(autotuner.Autotuner, "run", _run_first)
            patch.setattr(interpreter.InterpretedFunction, "__init__", make)
            patch.setattr(torch, "compile", _as_written)
            with warnings.catch_warnings(action="ignore"):  # it finds no device, and says so
                importlib.import_module("fla.models")
                _chunks_in_float32(patch)
        except ImportError as error:
            command = "pip install -e '.[test,fla]'"
            pytest.fail(f"these tests need flash-linear-attention and Triton ({error}), in an environment of their own: {command}")
        yield lambda name: importlib.import_module(f"fla.{name}")
