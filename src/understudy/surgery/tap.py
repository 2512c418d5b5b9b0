"""Features on the way: what named modules give while the whole network runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Tapped(nn.Module):
    """A model that returns what some of its modules gave beside its outputs, with gradients.

    Called like ``model``; returns ``(features, outputs)``, the features being those modules' first outputs, each
    through its module of ``adapters`` (one for each name). ``names`` are those of ``model.network``'s modules.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], adapters: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model, self.names, self.adapters = model, tuple(names), nn.ModuleList(adapters)
        self.layout = getattr(model, "layout", "channels_last")

    def forward(self, raw: Tensor) -> tuple[list[Tensor], Any]:
        heard: dict[str, Tensor] = {}

        def listen(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                heard.setdefault(name, output.clone())  # what follows may be in place

            return hook

        network: Any = self.model.network
        handles = [network.get_submodule(name).register_forward_hook(listen(name)) for name in self.names]
        try:
            outputs = self.model(raw)
        finally:
            for handle in handles:
                handle.remove()
        return [adapt(heard[name]) for name, adapt in zip(self.names, self.adapters, strict=True)], outputs
