"""A model on disk: `config.json` and `model.safetensors`, written whole or not at all, never unpickled."""

import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as in_memory
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import UserError
from ..files import clear_drafts, digest_of, drafts, flush
from ..torch_utils import plain_names, plain_parts
from .description import CONFIG, EXTRA
from .placing import make_writable

WEIGHTS, _SHA = "model.safetensors", "sha256:"
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
LARGE = 1 << 28  # bytes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], overwrite: bool) -> None:
    """Write both files. A folder without `config.json` is no model: that file goes first and comes last."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file where a folder for the model is expected; name another folder.")
    for name in (CONFIG, WEIGHTS):
        if (folder / name).exists() and not overwrite:
            raise UserError(f"{str(folder / name)!r} exists already; name another folder or allow overwriting.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_drafts(folder)
        with drafts(folder, "model") as made:
            save_file(dict(weights), made / WEIGHTS)
            whole = {**config, "digest": _SHA + digest_of(made / WEIGHTS)}
            (made / CONFIG).write_text(_in_json(whole) + "\n", encoding="utf-8")
            shutil.copymode(made / CONFIG, made / WEIGHTS)  # safetensors hides its files from other users
            for name in (CONFIG, WEIGHTS):
                flush(made / name)
            (folder / CONFIG).unlink(missing_ok=True)
            os.replace(made / WEIGHTS, folder / WEIGHTS)
            os.replace(made / CONFIG, folder / CONFIG)
        flush(folder)
    except OSError as error:
        raise UserError(
            f"the model cannot be written to {str(folder)!r} ({error.strerror or error}); choose another."
        ) from error


def _in_json(config: Mapping[str, Any]) -> str:
    """Indented, but each list of numbers on one line: a shrunk network has thousands of them."""
    text = json.dumps(config, indent=2, ensure_ascii=False)  # in which no string has a line break
    lists = r"\[\n\s+(-?[\d.e+-]+(?:,\n\s+-?[\d.e+-]+)*)\n\s+\]"
    return re.sub(lists, lambda match: "[" + " ".join(match[1].split()) + "]", text)


def weights_of(network: nn.Module, dtype: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as separate contiguous CPU tensors, the floating ones cast to `dtype` if given, and what else there is
    of it: the extra state of modules, as far as JSON can hold it. Raises `UserError` for what cannot be saved."""
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not known; use 'float32' or 'bfloat16'.")
    state = checked_state(network)
    weights: dict[str, Tensor] = {}
    buffers, plain = dict(network.named_buffers()), plain_names(network)
    learned = {plain[key] for key in plain if key not in buffers}
    storages: set[int] = set()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            continue
        tensor = value.detach().cpu().resolve_conj().resolve_neg()
        if dtype is not None and tensor.is_floating_point():
            rounded = tensor.to(DTYPES[dtype])
            # what is no weight, such as positions and statistics, may be of no use once it is rounded
            tensor = rounded if key in learned or torch.equal(rounded.to(tensor.dtype), tensor) else tensor
        tensor = tensor.contiguous()
        if tensor.untyped_storage().data_ptr() in storages:  # tied weights: each name gets its own copy
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        weights[key] = tensor
    return weights, {key: value for key, value in state.items() if not isinstance(value, Tensor)}


def bytes_of(network: nn.Module) -> int:
    """The bytes of a network's file of weights; of one that is large, or cannot be saved, those of its numbers."""
    try:
        weights, _ = weights_of(network, None)
        size = sum(tensor.nbytes for tensor in weights.values())
        return size if size > LARGE else len(to_bytes(weights))
    except UserError:
        return sum(part.nbytes for value in network.state_dict().values() for part, _ in plain_parts(value))


def checked_state(network: nn.Module) -> dict[str, Any]:
    """The network's state by plain names, every part of which has been found to come back when written.

    Raises `UserError` for a part that would not: so what cannot be saved is told before it is trained.
    """
    state, plain = network.state_dict(), plain_names(network)
    for key, value in state.items():
        what = f"state {plain[key]!r} of the network"
        if isinstance(value, Tensor):
            if not _comes_back(plain[key], value):
                form = " ".join(str(part).removeprefix("torch.") for part in (value.dtype, value.layout))
                kind = f"a {type(value).__name__} of {form} numbers" + " without data on 'meta'" * value.is_meta
                kind = "a lazy tensor without a size" if is_lazy(value) else kind
                raise UserError(
                    f"{what} is {kind}, which cannot be saved; expected a dense tensor of ordinary numbers: convert "
                    "it, or leave that part out of the network."
                )
        elif not _is_plain(value):
            raise UserError(
                f"{what} is a {type(value).__name__} that cannot be saved without pickling; expected tensors, or "
                "numbers, texts, lists and tables as JSON has them: give its get_extra_state such, or make it a buffer."
            )
    return {plain[key]: value for key, value in state.items()}


def _comes_back(key: str, value: Tensor) -> bool:
    """Whether a tensor's file holds it; tried with its first number, as it is the kind that tells."""
    try:
        first = value.detach()[tuple(slice(1) for _ in value.shape)].cpu().resolve_conj().resolve_neg().contiguous()
        written = to_bytes({key: first})
        return to_bytes({key: in_memory(written)[key]}) == written
    except Exception:  # of whatever kind: sparse, quantised, meta and subclasses all fail in their own ways
        return False


def _is_plain(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


def beside(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that a network computes with and that are none of its state, by name: buffers that are not persistent
    and attributes, as far as a file holds them."""
    tensors = {}
    for name, module in network.named_modules():
        hidden = {key: module._buffers.get(key) for key in module._non_persistent_buffers_set}
        for key, value in (hidden | vars(module)).items():
            plain = isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.grad_fn is None
            where = f"{name}.{key}" if name else key
            if plain and value.numel() and not value.is_meta and _comes_back(where, value):
                tensors[where] = value.detach().cpu().contiguous().clone()
    return tensors


def unlike(network: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """Those of `beside` that another network has with other numbers."""
    theirs = beside(other)
    return {key: value for key, value in beside(network).items() if key in theirs and not _equal(value, theirs[key])}


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)


def put(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a network tensors `beside` its state, where it has such."""
    modules = dict(network.named_modules())
    for where, value in tensors.items():
        name, _, key = where.rpartition(".")
        owner = modules.get(name)
        old = None if owner is None else owner._buffers.get(key, vars(owner).get(key))
        if owner is not None and isinstance(old, Tensor):
            setattr(owner, key, value.to(old.device))


def dtype_of(weights: Mapping[str, Tensor]) -> str:
    """'bfloat16' where any weight is, else 'float32' (what the network computes with after loading)."""
    return "bfloat16" if any(tensor.dtype == torch.bfloat16 for tensor in weights.values()) else "float32"


def locate(folder: Path) -> Path:
    """The folder that holds the model: itself, or `student/` in a run folder. Else `UserError`."""
    for place in (folder, folder / "student"):
        if (place / CONFIG).is_file():
            return place
    inside = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    if pickles := [path.name for path in inside if path.is_file() and path.suffix in PICKLES]:
        raise UserError(
            f"{str(folder)!r} is no model folder but {'has' if folder.is_dir() else 'is'} the pickle file "
            f"{pickles[0]!r}, which could run code when opened; "
            f"convert it once with network.load_state_dict(torch.load({pickles[0]!r}, weights_only=True)) and "
            "protege.models.load_model(network, data=…).save(FOLDER)."
        )
    if folder.is_file():
        raise UserError(f"{str(folder)!r} is a file; name the folder that holds {CONFIG} and {WEIGHTS}.")
    if folder.is_dir():
        raise UserError(f"folder {str(folder)!r} has no {CONFIG}; a model folder holds {CONFIG} and {WEIGHTS}.")
    if folder.name == "student" and (folder.parent / "metrics.jsonl").is_file():
        raise UserError(
            f"there is no model in {str(folder)!r} yet, as the run is not finished; go on with it first: "
            f"resume=True with out={str(folder.parent)!r}."
        )
    raise UserError(
        f"there is no model folder {str(folder)!r}; name a folder with {CONFIG} and {WEIGHTS}, "
        "or use zoo:NAME, timm:NAME or package.module:factory."
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in the folder, by plain names."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"folder {str(folder)!r} has {CONFIG} but no {WEIGHTS}; copy the weights there too.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); copy or save the model again.") from error


def fit(network: nn.Module, state: Mapping[str, Any], name: str, path: Path, digest: str | None) -> None:
    """`load`, with a `UserError` where the state of the file at `path` does not fit the network, or the file is not the
    one of the `digest`, which folders of version 0.1 do not have."""
    misfits = misfits_of(network, state)
    if misfits:
        more = f" and {len(misfits) - 2} more" if len(misfits) > 2 else ""
        raise UserError(f"{str(path)!r} does not fit {name}: {'; '.join(misfits[:2])}{more}; use matching files.")
    if digest is not None and _SHA + digest_of(path) != digest:
        raise UserError(
            f"{str(path)!r} is not the file that was saved with its {CONFIG}, so that it is damaged or another's; "
            "expected both as they were saved: copy both again, or, where the weights were changed on purpose, "
            f"remove 'digest' from {CONFIG}."
        )
    load(network, state)


def load(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Put a state by plain names into the network, cast to its own types."""
    make_writable(network)
    given = OrderedDict((key, state[plain]) for key, plain in plain_names(network).items())
    # modules that know several layouts of their state are told that it is today's, as its keys and shapes are
    given._metadata = getattr(network.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    network.load_state_dict(given)


def misfits_of(network: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """What keeps `state` from being the network's: missing, unexpected, differently shaped keys."""
    plain = plain_names(network)
    wanted = {plain[key]: value for key, value in network.state_dict().items()}
    misfits = [f"{key!r} is missing" for key in wanted if key not in state]
    misfits += [f"{key!r} is unexpected" for key in state if key not in wanted]
    return misfits + [
        f"{key!r} has shape {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in wanted.items()
        if key in state and not key.endswith(EXTRA) and not is_lazy(value) and state[key].shape != value.shape
    ]
