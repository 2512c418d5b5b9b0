"""Targets of one's own: a function from a teacher's rows to distributions, in the table's place."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from test_targets import term
from tools import CLASSES, model, pictures, plan

from protege import distill, train
from protege.data import Batch, InMemory
from protege.data.labels import UNLABELLED
from protege.errors import UserError
from protege.losses import Target, topk
from protege.methods.targets import find_target, function_of

CODE = """
import torch
from protege.losses import Target

def powered(logits, temperature, power=2.0):
    return (power * logits / temperature).softmax(1)


def sharper(logits):
    return (2 * logits).softmax(1)

def heated(logits, temperature):
    return (logits / temperature).softmax(1)

def half_true(logits, labels):
    return (logits.softmax(1) + torch.nn.functional.one_hot(labels, logits.shape[1])) / 2
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "mine"
    sys.modules.pop("mine", None)


def batch_of(v, labels):
    batch = Batch(torch.zeros(len(labels)), labels, torch.arange(len(labels)), 0)
    batch.signals["teacher"] = {"logits": v}
    return batch


def rows():
    g = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, 9, CLASSES, generator=g) * 2
    labels = torch.randint(0, CLASSES, (9,), generator=g)
    labels[[1, 4]] = UNLABELLED
    return z, v, labels


def naive(z, dense, temperature=1.0):
    """``T²·KL`` of each row, entry by entry."""
    log_q = (z / temperature).double().log_softmax(1)
    return temperature**2 * torch.stack(
        [
            sum(p * (p.log() - q) for p, q in zip(a, b, strict=True) if p > 0)
            for a, b in zip(dense.double(), log_q, strict=True)
        ]
    )


@pytest.mark.parametrize("name", ["sharper", "heated", "half_true"])
def test_the_term_is_the_mean_over_the_rows_that_it_teaches(mine, name):
    """By its arguments: labels make it leave rows without one out, a temperature is the setting's."""
    z, v, labels = rows()
    made = term(f"{mine}:{name}", **({"temperature": 3.0} if name == "heated" else {}))
    value = made.loss(z, labels, torch.ones(9), batch_of(v, labels))
    if name == "sharper":
        expected = naive(z, (2 * v).softmax(1)).mean()
    elif name == "heated":
        expected = naive(z, (v / 3).softmax(1), 3.0).mean()
    else:
        known = labels != UNLABELLED
        dense = (v.softmax(1) + F.one_hot(labels.clamp(min=0), CLASSES)) / 2
        expected = naive(z, dense)[known].mean()
    assert made.weight == 0.9
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_function_may_return_a_target_of_few_classes():
    z, v, labels = rows()

    def two(logits):
        return topk(*logits.softmax(1).topk(2, dim=1), CLASSES)

    value = term(two).loss(z, labels, torch.ones(9), batch_of(v, labels))
    assert isinstance(two(v), Target)
    assert value.item() == pytest.approx(naive(z, two(v).dense(CLASSES)).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda logits: logits, "gives (rows that sum|values that are negative)"),
        (lambda logits: logits.softmax(1)[:, :2], r"gives values of shape \[4, 2\] for logits of shape \[4, 3\]"),
        (lambda logits: logits.softmax(1) / 0, "negative or not finite"),
        (lambda logits, labels, more: logits, "fails on the teacher's logits"),
        (lambda logits: None, "fails on the teacher's logits"),
    ],
)
def test_what_is_no_distribution_is_refused_before_training(function, message):
    with pytest.raises(UserError, match=message):
        term(function)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mine:nothing", "has no 'nothing', named by target"),
        ("nowhere:it", "target 'nowhere:it'"),
        ("sharp", "input should be 'kd', .* or package.module:function"),
    ],
)
def test_what_cannot_be_found_is_refused(mine, target, message, tmp_path):
    with pytest.raises(UserError, match=message):
        distill("zoo:resnet8", "zoo:resnet8", "digits", "kd", tmp_path / "r", target=target, epochs=1, samples=30)
    assert not (tmp_path / "r").exists()


def test_labels_are_needed_by_who_takes_them(mine):
    unlabelled = InMemory(pictures().pixels, torch.full((48,), UNLABELLED))
    assert term(f"{mine}:sharper", samples=unlabelled).signals
    with pytest.raises(UserError, match="needs labels, which the data does not have"):
        term(f"{mine}:half_true", samples=unlabelled)


def test_settings_of_other_targets_are_refused(mine):
    with pytest.raises(UserError, match="k = 3 does not belong to target 'mine:sharper'"):
        term(f"{mine}:sharper", k=3)


def test_by_name_and_given_in_python_it_is_one_run(mine, tmp_path):
    """The recipe names it, a resumed run finds it again, other code is refused."""
    import mine as module

    train("zoo:resnet8", "digits", out=tmp_path / "t", seed=0, epochs=3)
    common = {"teacher": str(tmp_path / "t" / "student"), "student": "zoo:resnet8", "data": "digits", "method": "kd"}
    ways = {"named": "mine:sharper", "given": module.sharper, "local": lambda logits: (2 * logits).softmax(1)}
    runs = {
        name: distill(**common, out=tmp_path / name, target=target, seed=0, epochs=1, samples=60)
        for name, target in ways.items()
    }
    states = [run.student.state_dict() for run in runs.values()]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in state)
    assert 'target = "mine:sharper"' in (tmp_path / "given" / "recipe.toml").read_text()
    assert 'target = "python:' in (tmp_path / "local" / "recipe.toml").read_text()
    (tmp_path / "named" / "result.json").unlink()
    assert distill(out=tmp_path / "named", resume=True).metrics == runs["named"].metrics
    origin = json.loads((tmp_path / "named" / "result.json").read_text())["origin"]
    assert "code of the target" in origin


@pytest.mark.parametrize("method", ["gpd", "fitnets"])
def test_it_stands_wherever_a_target_does(mine, method):
    phases = plan(method, model(), model(seed=3), target=f"{mine}:sharper")
    assert phases[-1].sources


def test_arguments_of_a_target_stand_in_its_name(mine):
    logits = torch.randn(6, 10)
    for name, power in (("powered", 2.0), ("powered?power=3", 3.0)):
        function = function_of(f"{mine}:{name}")
        assert torch.equal(function(logits, temperature=4.0), (power * logits / 4).softmax(1))
        knowledge = find_target(f"{mine}:{name}")
        assert not knowledge.needs_labels, "a second argument with a default is no label"
    with pytest.raises(UserError, match="has no argument 'pover'; did you mean 'power'"):
        function_of(f"{mine}:powered?pover=3")
    with pytest.raises(UserError, match="sets 'temperature', which the run gives it"):
        function_of(f"{mine}:powered?temperature=7")
