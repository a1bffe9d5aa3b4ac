"""The other projects. They are imported when a test runs, never at collection: the default suite needs none of them."""

import importlib.util
import subprocess
import sys
import zipfile

import pytest

FLA = "fla-core==0.6.0"  # flash-linear-attention's ops; MIT


@pytest.fixture(scope="session")
def torch():
    """PyTorch, on one thread: the tiny tensors here gain nothing from more."""
    try:
        import torch
    except ImportError as error:
        pytest.fail(f"the oracle tier needs PyTorch and transformers ({error}): pip install -e '.[oracle]'")
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="session")
def fla(torch, tmp_path_factory):
    """fla("gla/naive") is the module fla/ops/gla/naive.py of the released wheel, loaded alone.

    The package is unpacked and not installed: with it and Triton, transformers would run Triton kernels, which a CPU cannot.
    """
    folder = tmp_path_factory.mktemp("fla")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*pip, "--dest", folder, FLA], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"the oracle tier needs the wheel of {FLA} from a package index:\n{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.endswith("naive.py")])

    def load(name):
        specification = importlib.util.spec_from_file_location(f"fla_{name.replace('/', '_')}", folder / f"fla/ops/{name}.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    return load
