"""Distributions hold the sources on disk as real files, and importing a layer imports JAX, Flax, einops and pydantic only."""

import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(code: str, *, cwd: Path, executable: str | Path = sys.executable, path: tuple[Path, ...] = ()) -> str:
    """Output of a fresh interpreter; `path` becomes its PYTHONPATH, and nothing of ours is inherited."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "XLA_FLAGS")}
    environment = inherited | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [str(executable), "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files() -> dict[str, Path]:
    """Every source file that should be installed, by its installed path."""
    own = {p.relative_to(ROOT).as_posix(): p for p in (ROOT / "seqzoo").rglob("*.py")}
    ops = {f"seqzoo/{p.relative_to(ROOT).as_posix()}": p for p in (ROOT / "kernels").rglob("*.py")}
    return {name: path for name, path in (own | ops).items() if "__pycache__" not in path.parts}


def modules() -> set[str]:
    """Every module that should be importable."""
    return {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files()}


def packages() -> set[str]:
    """Every folder that holds source files, as a dotted name."""
    return {name.rpartition("/")[0].replace("/", ".") for name in files()}


def test_every_folder_of_source_files_is_a_package():
    assert {name.rpartition("/")[0].replace("/", ".") for name in files() if name.endswith("/__init__.py")} == packages()


def test_the_ops_have_one_import_path_through_a_relative_link():
    link = ROOT / "seqzoo" / "kernels"
    assert link.is_symlink(), "wanted a symbolic link to ../kernels (git config core.symlinks true)"
    assert link.readlink() == Path("../kernels")
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would hide another project's package called kernels"


def test_the_version_is_written_once_or_equal():
    assert python("import seqzoo; print(seqzoo.__version__)", cwd=ROOT).strip() == PROJECT["project"]["version"]


NEWLY_IMPORTED = """
    import sys
    {allowed}
    before = set(sys.modules)
    {ours}
    names = {{name.partition(".")[0] for name in set(sys.modules) - before}}
    print(*sorted(names - set(sys.stdlib_module_names)))
"""


def test_importing_the_mixers_brings_in_nothing_beyond_jax_flax_einops_and_pydantic(tmp_path):
    allowed = "import jax, jax.extend.core, flax.nnx, einops; from pydantic import BaseModel, Field"
    code = NEWLY_IMPORTED.format(allowed=allowed, ours="import seqzoo.mixers")
    found = set(python(code, cwd=tmp_path, path=(ROOT,)).split())
    assert found - {"annotated_types", "pydantic", "pydantic_core", "typing_inspection"} == {"seqzoo"}


def test_importing_the_ops_brings_in_nothing_beyond_jax(tmp_path):
    ops = sorted(name for name in packages() if name.startswith("seqzoo.kernels."))
    code = NEWLY_IMPORTED.format(allowed="import jax, jax.extend.core", ours=f"import {', '.join(ops)}")
    assert python(code, cwd=tmp_path, path=(ROOT,)).split() == ["seqzoo"]


def test_a_foreign_package_called_kernels_is_not_shadowed_from_the_checkout(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("OWNER = 'another project'")
    code = """
        import kernels, seqzoo.kernels.attention
        print(kernels.OWNER)
        print(seqzoo.kernels.attention.__file__)
    """
    # The empty first entry of sys.path is the working directory: the checkout comes before the foreign package.
    owner, ours = python(code, cwd=ROOT, path=(tmp_path,)).splitlines()
    assert owner == "another project"
    assert Path(ours).resolve() == ROOT / "kernels" / "attention" / "__init__.py"


@pytest.mark.slow
def test_the_installed_wheel_imports_whole_from_elsewhere_beside_a_foreign_kernels(tmp_path):
    source, dist, elsewhere = tmp_path / "source", tmp_path / "dist", tmp_path / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    for name in ("seqzoo", "kernels", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    # Without --wheel, the wheel is built from the source distribution, so that is complete as well.
    subprocess.run([sys.executable, "-m", "build", "--outdir", dist, source], check=True, cwd=elsewhere)
    (wheel,) = dist.glob("*.whl")
    (source_distribution,) = dist.glob("*.tar.gz")
    wanted = {*files(), "seqzoo/py.typed", *(f"seqzoo/compare/page.{kind}" for kind in ("html", "css", "js"))}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == wanted
    with tarfile.open(source_distribution) as archive:
        members = {member.name.partition("/")[2]: member for member in archive if not member.isdir()}
    assert all(member.isreg() for member in members.values()), "links are no files elsewhere"
    assert wanted <= set(members)

    clean = tmp_path / "clean"
    venv.create(clean, with_pip=True, symlinks=True)
    executable = clean / "bin" / "python"
    install = [executable, "-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True, cwd=elsewhere)
    site = Path(python("import sysconfig; print(sysconfig.get_path('purelib'))", cwd=elsewhere, executable=executable).strip())
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text("OWNER = 'another project'")
    # Our dependencies come from the testing interpreter: a .pth adds its folder, but none of the .pth files in there,
    # so that an editable install of the checkout stays out.
    (site / "dependencies.pth").write_text(python("import sysconfig; print(sysconfig.get_path('purelib'))", cwd=elsewhere))

    imported = python(
        f"""
        import importlib, pathlib
        for name in {sorted(modules() - {"seqzoo.__main__"})!r}:
            module = importlib.import_module(name)
            assert pathlib.Path(module.__file__).is_relative_to({str(site)!r}), module.__file__
        import kernels
        print(kernels.OWNER)
        """,
        cwd=elsewhere,
        executable=executable,
    )
    assert imported.split("\n")[0] == "another project"
    assert (site / "seqzoo" / "py.typed").is_file()
    subprocess.run([clean / "bin" / "seqzoo", "--help"], check=True, cwd=elsewhere, stdout=subprocess.DEVNULL)
