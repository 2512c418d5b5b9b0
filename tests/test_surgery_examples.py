"""The examples in surgery's docstrings, about the network in that of the room."""

import copy
import doctest
import inspect
import pkgutil
from importlib import import_module

import pytest
import torch

from protege import surgery

NAMES = [module.name for module in pkgutil.walk_packages(surgery.__path__, "protege.surgery.") if not module.ispkg]


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name):
    torch.manual_seed(0)
    known = {public: getattr(surgery, public) for public in surgery.__all__}
    for example in doctest.DocTestParser().get_examples(surgery.__doc__):
        exec(example.source, known)
    assert doctest.testmod(import_module(name), extraglobs=known | {"copy": copy}).failed == 0


@pytest.mark.parametrize("name", [name for name in surgery.__all__ if inspect.isfunction(getattr(surgery, name))])
def test_every_public_function_has_an_example(name):
    assert ">>> " in getattr(surgery, name).__doc__
