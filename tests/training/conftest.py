"""Most of a tiny run is compilation, and most runs here compile the same: they share one compilation cache."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

SETTINGS = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """A compilation cache for the session, gone with it."""
    settings = {"jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")), **SETTINGS}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX decides at the first compilation of a process whether there is one
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
