"""int8 ONNX: onnxruntime's static quantisation, QDQ, weights by channel and activations by tensor.

Three things are chosen by what comes out, rather than asked for: how far activations reach (to the largest value that
any image gives, or nearly), which weights are made smaller, and which layers stay in floating point.

Weights: processors without VNNI add two products of a uint8 and an int8 in 16 bits, which overflow, and the file would
give other outputs there than elsewhere. The usual remedy, 7 bits for all weights, loses much more than is needed: no
pair of neighbouring weights may come to more than 128, and few do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...errors import UserError, told
from ...models import Model
from . import Images, Made
from . import onnx as in_float
from .closeness import Closeness, closeness
from .onnx import INPUT, Session

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
KINDS = (  # that have kernels for int8, or pass it on
    *LAYERS,
    *("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"),
    *("Resize", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Pad", "Split", "Slice"),
)
REACHES = (1.0, 0.9)  # the share of images whose largest and smallest values an activation's range holds
AGREEMENT, ERROR = 0.98, 0.14  # either is enough: decisions that are the same, or outputs with 2 % of noise
GROUPS = 16  # of layers, one of which at a time is tried in int8
LARGE = 1_500_000_000  # bytes of weights, beyond which they have a file of their own


def make(model: Model, raw: Tensor, file: Path, texts: Mapping[str, str], images: Images) -> Made:
    with tempfile.TemporaryDirectory(prefix="protege-int8-") as folder:
        plain, ready = Path(folder) / "float.onnx", Path(folder) / "ready.onnx"
        original = in_float.make(model, raw, plain, texts, images).network
        try:
            _prepare(plain, ready)
            best, floats = _Search(ready, Path(folder), original, images).best()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the model cannot be quantised ({type(error).__name__}: {told(error)}); expected convolutions and "
                "linear layers in patterns that onnxruntime knows: export to onnx instead."
            ) from error
        import onnx

        onnx.helper.set_model_props(best, dict(texts))
        large = best.ByteSize() > LARGE
        onnx.save(best, file, save_as_external_data=large, location=f"{file.name}.data" if large else None)
    return Made(Session(file), original, {"float_layers": floats})


def _prepare(plain: Path, ready: Path) -> None:
    """What onnxruntime recommends before quantisation: shapes inferred, norms and constants folded; and each operation
    has a name."""
    import onnx
    from onnxruntime.quantization import quant_pre_process

    large = plain.with_name(f"{plain.name}.data").is_file()
    for skipped in ({}, {"skip_symbolic_shape": True}, {"skip_symbolic_shape": True, "skip_onnx_shape": True}):
        try:
            quant_pre_process(str(plain), str(ready), save_as_external_data=large, **skipped)
            break
        except Exception:
            if len(skipped) == 2:
                raise
    model = onnx.load(ready)
    for number, node in enumerate(model.graph.node):
        node.name = f"{number}_{node.name}"
    onnx.save(model, ready, save_as_external_data=large, location=f"{ready.name}.all" if large else None)


class _Search:
    """The quantised model that comes nearest to the original on images that judge it."""

    def __init__(self, ready: Path, folder: Path, original: nn.Module, images: Images) -> None:
        import onnx

        self.ready, self.original = ready, original
        self.model = onnx.load(ready)
        self.judges = images.judging
        self.lowest, self.highest = _extremes(ready, folder, images.calibrating)
        self.overrides = dict(_narrowed(self.model))
        self.nodes = [node for node in self.model.graph.node if node.op_type in KINDS]

    def best(self) -> tuple[Any, list[str]]:
        """The model, and the names of the layers that it leaves in floating point. Where nobody judges, the first."""
        if not self.judges:
            return self._quantised(REACHES[0]), []
        tried = [(self._judged(made := self._quantised(reach)), reach, made) for reach in REACHES]
        closest, reach, made = min(tried, key=lambda entry: entry[0].error)
        if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
            raise UserError(
                "no layer of the model can be quantised; expected convolutions or linear layers: use another."
            )
        groups = [list(part) for part in np.array_split(np.array(self.nodes, dtype=object), GROUPS) if len(part)]
        without: list[Any] = []
        if not _enough(closest):
            errors = [self._judged(self._quantised(reach, self._others(group))).error for group in groups]
            order, count = sorted(range(len(groups)), key=errors.__getitem__, reverse=True), 1
            while count <= len(groups) // 2 and not _enough(closest):
                floats = [node for n in order[:count] for node in groups[n]]
                other = self._quantised(reach, floats)
                if (now := self._judged(other)).error < closest.error:
                    closest, made, without = now, other, floats
                count *= 2
        return made, [node.name.partition("_")[2] for node in without if node.op_type in LAYERS]

    def _others(self, group: Sequence[Any]) -> list[Any]:
        """All but a group, which is then the only one in int8: two that share a bad range both show it so."""
        names = {node.name for node in group}
        return [node for node in self.nodes if node.name not in names]

    def _quantised(self, reach: float, floats: Sequence[Any] = ()) -> Any:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

        highest = {name: np.quantile(values, reach) for name, values in self.highest.items()}
        lowest = {name: np.quantile(values, 1 - reach) for name, values in self.lowest.items()}
        ends = {name: (np.float32(lowest[name]), np.float32(highest[name])) for name in lowest}
        ranges = TensorsData(CalibrationMethod.MinMax, {name: tuple(map(np.asarray, ends[name])) for name in ends})
        excluded, options = [node.name for node in floats], {"TensorQuantOverrides": self.overrides}
        kinds, model = list(KINDS), onnx.load(self.ready)
        types = QuantType.QInt8, QuantType.QUInt8
        quantizer = QDQQuantizer(model, True, False, *types, ranges, [], excluded, kinds, options)
        quantizer.quantize_model()
        return quantizer.model.model

    def _judged(self, model: Any) -> Closeness:
        return closeness(self.original, Session(model.SerializeToString()), self.judges)


def _enough(closest: Closeness) -> bool:
    return closest.agreement >= AGREEMENT or closest.error <= ERROR


def _extremes(
    ready: Path, folder: Path, batches: Sequence[Tensor]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The smallest and the largest value of each tensor that may be quantised, for each image alone."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    place = str(folder / "observed.onnx")
    calibrator = create_calibrator(ready, KINDS, place, calibrate_method=CalibrationMethod.MinMax)
    names = [output.name for output in calibrator.infer_session.get_outputs()][calibrator.num_model_outputs :]
    rows = []
    for image in (image for batch in batches for image in batch):
        values = calibrator.infer_session.run(names, {INPUT: image[None].numpy()})
        rows.append([float(value.reshape(-1)[0]) for value in values])
    columns = dict(zip(names, np.array(rows).T, strict=True))
    lowest, highest = (
        {name.removesuffix(end): row for name, row in columns.items() if name.endswith(end)}
        for end in ("_ReduceMin", "_ReduceMax")
    )
    return lowest, highest


def _narrowed(model: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Of each weight a scale for each channel at which no sum of two products overflows 16 bits: 255 times any two
    neighbours of one sign. Neighbours are those that are multiplied one after the other, channels first."""
    import onnx
    from onnxruntime.quantization import QuantType

    constants = {value.name: value for value in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in constants:
            continue
        weight = onnx.numpy_helper.to_array(constants[node.input[1]])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if weight.dtype != np.float32 or (node.op_type != "Conv" and weight.ndim != 2):
            continue
        axis = 0 if node.op_type == "Conv" or attributes.get("transB") else 1
        group = attributes.get("group", 1)
        if node.op_type == "Conv" and weight.shape[1] == 1 and group == len(weight):
            continue  # kernels of their own, with wider sums
        rows = np.moveaxis(weight, 1, -1) if node.op_type == "Conv" else np.moveaxis(weight, axis, 0)
        rows = rows.reshape(len(rows), -1)
        pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
        sums = np.maximum(pairs.clip(min=0).sum(2), -pairs.clip(max=0).sum(2)).max(1)
        scales = np.maximum(np.abs(rows).max(1) / 127, sums / 127.4).astype(np.float32)
        scales[scales <= np.finfo(np.float32).tiny] = 1
        zero = np.array(0, dtype=np.int8)
        each = [{"quant_type": QuantType.QInt8, "scale": np.asarray(scale), "zero_point": zero} for scale in scales]
        yield node.input[1], [{"axis": axis, **each[0]}, *each[1:]]
