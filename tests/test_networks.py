"""The trial on real architectures (`make networks`): a quick part of it, and what it is made of."""

import json
import os
import runpy
import sys
from importlib import import_module
from pathlib import Path

import forks
import pytest
import torch
from tools import imported
from torch import nn

from protege import UserError

NETWORKS = Path(__file__).parent.parent / "benchmarks" / "networks"


@pytest.fixture
def parts(monkeypatch):
    """The modules of the trial, by name."""
    monkeypatch.syspath_prepend(str(NETWORKS))
    return import_module


def tried(*words: str, out: Path) -> dict[tuple[str, str], str]:
    """`python benchmarks/networks *words`: the verdict of each cell."""

    def program() -> None:
        sys.argv = ["networks", *words, "--out", str(out)]
        sys.path.insert(0, str(NETWORKS))
        runpy.run_path(str(NETWORKS), run_name="__main__")

    done = forks.Fork(program)
    assert done.wait() == 0, done.stderr
    cells = [line for line in map(json.loads, out.read_text().splitlines()) if "ability" in line]
    return {(cell["network"], cell["ability"]): f"{cell['verdict']}: {cell['note']}" for cell in cells}


@pytest.mark.parametrize(
    ("names", "abilities"),
    [
        (("lcnet_050", "hf/ResNetForImageClassification"), ("kd",)),
        (
            (
                "tv/resnet18",
                "hf/ResNetForImageClassification",
                "vit_tiny_patch16_224",
                "hf/ConvNextForImageClassification",
            ),
            ("skd",),
        ),
        (("hf/ResNetForImageClassification", "regnetx_002"), ("shrink", "fskd")),
        (("hf/ViTForImageClassification", "tv/vit_b_16 (small)", "hf/GPT2LMHeadModel"), ("gpd",)),
    ],
)
def test_networks_that_work(names, abilities, tmp_path):
    for package in ("timm", "segmentation_models_pytorch", "torchvision"):
        imported(package)
    only = "|".join(f"^{name.replace('(', '.').replace(')', '.')}$" for name in names)
    verdicts = tried("--only", only, "--abilities", ",".join(abilities), out=tmp_path / "cells.jsonl")
    assert set(verdicts) == {(name, ability) for name in names for ability in abilities}
    assert not [f"{key}: {verdict}" for key, verdict in verdicts.items() if not verdict.startswith("works")]


def test_what_a_pruned_network_has_not_is_zero(parts):
    zeroed = parts("zeroed").zeroed
    torch.manual_seed(0)

    def net(width: int, groups: int) -> nn.Module:
        layers = nn.Conv2d(3, width, 1), nn.GroupNorm(1, width), nn.Conv2d(width, width, 1, groups=groups)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 4, 5))

    original, pruned, kept = net(6, 2), net(4, 2), torch.tensor([0, 2, 3, 5])
    nn.init.uniform_(original[1].weight), nn.init.uniform_(original[1].bias)
    within = torch.tensor([[0, 2], [0, 2], [0, 2], [0, 2]])  # of the three inputs of each group
    flat = (kept[:, None] * 4 + torch.arange(4)).flatten()
    with torch.no_grad():
        pruned[0].weight.copy_(original[0].weight[kept]), pruned[0].bias.copy_(original[0].bias[kept])
        pruned[1].weight.copy_(original[1].weight[kept]), pruned[1].bias.copy_(original[1].bias[kept])
        within = torch.tensor([[0, 2], [0, 2]]).repeat_interleave(2, 0)
        pruned[2].weight.copy_(original[2].weight[kept].gather(1, within.view(4, 2, 1, 1)))
        pruned[2].bias.copy_(original[2].bias[kept])
        pruned[4].weight.copy_(original[4].weight[:, flat]), pruned[4].bias.copy_(original[4].bias)
    x = torch.randn(2, 3, 2, 2)
    middle = pruned[1](pruned[0](x))
    whole = torch.zeros(2, 6, 2, 2).index_copy(1, kept, middle)
    after = torch.zeros(2, 6, 2, 2).index_copy(1, kept, original[2](whole)[:, kept])
    assert torch.allclose(zeroed(original, pruned, x)(x), original[4](after.flatten(1)), atol=1e-6)
    assert torch.allclose(zeroed(original, pruned, x)(x), pruned(x), atol=1e-6)
    with torch.no_grad():
        pruned[4].weight[0, 0] += 1
    with pytest.raises(ValueError, match="are no part of"):
        zeroed(original, pruned, x)


def test_cells_that_fail_end_badly_or_not_at_all_are_told(parts, monkeypatch, tmp_path, capfd):
    """None keeps another from being tried."""
    main = runpy.run_path(str(NETWORKS / "__main__.py"))
    rows, abilities = parts("rows"), parts("abilities")

    def spin():
        while True:
            pass

    def refuse(given, work):
        raise UserError("so it is.")

    laws = {
        "kd": lambda given, work: ("works", "well"),
        "skd": lambda given, work: os._exit(3),
        "shrink": lambda given, work: spin(),
        "fskd": lambda given, work: abilities.holds(False, "no law"),
        "gpd": refuse,
        "onnx": lambda given, work: {}["missing"],
    }
    monkeypatch.setattr(abilities, "ABILITIES", laws)
    monkeypatch.setattr(abilities, "pair_of", lambda row: None)
    row, out = rows.Row("small", "", ""), tmp_path / "cells.jsonl"
    main["try_row"](row, list(laws), 0.3, out, "abc")
    cells = {cell["ability"]: (cell["verdict"], cell["note"]) for cell in map(json.loads, out.read_text().splitlines())}
    assert cells == {
        "kd": ("works", "well"),
        "skd": ("broken", "the process ended with status 3"),
        "shrink": ("no end", "more than 0 s"),
        "fskd": ("broken", "no law"),
        "gpd": ("refused", "so it is."),
        "onnx": ("broken", "KeyError: 'missing'"),
    }


def test_the_page_shows_before_and_now(parts, tmp_path):
    head = {"machine": "2 cores", "date": "2026-01-01", "limit": 60, "commit": "abc", "versions": {"torch": "2"}}

    def cells(name, *verdicts):
        lines = [head] + [
            {"network": network, "ability": "skd", "verdict": verdict, "note": "a|b", "seconds": 1, "commit": "abc"}
            for network, verdict in zip(("one", "two", "three"), verdicts, strict=False)
        ]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)) + '\n{"unfinished')

    cells("before.jsonl", "refused", "works", "partly")
    cells("now.jsonl", "works", "broken")
    page = parts("page")
    page.write(tmp_path / "page.md", tmp_path, ["one", "two", "three", "four"])
    text = (tmp_path / "page.md").read_text()
    assert "| one |  | refused → works |" in text
    assert "| two |  | works → broken |" in text
    assert "| skd | 1 |  |  | 1 |  |  | 2 | 50% |" in text
    assert "- two, skd: broken: a\\|b" in text
    assert "| three |  | (partly) |" in text
    assert "| four |" not in text
