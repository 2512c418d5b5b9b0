"""A model on disk: `config.json` and `model.safetensors`, written whole or not at all, never unpickled."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from protege.errors import UserError

OLD_PACKAGE = "understudy."  # what version 0.1 was called
CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", 1
KEYS = ("format", "model", "arguments", "task", "classes", "input", "dtype")
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], overwrite: bool) -> None:
    """Write both files. A folder without `config.json` is no model: that file goes first and comes last."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file where a folder for the model is expected; name another folder.")
    for name in (CONFIG, WEIGHTS):
        if (folder / name).exists() and not overwrite:
            raise UserError(f"{str(folder / name)!r} exists already; name another folder or allow overwriting.")
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in (CONFIG, WEIGHTS)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(weights), temporary[WEIGHTS])
        temporary[CONFIG].write_text(_in_json(config) + "\n", encoding="utf-8")
        shutil.copymode(temporary[CONFIG], temporary[WEIGHTS])  # safetensors hides its files from other users
        for path in temporary.values():
            _flush(path)
        (folder / CONFIG).unlink(missing_ok=True)
        os.replace(temporary[WEIGHTS], folder / WEIGHTS)
        os.replace(temporary[CONFIG], folder / CONFIG)
        _flush(folder)
    except OSError as error:
        raise UserError(
            f"the model cannot be written to {str(folder)!r} ({error.strerror or error}); choose another."
        ) from error
    finally:
        for path in temporary.values():
            if path.parent.is_dir():
                path.unlink(missing_ok=True)


def _in_json(config: Mapping[str, Any]) -> str:
    """Indented, but each list of numbers on one line: a shrunk network has thousands of them."""
    text = json.dumps(config, indent=2, ensure_ascii=False)  # in which no string has a line break
    lists = r"\[\n\s+(-?[\d.e+-]+(?:,\n\s+-?[\d.e+-]+)*)\n\s+\]"
    return re.sub(lists, lambda found: "[" + " ".join(found[1].split()) + "]", text)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def weights_of(network: nn.Module, dtype: str | None) -> dict[str, Tensor]:
    """The state dict as separate contiguous CPU tensors, the floating ones cast to `dtype` if given."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not known; use 'float32' or 'bfloat16'.")
    weights: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"state {key!r} is a {type(value).__name__}, and only tensors can be saved; make it a buffer."
            )
        tensor = value.detach().cpu()
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(DTYPES[dtype])
        tensor = tensor.contiguous()
        if tensor.untyped_storage().data_ptr() in storages:  # tied weights: each name gets its own copy
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        weights[key] = tensor
    return weights


def dtype_of(weights: Mapping[str, Tensor]) -> str:
    """'bfloat16' where any weight is, else 'float32' (what the network computes with after loading)."""
    return "bfloat16" if any(tensor.dtype == torch.bfloat16 for tensor in weights.values()) else "float32"


def locate(folder: Path) -> Path:
    """The folder that holds the model: itself, or `student/` in a run folder. Else `UserError`."""
    if folder.is_file():
        if folder.suffix in PICKLES:
            raise UserError(f"{str(folder)!r} is a pickle file, which could run code when opened; {_convert(folder)}.")
        raise UserError(f"{str(folder)!r} is a file; name the folder that holds {CONFIG} and {WEIGHTS}.")
    if not folder.is_dir():
        raise UserError(
            f"there is no model folder {str(folder)!r}; name a folder with {CONFIG} and {WEIGHTS}, "
            "or use zoo:NAME, timm:NAME or package.module:factory."
        )
    if (folder / CONFIG).is_file():
        return folder
    if (folder / "student" / CONFIG).is_file():
        return folder / "student"
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"folder {str(folder)!r} has no {CONFIG} but the pickle file {pickles[0].name!r}, "
            f"which could run code when opened; {_convert(pickles[0])}."
        )
    raise UserError(f"folder {str(folder)!r} has no {CONFIG}; a model folder holds {CONFIG} and {WEIGHTS}.")


def _convert(path: Path) -> str:
    return (
        f"convert it once with network.load_state_dict(torch.load({path.name!r}, weights_only=True)) "
        "and protege.models.load_model(network, data=…).save(FOLDER)"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The checked contents of `config.json`."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(path)!r} cannot be read as JSON ({error}); save the model again.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise UserError(f'{str(path)!r} has format {found!r} where "format": {FORMAT} is expected; save it anew.')
    for key in KEYS:
        if key not in config:
            raise UserError(f"{str(path)!r} lacks the key {key!r}; a model's keys are {', '.join(KEYS)}.")
    expected: dict[str, type | tuple[type, ...]] = {
        "model": (str, type(None)),
        "arguments": dict,
        "task": str,
        "classes": list,
        "input": dict,
        "structure": list,
        "kept": dict,
    }
    for key, kind in expected.items():
        if key in config and not isinstance(config[key], kind):
            raise UserError(f"{str(path)!r} has {config[key]!r} as {key!r}, which is not usable; save the model again.")
    kept = config.get("kept", {})
    if not all(isinstance(v, list) and all(type(n) is int and n >= 0 for n in v) for v in kept.values()):
        raise UserError(f"{str(path)!r} has a 'kept' that is no table of channel numbers; save the model again.")
    if (config["model"] or "").startswith(OLD_PACKAGE):
        config["model"] = "protege." + config["model"].removeprefix(OLD_PACKAGE)
    return config


def read_weights(folder: Path, network: nn.Module, name: str) -> None:
    """Put the folder's weights into `network` (cast to its own types). `UserError` where they do not fit."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"folder {str(folder)!r} has {CONFIG} but no {WEIGHTS}; copy the weights there too.")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); copy or save the model again.") from error
    misfits = misfits_of(network, weights)
    if misfits:
        more = f" and {len(misfits) - 2} more" if len(misfits) > 2 else ""
        raise UserError(f"{str(path)!r} does not fit {name}: {'; '.join(misfits[:2])}{more}; use matching files.")
    network.load_state_dict(weights)


def misfits_of(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """What keeps `weights` from being the network's state: missing, unexpected, differently shaped keys."""
    state = network.state_dict()
    misfits = [f"{key!r} is missing" for key in state if key not in weights]
    misfits += [f"{key!r} is unexpected" for key in weights if key not in state]
    return misfits + [
        f"{key!r} has shape {list(weights[key].shape)} instead of {list(value.shape)}"
        for key, value in state.items()
        if key in weights and not is_lazy(value) and weights[key].shape != value.shape
    ]
