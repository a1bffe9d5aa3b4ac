"""Workaround for a leak in TensorStore 0.1.86: JSON that it gives to Python is never freed.

    spec = ts.KvStore.Spec({"driver": "file", "path": "/tmp/"})
    sys.getrefcount(spec.to_json()["path"])       # one too many

Orbax asks for such values at every save: for its log, and for each array. A run lost 19 KiB per checkpoint of two arrays, for ever.
Delete this file when `test_tensorstore_still_leaks_the_json_that_it_gives` fails: TensorStore then frees them.
"""

import contextlib
import types
from collections.abc import Iterator
from typing import Any

from orbax.checkpoint._src.serialization import tensorstore_utils


class _Spec:
    """The part of `ts.KvStore.Spec` that Orbax asks for JSON: that of a file system's folder is as it was given."""

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec

    def to_json(self) -> dict[str, Any]:
        return dict(self.spec)


@contextlib.contextmanager
def without_leak() -> Iterator[None]:
    """Context in which Orbax asks TensorStore for no JSON: the bytes in its log are 0, and specs are as it wrote them.

    A function that this version of Orbax does not have is not replaced.
    """
    makers = {"get_tensorstore_raw_bytes": lambda _: lambda *_: 0, "_build_ocdbt_kvstore_tspec": _with_specs_as_given}
    found = {name: getattr(tensorstore_utils, name) for name in makers if hasattr(tensorstore_utils, name)}
    for name, function in found.items():
        setattr(tensorstore_utils, name, makers[name](function))
    try:
        yield
    finally:
        for name, function in found.items():
            setattr(tensorstore_utils, name, function)


def _with_specs_as_given(function: types.FunctionType) -> types.FunctionType:
    """A copy of the function in which `ts.KvStore.Spec(...)` is ours."""
    given = types.SimpleNamespace(KvStore=types.SimpleNamespace(Spec=_Spec))
    copy = types.FunctionType(function.__code__, function.__globals__ | {"ts": given}, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
