"""The files of a checkpoint: config.json, where every key must be used, and tensors by name."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from seqzoo.data.json_files import DamagedFile, read_json

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"  # maps tensors to files, if there are several
WEIGHTS = "model.safetensors"

# Written by transformers for every model; without effect on the output for token ids.
NO_EFFECT: tuple[str, ...] = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "model_type",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


class ConvertError(ValueError):
    """A checkpoint that cannot be read, or has an unsupported setting or tensor. The message names it and the wanted value."""


class Config:
    """config.json as a dict that remembers which keys were read.

    A key that was not read may change the output of the model, so `finish` refuses it.
    """

    def __init__(self, values: dict[str, Any], where: str):
        self.values, self.where = values, where
        self.seen = set(NO_EFFECT)

    def get(self, key: str, *default):
        """The value; an absent key gives the default (the one of the reference), or ConvertError without a default."""
        self.seen.add(key)
        if key in self.values:
            return self.values[key]
        if not default:
            raise ConvertError(f"{self.where} has no {key!r}, which has no default")
        return default[0]

    def only(self, key: str, *supported) -> None:
        """Refuses other values; the first is the default of the reference."""
        value = self.get(key, supported[0])
        if value not in supported:
            raise ConvertError(f"{self.where}: {key}={value!r} is not supported, only {' or '.join(map(repr, supported))}")

    def ignore(self, *keys: str) -> None:
        """Marks keys without effect on the output (initialisation, training, speed)."""
        self.seen.update(keys)

    def finish(self) -> None:
        """Raises ConvertError if a key was not read."""
        left = {key: value for key, value in self.values.items() if key not in self.seen}
        if left:
            found = ", ".join(f"{key}={value!r}" for key, value in sorted(left.items()))
            raise ConvertError(
                f"{self.where} has settings that are unknown for model_type={self.values['model_type']!r} and may change what it "
                f"computes: {found}. If they do not, remove them from the file"
            )


class Checkpoint:
    """A folder with config.json and safetensors files; tensors are read one at a time, on demand.

    Raises:
      ConvertError: the folder, a file or a tensor that the index names is missing, or a file is damaged.
      ImportError: safetensors is not installed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config = Config(self._json(CONFIG), str(self.folder / CONFIG))

    def __enter__(self) -> "Checkpoint":
        listed = self._json(INDEX).get("weight_map", {}) if (self.folder / INDEX).is_file() else {}
        if not (isinstance(listed, dict) and all(isinstance(name, str) for name in listed.values())):
            raise ConvertError(f"{self.folder / INDEX} is damaged: wanted weight_map={{tensor: file}}, found {str(listed)[:60]}")
        if outside := sorted({name for name in listed.values() if Path(name).name != name}):
            found = ", ".join(outside)
            raise ConvertError(f"{self.folder / INDEX} names files outside its folder: {found}; wanted names of files in it")
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(self._file(name)) for name in sorted(set(listed.values())) or [WEIGHTS]]
            self._at = {tensor: file for file in files for tensor in file.keys()}
            absent = sorted(f"{tensor} in {name}" for tensor, name in listed.items() if tensor not in self._at)
            if absent:
                raise ConvertError(f"{self.folder / INDEX} names tensors that are not there: {', '.join(absent)}")
            self._open = stack.pop_all()  # files stay open until __exit__
        return self

    def __exit__(self, *error) -> None:
        self._open.close()

    def names(self) -> Iterable[str]:
        """Names of the tensors."""
        return self._at.keys()

    def read(self, name: str) -> np.ndarray:
        """A tensor, in the dtype of the file."""
        return self._at[name].get_tensor(name)

    def _json(self, name):
        path = self.folder / name
        if not path.is_file():
            raise ConvertError(f"{path} does not exist; wanted a checkpoint folder with {CONFIG} and {WEIGHTS}")
        try:
            return read_json(path)
        except DamagedFile as error:
            raise ConvertError(str(error)) from None

    def _file(self, name):
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError:
            raise ImportError("reading checkpoints needs safetensors: pip install 'seqzoo[convert]'") from None
        path = self.folder / name
        if not path.is_file():
            others = sorted(file.name for file in self.folder.glob("*.bin"))
            hint = f"; {', '.join(others)} must be converted to safetensors by its own project" if others else ""
            raise ConvertError(f"{path} does not exist{hint}")
        try:
            return safe_open(path, "np")
        except SafetensorError as error:
            raise ConvertError(f"{path} is damaged or incomplete ({error}): fetch it again") from None
