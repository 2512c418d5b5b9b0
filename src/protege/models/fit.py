"""Whether a model fits the data: it is tried on an example, as training will run it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import Data
from ..data.classes import numbers
from ..errors import UserError, told
from ..torch_utils import device_of, has_own_precision, refuse_odd, untouched
from .causal import check_causal, check_layout, samples_for
from .language import Reader
from .model import Model
from .specs import has_masks, has_tokens, run_as_it_can


def check_fit(model: Model, data: Data) -> int:
    """How many outputs a sample the model gives on blank examples of the data. Raises `UserError` where it cannot run
    on such data, or reads it otherwise than it has learned to.

    Finds out which memory layout the network can run in, and notes it as `model.layout`; tells a language model of the
    zoo or of transformers how many of a text's tokens are only read. A language model must be causal, with its outputs
    at their words (`protege.models.causal`). Weights, buffers and modes stay as they are; a network with lazy layers is
    initialised.
    """
    text = has_tokens(data)
    if text and model.input.kind != "tokens":
        raise UserError("the model takes images but the data is text; use a language model, such as zoo:lstm.")
    if not text and model.input.kind == "tokens":
        raise UserError("the model takes text but the data has images; use an image model, or data text:PATH.")
    _check_ranges(model, data)
    if text and isinstance(model.network, Reader):
        model.network.context = getattr(data.train, "context", 0)
    outputs = output_classes(model, data)
    if text:
        _check_words(model, data, outputs)
        check_causal(model, data, _scored(data))
    return outputs


def check_classes(model: Model, data: Data) -> None:
    """`check_fit`, and raise `UserError` unless the model gives one output a class, and its class names (where both are
    named) are the data's in the same order. Data without classes fits any."""
    outputs, expected = check_fit(model, data), len(data.classes)
    if not data.classes:  # images without labels
        return
    if outputs != expected and not getattr(data, "labelled", True):  # the teacher's
        raise UserError(
            f"the model gives {outputs} values for each image and the teacher {expected}; expected as many, as it is "
            f"to take the teacher's place: end it with a layer of {expected}, as zoo:NAME does by itself."
        )
    if outputs != expected:
        raise UserError(
            f"the model has {outputs} outputs but the data has {expected} classes; "
            "use a model made for this data, or data with the model's classes."
        )
    named = model.named and getattr(data, "named", data.classes != numbers(expected))
    wrong = _misplaced(model.classes, data.classes) if named else None
    if wrong is not None:
        raise UserError(
            f"output {wrong} of the model is class {model.classes[wrong]!r} but class {wrong} of the data is "
            f"{data.classes[wrong]!r}; use a model of the same classes in the same order, or a fresh one."
        )


def _misplaced(ours: Sequence[str], theirs: Sequence[str]) -> int | None:
    """The first position where two lists of class names tell different classes: a name that both have stands
    elsewhere, or no name is in both."""
    shared = set(ours) & set(theirs)
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((n for n, (a, b) in pairs if a != b and (not shared or a in shared or b in shared)), None)


def _check_ranges(model: Model, data: Data) -> None:
    """Images of more than 8 bits must have been read as the model learned to see them."""
    taken = {kind: ends for kind, *ends in getattr(data, "ranges", ())}
    for kind, *ends in model.input.ranges:
        if taken.get(kind, ends) != ends:
            (black, white), (low, high) = ends, taken[kind]
            raise UserError(
                f"the model takes {black:g} for black and {white:g} for white in images of more than 8 bits but the "
                f"data was opened with {low:g} and {high:g}; open it with load_data(…, ranges=model.input.ranges)."
            )


def _check_words(model: Model, data: Data, known: int) -> None:
    """Word numbers mean nothing under another vocabulary."""
    remedy = "open the text with the vocabulary of the model, text:PATH?vocabulary=FOLDER, or use a model made for it"
    expected = len(data.classes)
    if known > expected:
        remedy += f", or leave out what pads its vocabulary: return logits[..., :{expected}] from its forward"
    if known != expected:
        raise UserError(f"the model knows {known} words but the data's vocabulary has {expected}; {remedy}.")
    named = model.classes if model.named else ()
    wrong = next((n for n, (a, b) in enumerate(zip(named, data.classes, strict=False)) if a != b), None)
    if wrong is not None:
        raise UserError(
            f"the model has another vocabulary than the data, as word {wrong} is {model.classes[wrong]!r} there and "
            f"{data.classes[wrong]!r} here; {remedy}."
        )


def output_classes(model: Model, data: Data) -> int:
    """The size of the class dimension of the model's logits on the data's images; sets `model.layout`."""
    tokens = model.input.kind == "tokens"
    size = (data.train.shape[0], _scored(data), len(data.classes)) if tokens else ()
    shape = (samples_for(*size) if tokens else 2, *data.train.shape)
    example = torch.zeros(shape, dtype=torch.int64 if tokens else torch.uint8, device=device_of(model))
    try:
        with untouched(model.network):
            model.autocast = model.autocast and not has_own_precision(model.network)
            logits = model(example) if tokens else run_as_it_can(model, example)
            alone = model(example[:1]) if not tokens and isinstance(logits, Tensor) else None
    except UserError:
        raise
    except Exception as error:
        raise UserError(_failure(model, shape, error)) from error
    name = type(logits).__name__
    kind = f"an {name}" if name[0] in "AEIOaeio" else f"a {name}"
    if isinstance(logits, Tensor):
        refuse_odd(logits, "the model")
        kind = f"shape {list(logits.shape)}"
        if tokens:
            check_layout(logits.shape, shape[0], *size)
        elif not has_masks(data) and logits.shape in ((2,), (2, 1)):
            raise UserError(
                "the model gives one number an image, as networks for two classes may; one logit a class is expected: "
                "wrap it to return torch.cat([torch.zeros_like(z), z], 1) of what it returns as z [batch, 1]."
            )
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        raise UserError(f"the model gives {kind} where one tensor of logits is expected; wrap it to return its logits.")
    if alone is not None and alone.shape != (1, *logits.shape[1:]):
        raise UserError(
            f"the model gives outputs of shape {list(alone.shape)} for one image where {[1, *logits.shape[1:]]} is "
            "expected; keep the batch dimension in its forward, with flatten(1) in place of squeeze()."
        )
    if not tokens:
        _check_pixels(data, list(logits.shape))
    model.shape = tuple(data.train.shape)
    return logits.shape[-1 if tokens else 1]


def _scored(data: Data) -> int:
    """How many of a sample's tokens are scored: the last, behind those that are only read."""
    return data.train.shape[0] - getattr(data.train, "context", 0)


def _check_pixels(data: Data, shape: list[int]) -> None:
    """Images have one row of logits or, where there are masks, one for each of their pixels."""
    masks, size = has_masks(data), list(data.train.shape[1:])
    if not masks and len(shape) != 2:
        raise UserError(
            f"the model gives outputs of shape {shape} where one row of logits an image is expected; use a classifier, "
            "or data segmentation:PATH for a network that labels pixels."
        )
    if masks and len(shape) != 4:
        raise UserError(
            f"the model gives outputs of shape {shape} where logits for each pixel, [batch, classes, height, width], "
            "are expected; use a segmentation network, such as zoo:unet18."
        )
    if masks and shape[2:] != size:
        raise UserError(
            f"the model labels {shape[2]}×{shape[3]} pixels but the data's masks have {size[0]}×{size[1]}; outputs as "
            "large as the image are expected: enlarge the logits in the model's forward, or clear its input size."
        )


def _failure(model: Model, shape: Sequence[int], error: Exception) -> str:
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    others = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    if others:
        return (
            f"the model has {' and '.join(others)} weights and fails on float32 input ({told(error)}); "
            "convert it with `.float()`."
        )
    return (
        f"the model fails on an input of shape {list(shape)} ({told(error)}); use a model for such inputs, or say "
        "which it takes with protege.Model(network, protege.InputSpec(channels=…, size=(…, …)))."
    )
