"""The examples in the docstrings of the losses, which are usable by themselves: they import nothing of the library's
that a loop of one's own would not have."""

import doctest
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from protege import losses
from protege.data import labels

MODULES = ["protege.losses", *(f"protege.losses.{module.name}" for module in pkgutil.iter_modules(losses.__path__))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = import_module(name)
    assert doctest.testmod(module, extraglobs={"torch": torch}).failed == 0


@pytest.mark.parametrize("name", list(losses.__all__))
def test_what_is_public_has_an_example(name):
    assert ">>> " in (getattr(losses, name).__doc__ or "")


@pytest.mark.parametrize("name", MODULES)
def test_the_room_stands_alone(name):
    text = Path(import_module(name).__file__).read_text()
    assert set(re.findall(r"^\s*from (\.\.\S+|protege\S*) import", text, re.MULTILINE)) <= {"..errors"}


def test_rows_without_a_label_are_those_of_data():
    assert losses.rows.UNLABELLED == labels.UNLABELLED
