"""The networks of a row with weights that hide no fault, and inputs for them. Nothing is downloaded."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rows import CLASSES, Row
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from protege.models import InputSpec, Model, load_model

TEXT = 16  # tokens of an input
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Pixels(nn.Module):
    """What docs/data.md asks of a segmentation network: logits [N, classes, H, W] in the size of the input."""

    def __init__(self, network: nn.Module, output: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.output(self.network(x)), size=x.shape[2:], mode="bilinear", align_corners=False)


def _masked_by_torchvision(name: str) -> nn.Module:
    from torchvision.models import segmentation

    make = getattr(segmentation, name.removeprefix("tv/"))
    return Pixels(
        make(weights=None, weights_backbone=None, num_classes=CLASSES["segmentation"]), lambda out: out["out"]
    )


def _configured(name: str, big: bool) -> nn.Module:
    """A network of transformers (or torchvision's ViT) from a small configuration, or one twice as large."""
    import transformers as t

    kind = name.removeprefix("hf/")
    width, depth, blocks = (96, 4, [2, 2, 2, 2]) if big else (48, 2, [1, 1, 1, 1])
    sizes = [32, 48, 64, 96] if big else [16, 32, 48, 64]
    layers = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 3}
    images, words = {"num_labels": CLASSES["image"]}, {"vocab_size": CLASSES["language"]}
    texts = {**words, **layers, "intermediate_size": 2 * width, "max_position_embeddings": 64}
    labelled = {**texts, "num_labels": CLASSES["tokens"]}
    # four heads share two of keys and values
    grouped = {**texts, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings: dict[str, dict[str, Any]] = {
        "ViTForImageClassification": {**layers, "intermediate_size": 2 * width, "image_size": 64, **images},
        "Dinov2ForImageClassification": {**layers, "image_size": 56, "patch_size": 14, **images},
        "ResNetForImageClassification": {
            "embedding_size": 16,
            "hidden_sizes": sizes,
            "depths": blocks,
            "layer_type": "basic",
            **images,
        },
        "ConvNextForImageClassification": {"hidden_sizes": sizes, "depths": blocks, **images},
        "SwinForImageClassification": {
            "image_size": 64,
            "embed_dim": 32 if big else 16,
            "depths": [2, 2, 2] if big else [1, 2, 1],
            "num_heads": [2, 4, 8],
            "window_size": 4,
            **images,
        },
        "MobileViTForImageClassification": {
            "image_size": 64,
            "hidden_sizes": sizes[1:],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 96],
            "num_attention_heads": 4,
            **images,
        },
        "SegformerForSemanticSegmentation": {
            "hidden_sizes": sizes,
            "depths": blocks,
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 64,
            "num_labels": CLASSES["segmentation"],
        },
        "GPT2LMHeadModel": {**words, "n_positions": 64, "n_embd": width, "n_layer": depth, "n_head": 3},
        "LlamaForCausalLM": grouped,
        "Qwen2ForCausalLM": grouped,
        "MistralForCausalLM": grouped,
        "GPTNeoXForCausalLM": {**texts, "num_attention_heads": 4},
        "PhiForCausalLM": {**texts, "num_attention_heads": 4},
        "OPTForCausalLM": {**words, **layers, "ffn_dim": 2 * width, "max_position_embeddings": 64}
        | {"word_embed_proj_dim": width},
        "BertForSequenceClassification": labelled,
        "RobertaForSequenceClassification": {**labelled, "max_position_embeddings": 68},
        "AlbertForSequenceClassification": {**labelled, "embedding_size": 32},
        "DistilBertForSequenceClassification": {
            **words,
            "dim": width,
            "n_layers": depth,
            "n_heads": 3,
            "hidden_dim": 2 * width,
            "max_position_embeddings": 64,
            "num_labels": CLASSES["tokens"],
        },
    }
    if name == "tv/vit_b_16 (small)":
        from torchvision.models import VisionTransformer

        return VisionTransformer(64, 16, depth, 3, width, 2 * width, num_classes=CLASSES["image"])
    network = getattr(t, kind)
    made = network(network.config_class(**settings[kind]))
    return Pixels(made, lambda out: out.logits) if "Segmentation" in kind else made


def network_of(row: Row, role: str) -> str | nn.Module:
    """A spec for `load_model`, or a module."""
    spec = getattr(row, role)
    size, _, name = spec.partition(":")
    if size not in ("small", "big"):
        return spec
    if row.kind == "segmentation" and name.startswith("tv/"):
        return _masked_by_torchvision(name)
    made = _configured(name, size == "big")
    if row.kind != "language":
        return made
    folder = Path(tempfile.mkdtemp())
    made.config.save_pretrained(folder)
    return f"transformers:{folder}?pretrained=false"


def model_of(row: Row, role: str, seed: int) -> Model:
    """A model with lively weights that takes inputs of the row's size, in eval mode."""
    torch.manual_seed(seed)
    spec = network_of(row, role)
    if isinstance(spec, str):
        model = load_model(spec, num_classes=CLASSES[row.kind])
        if row.kind in ("image", "segmentation") and model.input.size is None:
            model.input = replace(model.input, size=(row.size, row.size))
    elif row.kind == "tokens":
        model = Model(spec, InputSpec(kind="tokens", channels=1))
    else:
        task = "segmentation" if row.kind == "segmentation" else "classification"
        model = Model(spec, InputSpec(size=(row.size, row.size), **IMAGENET), task=task)
    enliven(model.network, model.prepared(inputs_of(row, 16, seed=1)), seed)
    return model.eval()


def inputs_of(row: Row, count: int, seed: int) -> Tensor:
    """Raw inputs of the row's kind: tokens [count, 16], or uint8 images [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    if row.kind in ("language", "tokens"):
        return torch.randint(2, CLASSES["language"], (count, TEXT), generator=generator)
    return pictures(count, row.size, generator)


def pictures(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Made-up images with structure at several scales, and of different contrasts."""
    total = torch.zeros(count, 3, size, size)
    for side, share in ((2, 0.5), (5, 0.5), (size // 4, 0.35), (size, 0.25)):
        coarse = torch.randn(count, 3, side, side, generator=generator)
        total += share * F.interpolate(coarse, (size, size), mode="bilinear")
    total *= 0.6 + 0.8 * torch.rand(count, 3, 1, 1, generator=generator)
    return (127 + 55 * total).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def enliven(network: nn.Module, x: Tensor, seed: int) -> None:
    """Weights as training leaves them: where a fresh network has a constant (scales of 1, heads of 0, layer scales of
    1e-6, which hide what goes wrong behind them) different values, and running statistics of real inputs."""
    generator = torch.Generator().manual_seed(seed)

    def spread(shape: torch.Size, low: float, high: float) -> Tensor:
        """Values between the two, in any order and no two the same."""
        order = torch.randperm(shape.numel(), generator=generator).view(shape)
        return low + (high - low) * (order + 0.5) / max(1, shape.numel())

    for name, parameter in network.named_parameters():
        if not parameter.numel() or not parameter.is_floating_point() or parameter.max() - parameter.min() > 1e-12:
            continue
        value, shape = float(parameter.flatten()[0]), parameter.shape
        if abs(value - 1) < 1e-6:
            parameter.copy_(spread(shape, 0.6, 1.4))
        elif name.endswith("bias") and parameter.dim() == 1:
            parameter.copy_(spread(shape, -0.2, 0.2))
        elif value or parameter.dim() < 2:
            parameter.copy_(spread(shape, 0.3, 0.8))
        else:
            fan = max(1, parameter[0].numel()) if len(parameter) > 1 else shape[-1]
            parameter.copy_(torch.randn(shape, generator=generator) * min(0.2, fan**-0.5))
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    if norms:
        network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
