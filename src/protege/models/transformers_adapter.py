"""Causal language models of Hugging Face's transformers, as teachers and students: `transformers:FOLDER` or a name.

A model whose folder holds a tokenizer carries its tokens as class names, so that text cut up by another tokenizer is
refused. What is saved afterwards holds the whole configuration and needs the folder no more.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.extras import words_of
from ..errors import UserError, shown, told
from ..torch_utils import admit_torchvision
from .language import Reader

OWN_CODE: dict[str, Any] = {"trust_remote_code": False}  # nothing that comes with a model is run, and nobody is asked
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model")


class CausalLM(Reader):
    """Tokens [B, context + L] → logits [B, L, num_classes] of the wrapped `model`.

    `context`: how many of the first tokens are only read, see `protege.models.language`. Logits beyond
    `num_classes` are padding of the vocabulary and left out.
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes

    def forward(self, tokens: Tensor) -> Tensor:
        most = getattr(self.model.config, "max_position_embeddings", None)
        if most is not None and tokens.shape[1] > most:
            raise ValueError(f"{tokens.shape[1]} tokens are more than its {most} positions")
        keep = tokens.shape[1] - self.context
        logits = self.model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits
        return logits[:, -keep:, : self.num_classes]  # some families give all


def open_causal(
    name: str, arguments: Mapping[str, Any], words: int | None = None
) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """The network, the source that builds it again, and its tokens (() where no tokenizer lies beside it).

    `arguments`: `pretrained`, true by default, loads the weights (safetensors only); with false they are fresh, any
    other key changes the configuration and `words` is the size of the vocabulary. Raises UserError.
    """
    hugging_face = library("transformers", "transformers")
    changes = {key: value for key, value in arguments.items() if key != "pretrained"}
    pretrained = bool(arguments.get("pretrained", True))
    if changes and pretrained:
        key = min(changes)
        raise UserError(
            f"transformers:{name} got {key}={changes[key]!r}, which needs fresh weights; add pretrained=false."
        )
    known = OWN_CODE | ({"local_files_only": True} if Path(name).is_dir() else {})
    try:
        config = hugging_face.AutoConfig.from_pretrained(name, **known)
        _refuse_kernels(config)
        for key, value in changes.items():
            if not hasattr(config, key):
                raise UserError(f"transformers:{name} has no setting {key!r} in its configuration; correct it.")
            setattr(config, key, value)
        if not pretrained and words is not None:
            config.vocab_size = words
        if pretrained:
            model = hugging_face.AutoModelForCausalLM.from_pretrained(
                name, config=config, dtype=torch.float32, use_safetensors=True, **known
            )
        else:
            model = hugging_face.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **OWN_CODE)
        tokens: tuple[str, ...] = ()
        known_words = pretrained or words is None  # fresh weights know none, and take the data's
        if known_words and (not Path(name).is_dir() or any((Path(name) / file).exists() for file in _TOKENIZERS)):
            tokenizer = hugging_face.AutoTokenizer.from_pretrained(name, **known)
            tokens = words_of(tokenizer)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"transformers:{name} cannot be opened ({told(error)}); give a folder with config.json and "
            "model.safetensors of a causal language model."
        ) from error
    count = len(tokens) or config.vocab_size
    source = {"config": json.loads(config.to_json_string()), "num_classes": count}
    return CausalLM(model, count), {"model": f"transformers:{config.model_type}", "arguments": source}, tokens


def build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network of a source that `open_causal` gave, or of one of transformers' own classes, with fresh weights."""
    hugging_face = library("transformers", "transformers")
    try:
        config = hugging_face.AutoConfig.for_model(**arguments["config"])
        _refuse_kernels(config)
        if kind := arguments.get("class"):
            network = getattr(hugging_face, str(kind))
            if not (isinstance(network, type) and issubclass(network, hugging_face.PreTrainedModel)):
                raise ValueError(f"{kind} is no network of transformers")
            return network(config).float()
        model = hugging_face.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **OWN_CODE)
        return CausalLM(model, int(arguments["num_classes"]))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"transformers:{shown(name)} cannot be built from its configuration ({told(error)}); save it again."
        ) from error


def _refuse_kernels(config: Any) -> None:
    """Raise `UserError` where a configuration, or one within it, names code of the hub to compute attention with."""
    for part in [config, *(value for value in vars(config).values() if hasattr(value, "_attn_implementation"))]:
        for key, value in vars(part).items():
            if key.endswith(("_implementation", "_implementation_internal")) and "/" in str(value):
                raise UserError(
                    f"the configuration of a {config.model_type} has {shown(value)} as {key.strip('_')}, which would "
                    "run code of the hub; expected one of transformers' own, such as 'sdpa': change it."
                )


def library(scheme: str, package: str) -> Any:
    """A package of models; `UserError` where it, or what it stands on, is missing or broken."""
    try:
        admit_torchvision()
        return importlib.import_module(package)
    except Exception as error:
        remedy = "reinstall torchvision from the same index as torch, so that both are CPU or both CUDA builds"
        if isinstance(error, ModuleNotFoundError):
            ours = error.name == package
            remedy = f"install it with `pip install 'protege[{scheme}]'`" if ours else f"install {error.name!r}"
        raise UserError(
            f"models '{scheme}:…' need the package {package.replace('_', '-')}, which cannot be imported "
            f"({told(error)}); {remedy}."
        ) from error
