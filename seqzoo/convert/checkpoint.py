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
SHOWN = 8  # problems listed in a message: a file of another model has hundreds
FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of weights, as safetensors spells them

# Keys of any config.json that have no effect on the output for token ids, whatever their value: bookkeeping of transformers and
# of tools, defaults of generation, ids of special tokens, initialisation, dtypes of the file.
NO_EFFECT: tuple[str, ...] = (
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",  # compared in `model_mapping`
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "do_sample",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "label2id",
    "max_length",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
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
        self.sections: list[Config] = []

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

    def first(self, *keys: str) -> Any:
        """The value of a setting with several names; ConvertError if the file has none of them, or two with different values."""
        found = {key: value for key in keys if (value := self.get(key, None)) is not None}
        if not found:
            raise ConvertError(f"{self.where} has no {' or '.join(map(repr, keys))}, which has no default")
        value = next(iter(found.values()))
        if any(other != value for other in found.values()):
            raise ConvertError(
                f"{self.where}: {', '.join(f'{k}={v!r}' for k, v in found.items())}: wanted one value for all of them"
            )
        return value

    def section(self, key: str) -> "Config":
        """The settings of a part of the model, an object in the file."""
        values = self.get(key)
        if not isinstance(values, dict):
            raise ConvertError(f"{self.where}: {key}={str(values)[:60]} is not supported, only an object")
        self.sections.append(Config(values, f"{self.where}, {key}"))
        return self.sections[-1]

    def ignore(self, *keys: str) -> None:
        """Marks keys without effect on the output (initialisation, training, speed)."""
        self.seen.update(keys)

    def finish(self) -> None:
        """Raises ConvertError if a key was not read, here or in a section."""
        for section in self.sections:
            section.finish()
        left = {key: value for key, value in self.values.items() if key not in self.seen}
        if left:
            found = ", ".join(f"{key}={value!r}" for key, value in sorted(left.items()))
            known = f"unknown for model_type={self.values.get('model_type')!r}"
            raise ConvertError(
                f"{self.where} has settings that are {known} and may change what it computes: {found}. If they do not, remove them "
                "from the file"
            )


class Checkpoint:
    """A folder with config.json and safetensors files; tensors are read one at a time, on demand.

    Tensors are read from model.safetensors, or from the files that the index names, each from the file that the index names for it.
    Other files in the folder are not read.

    Raises:
      ConvertError: the folder, a file or a tensor that the index names is missing, or a file is damaged; a file holds a tensor that
        the index does not assign to it; or there is an index and also a file that it does not name but that is read without one.
      ImportError: safetensors is not installed.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config = Config(self._json(CONFIG), str(self.folder / CONFIG))

    def __enter__(self) -> "Checkpoint":
        index = self.folder / INDEX
        weight_map = self._weight_map() if index.is_file() else None
        with contextlib.ExitStack() as stack:
            names = [WEIGHTS] if weight_map is None else sorted(set(weight_map.values()))
            files = {name: stack.enter_context(self._file(name)) for name in names}
            held = {(tensor, name) for name, file in files.items() for tensor in file.keys()}
            assigned = held if weight_map is None else set(weight_map.items())
            for wrong, problem in (
                (assigned - held, "names tensors that are not there"),
                (held - assigned, "does not name these tensors for the files that hold them"),
            ):
                if wrong:
                    found = ", ".join(f"{tensor} in {name}" for tensor, name in sorted(wrong)[:SHOWN])
                    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
                    raise ConvertError(f"{index} {problem}: {found}{more}")
            self._at = {tensor: files[name] for tensor, name in assigned}
            self._open = stack.pop_all()  # files stay open until __exit__
        return self

    def __exit__(self, *error) -> None:
        self._open.close()

    def names(self) -> Iterable[str]:
        """Names of the tensors."""
        return self._at.keys()

    def dtype(self, name: str) -> str:
        """Dtype of a tensor, as safetensors spells it: "F32", "BF16", "F8_E4M3", "I64"."""
        return self._at[name].get_slice(name).get_dtype()

    def read(self, name: str) -> np.ndarray:
        """A tensor, in the dtype of the file."""
        return self._at[name].get_tensor(name)

    def _weight_map(self) -> dict[str, str]:
        """The file of each tensor, from the index."""
        index, listed = self.folder / INDEX, self._json(INDEX).get("weight_map")
        if not (isinstance(listed, dict) and listed and all(isinstance(name, str) for name in listed.values())):
            raise ConvertError(f"{index} is damaged: wanted weight_map={{tensor: file}}, found {str(listed)[:60]}")
        if outside := sorted({name for name in listed.values() if Path(name).name != name}):
            found = ", ".join(outside)
            raise ConvertError(f"{index} names files outside its folder: {found}; wanted names of files in it")
        if (self.folder / WEIGHTS).is_file() and WEIGHTS not in listed.values():
            raise ConvertError(f"{self.folder} holds {WEIGHTS} and {INDEX}, which does not name it: remove one of the two")
        return listed

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
