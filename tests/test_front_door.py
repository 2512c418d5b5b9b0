"""What the caller of the Python functions keeps, and is told before hours are spent."""

import logging
import random

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import protege
from protege import UserError


def drawn() -> list[float]:
    return [float(torch.rand(())), float(np.random.rand()), random.random()]


def pictures(count: int = 60, classes: int = 12) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return TensorDataset(pixels, torch.arange(count) % classes)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_run_leaves_the_callers_random_numbers(tmp_path, seed):
    def numbers(run) -> list[float]:
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        run()
        return drawn()

    settings = {"epochs": 1, "samples": 20, "seed": seed}
    assert numbers(lambda: protege.train("zoo:mlp", "digits", tmp_path / "run", **settings)) == numbers(lambda: None)


def test_a_choice_without_some_classes_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "protege"):
        protege.preview("zoo:mlp?hidden=8", "zoo:mlp", pictures(), "kd", samples=5)
    assert "the 5 samples show 5 of the 12 classes" in caplog.text
    caplog.clear()
    protege.preview("zoo:mlp?hidden=8", "zoo:mlp", pictures(), "kd", samples=24)
    assert "samples show" not in caplog.text


def test_one_set_for_training_and_test_is_told(caplog):
    data = pictures()
    protege.load_data((data, data))
    assert "one and the same" in caplog.text


def test_a_bare_teacher_is_told_how_its_pixels_come(caplog):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12))
    with caplog.at_level(logging.INFO, "protege"):
        protege.evaluate(network, pictures())
    assert "normalised by the data's own mean" in caplog.text
    caplog.clear()
    protege.evaluate(protege.Model(network, protege.InputSpec(channels=1)), pictures())
    assert "normalised" not in caplog.text


def test_the_student_of_an_unfinished_run_is_named_so(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="not finished; go on with it first"):
        protege.evaluate(str(tmp_path / "run/student"), "digits")


@pytest.mark.parametrize(
    ("name", "meant"), [("hintn", "kd"), ("stage-wise", "skd"), ("aut", "auto"), ("fewsample", "fskd")]
)
def test_names_of_methods_that_are_nearly_right(name, meant):
    with pytest.raises(UserError, match=rf"did you mean (.* or )?'{meant}'"):
        protege.preview("zoo:mlp", "zoo:mlp", "digits", name)
