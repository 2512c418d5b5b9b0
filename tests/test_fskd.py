"""Recovery by solving: what must hold on every kind of network, and what is told where it cannot work."""

import copy
import dataclasses
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch
from tools import Net, apart, pictures, same, weights
from torch import nn

from protege.data import Augment, InMemory
from protege.errors import UserError
from protege.methods import METHODS, Setup, Views, fskd
from protege.models import Model, zoo
from protege.models.inputs import InputSpec
from protege.models.mobilenet import InvertedResidual
from protege.surgery import Frontier, Walk, decouple, plan_alignment, shrink
from protege.surgery.layers import SOLVABLE
from protege.surgery.solving import alignment
from protege.tasks import TASKS

NETWORKS = {
    "vgg8": {"width": 0.125},
    "vgg8_bn": {"width": 0.125},
    "resnet8": {},
    "resnet10": {"width": 4},
    "mobile": {},
    "mlp": {"hidden": 24, "depth": 2, "image_size": 16, "channels": 3},
}


class Mobile(nn.Sequential):
    """The blocks of a MobileNet without its wide last layers."""

    def __init__(self):
        blocks = InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 8, 1, 3), InvertedResidual(8, 16, 2, 2)
        super().__init__(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def network(name, seed=0):
    """A network whose BatchNorms have seen something."""
    torch.manual_seed(seed)
    made = Mobile() if name == "mobile" else zoo.build(name, {"num_classes": 5, **NETWORKS[name]})
    with torch.no_grad():
        for _ in range(8):
            made.train()(images(24))
    return made.eval()


def images(count=24, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.interpolate(torch.randn(count, 3, 8, 8, generator=generator), 16, mode="bilinear")


def pruned(teacher, ratio=0.4):
    made = shrink(teacher, images(2), "l1", ratio=ratio)
    return made.network.eval(), made.kept


def recover(student, teacher, kept, x, chunks=4, **settings):
    folds = [chunk % fskd.FOLDS for chunk in range(chunks)]
    return fskd.recover(student, teacher, kept, lambda c: (x[c::chunks], x[c::chunks]), folds, **settings)


def distance(student, teacher, x):
    with torch.no_grad():
        s, t = student.eval()(x).double(), teacher.eval()(x).double()
    return float((s - t).square().sum() / t.square().sum())


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_student_comes_nearer_and_keeps_its_shape(name, kernels):
    teacher = network(name)
    student, kept = pruned(teacher)
    x, before = images(32), {k: v.shape for k, v in student.state_dict().items()}
    theirs, first = weights(teacher), distance(student, teacher, x)
    found = recover(student, teacher, kept, x, kernels=kernels)
    assert {k: v.shape for k, v in student.state_dict().items()} == before
    assert same(theirs, weights(teacher))
    # what is told is what the whole network does
    assert found["before"] == pytest.approx(first, rel=1e-3)
    assert found["after"] == pytest.approx(distance(student, teacher, x), rel=1e-2, abs=1e-5)
    assert found["after"] < 0.7 * found["before"]
    assert [b["name"] for b in found["blocks"]] == sorted(
        (n for n, m in student.named_modules() if isinstance(m, SOLVABLE)),
        key=[b["name"] for b in found["blocks"]].index,
    )
    for block in found["blocks"]:  # the law: solving a layer never makes the aligned error larger
        assert block["after"] <= block["before"] * (1 + 1e-9)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", ["vgg8_bn", "resnet8"])
def test_a_perfect_student_stays_as_it_is(name, kernels):
    teacher = network(name)
    student = copy.deepcopy(teacher)
    found = recover(student, teacher, {}, images(), kernels=kernels)
    assert found["before"] == found["after"] == 0
    assert same(weights(student), weights(teacher))


@pytest.mark.parametrize("name", ["vgg8", "resnet8"])
def test_a_channel_mixture_is_undone_exactly(name):
    """A student whose layers are the teacher's times a random matrix is solved back to the teacher."""
    teacher = network(name).double()
    student = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(0)
    for module in student.modules():
        if isinstance(module, SOLVABLE):
            count = len(module.weight)
            mix = torch.eye(count).double() + torch.randn(count, count, generator=generator).double() / count**0.5
            with torch.no_grad():
                module.weight.copy_(torch.einsum("oi,i...->o...", mix, module.weight))
    x = images(64).double()
    assert distance(student, teacher, x) > 0.1
    recover(student, teacher, {}, x, ridge=0)
    assert distance(student, teacher, images(32, seed=9).double()) < 1e-12


@pytest.mark.parametrize("name", ["vgg8", "resnet8", "mobile"])
def test_kernels_of_any_other_values_are_solved_back(name):
    """A student with noise on every weight, which no matrix behind a layer takes away."""
    teacher = network(name).double()
    x, distances = images(400).double(), []
    for kernels in (False, True):
        student = copy.deepcopy(teacher)
        torch.manual_seed(0)
        with torch.no_grad():
            for module in student.modules():
                if isinstance(module, SOLVABLE):
                    module.weight += 0.3 * module.weight.std(correction=0) * torch.randn_like(module.weight)
        recover(student, teacher, {}, x, kernels=kernels, ridge=0)
        distances.append(distance(student, teacher, images(32, seed=9).double()))
    assert distances[0] > 1e-5
    assert distances[1] < 1e-12


@pytest.mark.parametrize("name", ["resnet8", "mobile"])
def test_patches_in_parts_are_the_same(name, monkeypatch):
    teacher, x = network(name), images(24).double()
    student, kept = pruned(teacher)
    student, teacher = student.double(), teacher.double()
    other = copy.deepcopy(student)
    recover(student, teacher, kept, x, kernels=True, ridge=1e-3)
    monkeypatch.setattr(alignment, "PATCHES", 300)
    recover(other, teacher, kept, x, kernels=True, ridge=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(student(x), other(x), rtol=1e-8, atol=1e-8)


class OneNorm(nn.Module):
    """Two convolutions before one BatchNorm, and a BatchNorm over the tokens behind a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, 2)
        self.norm, self.reads = nn.BatchNorm2d(6), nn.Linear(9, 6)
        self.tokens, self.head = nn.BatchNorm1d(6), nn.Linear(36, 5)

    def forward(self, x):
        x = self.norm(self.b(self.norm(self.a(x)).relu())).relu()
        return self.head(self.tokens(self.reads(x.flatten(2))).relu().flatten(1))


@pytest.mark.parametrize("kernels", [False, True])
def test_norms_that_are_not_a_layers_own_are_left_alone(kernels):
    torch.manual_seed(0)
    teacher, x = OneNorm(), images(64)
    for _ in range(8):
        teacher.train()(x)
    student = copy.deepcopy(teacher.eval())
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, SOLVABLE):
                module.weight += 0.5 * module.weight.std() * torch.randn_like(module.weight)
    points = plan_alignment(*walks(student, teacher), {}).points
    assert {point.layer: point.norm for point in points} == dict.fromkeys(["a", "b", "reads", "head"])
    found = recover(student, teacher, {}, x, kernels=kernels)
    assert found["after"] == pytest.approx(distance(student, teacher, x), rel=1e-2)
    assert found["after"] < 0.1 * found["before"]


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("where", ["in", "out"])
def test_hooks_spoil_nothing(where, kernels):
    """What is judged is the network as it is: where a hook makes alignment useless, it is undone."""
    teacher, x = network("vgg8_bn"), images(32)
    student, kept = pruned(teacher)
    for layer in student.modules():
        if isinstance(layer, nn.Conv2d) and where == "in":
            layer.register_forward_pre_hook(lambda module, args: (2 * args[0] + 1,))
        elif isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda module, args, output: 3 * output.relu() + 1)
    found = recover(student, teacher, kept, x, kernels=kernels)
    assert found["after"] <= found["before"]
    assert found["after"] == pytest.approx(distance(student, teacher, x), rel=1e-2)


class Overwritten(nn.Module):
    """What the second convolution has read is changed in place afterwards."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        y = self.a(x)
        z = self.b(input=y)
        y.relu_()
        return self.head((z.relu() * y).mean((2, 3)))


def test_a_kernel_is_solved_on_what_it_saw():
    torch.manual_seed(0)
    teacher, x = Overwritten().double().eval(), images(64).double()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for layer in (student.a, student.b):
            layer.weight += 0.1 * torch.randn_like(layer.weight)
    recover(student, teacher, {}, x, kernels=True, ridge=0)
    assert distance(student, teacher, images(32, seed=9).double()) < 1e-12


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 768), nn.Linear(768, 5)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(x.flatten(1) + self.embed((x[:, 0, 0, 0] > 0).long()))


def test_a_weight_that_is_an_embeddings_too_is_refused():
    with pytest.raises(UserError, match=r"no layer .* can be aligned .*its weight is used more than once"):
        recover(Tied(), Tied(), {}, images())


def test_a_weight_of_two_layers_is_left_as_it_is():
    teacher = network("resnet8")
    block = teacher.layer1[0]
    block.conv2.weight = block.conv1.weight
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for name in ("conv1", "layer1.0.conv1", "layer2.0.conv1", "fc"):
            weight = student.get_submodule(name).weight
            weight += 0.3 * weight.std() * torch.randn_like(weight)
    before = block.conv1.weight.clone(), student.layer1[0].conv1.weight.clone()
    found = recover(student, teacher, {}, images(64))
    assert set(found["left"]) == {"layer1.0.conv1", "layer1.0.conv1 (2)"}
    assert torch.equal(student.layer1[0].conv1.weight, before[1])
    assert found["after"] < found["before"]


def test_layers_too_wide_take_a_matrix(monkeypatch):
    student, kept, teacher = shrunken(norm=True)
    monkeypatch.setattr(alignment, "WIDEST", 9)  # the kernel of a layer on grey images
    made = setup_of(pictures(24), student, kept, teacher, solve="kernel")
    kinds = {row["student"]: row["kind"] for row in fskd.preview(made)}
    assert kinds == {"conv1": "kernel", "conv2": "full", "fc": "kernel"}
    found = fskd.plan(made)[0].solve(lambda done, total: None)
    assert found["after"] < found["before"]


@pytest.mark.parametrize("name", ["vgg8", "vgg8_bn", "resnet8"])
def test_decoupled_convolutions_take_q_into_the_pointwise_part(name):
    teacher = network(name)
    made = decouple(teacher, rank=1)
    points = plan_alignment(*walks(made.network, teacher), made.kept).points
    decoupled = [p for p in points if p.layer != p.teacher]
    assert decoupled
    assert all(p.layer == p.teacher + ".pointwise" for p in decoupled)
    found = recover(made.network, teacher, made.kept, images(32))
    assert found["after"] < found["before"]


def walks(student, teacher, x=None):
    x = images(2) if x is None else x
    return Walk(student, "student", x), Walk(teacher, "teacher", x)


def naive(student, teacher, kept, x, ridge, kernels):
    """Layer by layer with a full forward of both networks and the stacked pixels: the paper's procedure.

    With ``kernels`` the unknown is what is added to the kernel, and the known is its unfolded input.
    """
    points = plan_alignment(*walks(student, teacher, x[:2]), kept).points
    for point in points:
        name = point.norm or point.layer
        heard, seen = [], []
        watch = student.get_submodule(point.layer).register_forward_pre_hook(
            lambda m, i, seen=seen: seen.append(i[0].clone())
        )
        for net, module in ((student, name), (teacher, name)):
            handle = net.get_submodule(module).register_forward_hook(
                lambda m, i, o, heard=heard: heard.append(o.clone())
            )
            with torch.no_grad():
                net(x)
            handle.remove()
        watch.remove()
        s, t = heard
        if point.kept is not None:
            t = t.index_select(point.dim, torch.tensor(point.kept))
        s, t = (v.movedim(point.dim, -1).flatten(0, -2) for v in (s, t))
        layer = student.get_submodule(point.layer)
        if kernels:
            u = seen[0]
            if u.dim() == 4:
                u = nn.functional.unfold(u, layer.kernel_size, 1, layer.padding, layer.stride).mT.flatten(0, 1)
            a, b = u - u.mean(0), (t - s) - (t - s).mean(0)
            strength = ridge * a.square().sum() / a.shape[1] * torch.eye(a.shape[1]).double()
            delta = torch.linalg.solve(a.mT @ a + strength, a.mT @ b)
            c = (t - s).mean(0) - u.mean(0) @ delta
            with torch.no_grad():
                last, scale = layer, torch.ones(len(layer.weight))
                if point.norm:
                    last = student.get_submodule(point.norm)
                    scale = last.weight / (last.running_var + last.eps).sqrt()
                layer.weight += (delta / scale).mT.reshape(layer.weight.shape)
                last.bias += c
            continue
        a, b = s - s.mean(0), t - t.mean(0)
        strength = ridge * a.square().sum() / a.shape[1] * torch.eye(a.shape[1]).double()
        q = torch.linalg.solve(a.mT @ a + strength, a.mT @ b + strength)
        c = t.mean(0) - s.mean(0) @ q
        with torch.no_grad():
            if point.norm:
                norm = student.get_submodule(point.norm)
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                shift = (norm.bias + scale * (layer.bias - norm.running_mean)) @ q + c
                layer.weight.copy_(torch.einsum("io,i...->o...", q, scale.view(-1, 1, 1, 1) * layer.weight))
                layer.bias.zero_(), norm.running_mean.zero_(), norm.running_var.fill_(1 - norm.eps)
                norm.weight.fill_(1), norm.bias.copy_(shift)
            else:
                layer.weight.copy_(torch.einsum("io,i...->o...", q, layer.weight))
                layer.bias.copy_(layer.bias @ q + c)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", ["vgg8", "vgg8_bn", "mlp"])
def test_the_frontier_does_what_full_forwards_do(name, kernels):
    teacher = network(name).double()
    student, kept = pruned(teacher.float())
    student, teacher = student.double(), teacher.double()
    other, x = copy.deepcopy(student), images(20).double()
    recover(student, teacher, kept, x, chunks=3, ridge=1e-2, kernels=kernels)
    naive(other, teacher, kept, x, 1e-2, kernels)
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(x), other.eval()(x), rtol=1e-7, atol=1e-7)


def test_sums_with_a_shortcut_are_aligned():
    teacher = network("resnet8")
    student, kept = pruned(teacher)
    points = plan_alignment(*walks(student, teacher), kept).points
    summed = [p.layer for p in points if p.shortcut]
    assert summed == ["layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"]
    rows = [p.row() for p in points]
    assert rows[2]["teacher"] == "layer1.0.conv2 + shortcut"
    assert rows[2]["absorbed into"] == "layer1.0.conv2 and layer1.0.bn2"
    assert rows[2]["channels"] == len(kept["layer1.0.conv2"])


@pytest.mark.parametrize("kernels", [False, True])
def test_files_hold_what_memory_does_not(kernels, monkeypatch):
    teacher = network("resnet8")
    student, kept = pruned(teacher)
    others = [copy.deepcopy(student) for _ in range(2)]
    recover(student, teacher, kept, images(20), kernels=kernels)
    recover(others[0], teacher, kept, images(20), budget=0, kernels=kernels)
    made = []
    monkeypatch.setattr(Frontier, "_file", lambda self, chunk: made.append(chunk))
    monkeypatch.setattr(fskd, "room_on", lambda device: (20_000, 2**30))  # a GPU's, and beside it
    recover(others[1], teacher, kept, images(20), kernels=kernels)
    assert not made
    monkeypatch.undo()
    for other in others:
        assert same(weights(student), weights(other))
    with Frontier(100) as frontier:
        frontier.put(0, {"a": torch.ones(20)})
        frontier.put(1, {"a": torch.ones(20), "size": 3})
        assert frontier.used == 80
        folder = frontier._folder
        assert frontier.take(1)[0]["size"] == 3
    with Frontier(0, 10_000) as beside:
        value = torch.ones(20)
        beside.put(0, {"a": value, "b": value.view(4, 5)})
        beside.put(1, {"a": torch.ones(4000)})
        assert beside._folder is not None
        (live,) = beside.take(0)
        live["a"].zero_()
        assert not live["b"].any()
        assert beside.beside == 10_000
    assert folder is not None
    assert not Path(folder.name).exists()


@pytest.mark.parametrize("kernels", [False, True])
def test_another_sweep_never_makes_it_worse(kernels):
    teacher = network("resnet8")
    student, kept = pruned(teacher)
    other = copy.deepcopy(student)
    one = recover(student, teacher, kept, images(), kernels=kernels)
    more = recover(other, teacher, kept, images(), sweeps=3, kernels=kernels)
    assert 1 <= more["sweeps"] <= 3
    assert more["after"] <= one["after"] * (1 + 1e-6)  # the same sum, rounded by where its memory lies


def test_blocks_in_the_shape_of_torchvision():
    """The shortcut's convolution runs after the main branch, sums are in place, and so is the nonlinearity."""

    class Block(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
            self.conv2, self.bn2 = nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
            self.relu, self.drop = nn.ReLU(inplace=True), nn.Identity()
            self.downsample = nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)) if a != b else None

        def forward(self, x):
            out = self.drop(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
            out += x if self.downsample is None else self.downsample(x)
            return self.relu(out)

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 5)

        def forward(self, x):
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(0)
    teacher = nn.Sequential(Block(3, 12), Block(12, 12), Head())
    with torch.no_grad():
        teacher.train()(images(32))
    teacher.eval()
    student, kept = pruned(teacher)
    points = plan_alignment(*walks(student, teacher), kept).points
    assert [p.layer for p in points if p.shortcut] == ["0.conv2", "1.conv2"]
    x = images(32)
    found = recover(student, teacher, kept, x)
    assert found["after"] == pytest.approx(distance(student, teacher, x), rel=1e-3)
    assert found["after"] < found["before"]


# ---- the method ---------------------------------------------------------------------------------------------------


def setup_of(samples, student, kept, teacher, positions=None, augment=None, **settings):
    task = TASKS["classification"]
    positions = torch.arange(len(samples)) if positions is None else positions
    transfer = Views(samples, positions, augment or Augment(), 1, torch.device("cpu"))
    spec = InputSpec(channels=1, mean=(0.5,), std=(0.25,))
    models = Model(student, spec, kept=kept), Model(teacher, spec)
    return Setup(*models, task, METHODS["fskd"].settings(**settings), transfer)


def shrunken(**settings):
    torch.manual_seed(0)
    teacher = Net(width=8, **settings)
    made = shrink(teacher.eval(), torch.randn(2, 1, 6, 6), "l1", ratio=0.5)
    return made.network, made.kept, teacher


def test_labels_are_never_read():
    """Garbage labels, and none at all, give the same student bit for bit; so does the same run again."""
    students = []
    pixels = pictures(20)
    for labels in (pixels.labels, torch.randint(-(2**40), 2**40, (20,)), torch.full((20,), -100), pixels.labels):
        student, kept, teacher = shrunken(norm=True)
        phases = fskd.plan(setup_of(InMemory(pixels.pixels, labels), student, kept, teacher))
        assert [(p.name, p.kind) for p in phases] == [("align", "solve")]
        before = weights(student)
        found = phases[0].solve(lambda done, total: None)
        assert found["after"] < found["before"]
        assert apart(before, weights(student)) > 0
        students.append(weights(student))
    assert all(same(students[0], other) for other in students[1:])


def test_the_fine_tune_reads_no_label_either():
    student, kept, teacher = shrunken()
    made = setup_of(pictures(20), student, kept, teacher, finetune_steps=7)
    phases = fskd.plan(made)
    assert [p.name for p in phases] == ["align", "finetune"]
    fit = phases[1]
    assert fit.overrides["epochs"] == 7  # one update an epoch
    batch = next(made.transfer.batches(20))
    batch.signals["teacher"] = fit.sources[0].compute(batch.inputs)
    losses = []
    for labels in (batch.labels, torch.full_like(batch.labels, -100)):
        losses.append(fit.step(made.student, dataclasses.replace(batch, labels=labels))["loss"])
    assert torch.equal(*losses)


@pytest.mark.parametrize("idle", [{"label_smoothing": 0.1}, {"temperature": 9.0}, {"finetune_lr": 0.5}])
def test_idle_settings_are_not_ignored_but_refused(idle):
    student, kept, teacher = shrunken()
    (key,) = idle
    with pytest.raises(UserError, match=rf"{key} = .* would do nothing"):
        fskd.plan(setup_of(pictures(20), student, kept, teacher, **idle))
    assert set(fskd.Settings(finetune_steps=1).idle(True)) == {"label_smoothing", "class_weights"}


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 6, batch_first=True)

    def forward(self, rows):
        return self.lstm(rows)[0]


class Scaled(nn.Linear):
    def forward(self, rows):
        return 2 * super().forward(rows)


@pytest.mark.parametrize(
    ("layer", "left"),
    [
        (nn.LSTM(6, 6, batch_first=True), {"reads"}),
        (Hidden(), {"reads.lstm"}),
        (nn.GRUCell(6, 6), {"reads"}),
        (nn.MultiheadAttention(6, 2, batch_first=True), set()),
        (nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), set()),
        (Scaled(6, 6), set()),
    ],
)
def test_layers_that_cannot_take_a_matrix_are_named_and_the_rest_is_aligned(layer, left):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.reads, self.fc = copy.deepcopy(layer), nn.Linear(6, 4)

        def forward(self, x):
            rows = x.mean(1)
            if isinstance(self.reads, nn.GRUCell):
                return self.fc(self.reads(rows[:, 0]))
            read = self.reads(rows, rows, rows) if isinstance(self.reads, nn.MultiheadAttention) else self.reads(rows)
            return self.fc(read[0] if isinstance(self.reads, nn.LSTM | nn.MultiheadAttention) else read)

    torch.manual_seed(0)
    teacher = Reader().eval()
    student = noisy(teacher)
    made = setup_of(pictures(40), student, {}, teacher)
    before = weights(student)
    rows = fskd.preview(made)
    found = fskd.plan(made)[0].solve(lambda done, total: None)
    named = {name.partition(".weight_")[0].partition("weight_")[0].rstrip(".") or "" for name in found["left"]}
    assert named == left
    assert [row["student"] for row in rows if row["kind"] == "none"] == list(found["left"])
    assert all("not linear in its weight" in reason for reason in found["left"].values())
    assert found["after"] < 0.5 * found["before"] or left
    assert found["after"] < found["before"]
    held = [name for name in before if left and name.startswith(tuple(left))]
    assert all(torch.equal(before[name], weights(student)[name]) for name in held)


class SamePad(nn.Conv2d):
    """Pads as TensorFlow does, by the size of what it gets."""

    def forward(self, x):
        pads = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, s, k in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        ]
        x = nn.functional.pad(x, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride)


class OutLast(nn.Module):
    """A linear layer whose weight is [in, out], as in GPT-2."""

    def __init__(self, a, b):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(a, b) / a**0.5), nn.Parameter(torch.randn(b))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Transposed(OutLast):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.t(), self.bias)


class Adapted(nn.Linear):
    """A low-rank part is added to the weight on each call."""

    def __init__(self, a, b):
        super().__init__(a, b)
        self.down, self.up = nn.Parameter(0.1 * torch.randn(2, a)), nn.Parameter(torch.randn(b, 2))

    def forward(self, x):
        return nn.functional.linear(x, self.weight + self.up @ self.down, self.bias)


class Beside(nn.Linear):
    """The low-rank part is beside it, in layers of its own; the weight itself is frozen."""

    def __init__(self, a, b):
        super().__init__(a, b)
        self.down, self.up = nn.Linear(a, 4, bias=False), nn.Linear(4, b, bias=False)
        self.weight.requires_grad_(False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class Patched(nn.Module):
    """A bias put together of parts, of which one is always zero (as BEiT's of queries, keys and values)."""

    def __init__(self, a, b):
        super().__init__()
        self.weight, self.q = nn.Parameter(torch.randn(b, a) / a**0.5), nn.Parameter(torch.randn(b // 2))
        self.register_buffer("k", torch.zeros(b - b // 2))

    def forward(self, x):
        return nn.functional.linear(x, self.weight, torch.cat([self.q, self.k]))


class Standardised(nn.Conv2d):
    """Each filter has mean 0 and variance 1, times a gain where there is one."""

    def __init__(self, *args, gain=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.arange(self.out_channels).view(-1, 1, 1, 1) / 2 - 1) if gain else None

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = 0.3 * weight / (weight.var((1, 2, 3), correction=0, keepdim=True) + 1e-6).sqrt()
        return self._conv_forward(x, weight if self.gain is None else weight * self.gain, self.bias)


class Rounded(nn.Conv2d):
    """As in training for integers: the weight is rounded on each call."""

    def forward(self, x):
        return self._conv_forward(x, (self.weight * 4).round() / 4, self.bias)


class Mixed(nn.Module):
    """Multiplies with a parameter among its layers, in three ways."""

    def __init__(self, a, b):
        super().__init__()
        self.first, self.matrix = nn.Linear(a, 8), nn.Parameter(torch.randn(8, b) / 3)
        self.second = nn.Parameter(torch.randn(b, b) / b**0.5)
        self.table = nn.Parameter(torch.randn(1, 1, b))

    def forward(self, x):
        x = (self.first(x).relu() @ self.matrix + self.table).relu()
        return torch.einsum("ntc,dc->ntd", x, self.second)


def normed(layer):
    return nn.utils.parametrizations.weight_norm(layer)


class Around(nn.Module):
    """A layer of maps or of tokens between two others."""

    def __init__(self, layer, maps):
        super().__init__()
        self.stem, self.maps, self.layer = nn.Conv2d(3, 6, 3, 2), maps, layer
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.layer(x).relu().flatten(2).mT if self.maps else self.layer(x.flatten(2).mT).relu()
        return self.fc(x.mean(1))


@pytest.mark.parametrize(
    ("make", "maps", "kind"),
    [
        (lambda: SamePad(6, 8, 3, 2), True, "kernel"),
        (lambda: nn.ConvTranspose2d(6, 8, 3, 2), True, "full"),
        (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), True, "kernel"),
        (lambda: normed(nn.Conv2d(6, 8, 3)), True, "kernel"),
        (lambda: Standardised(6, 8, 3, gain=True), True, "full"),
        (lambda: Standardised(6, 8, 3), True, None),
        (lambda: Rounded(6, 8, 3), True, None),
        (lambda: nn.utils.spectral_norm(nn.Conv2d(6, 8, 3)), True, None),
        (lambda: Scaled(6, 8), False, "kernel"),
        (lambda: OutLast(6, 8), False, "kernel"),
        (lambda: Transposed(6, 8), False, "kernel"),
        (lambda: Adapted(6, 8), False, "kernel"),
        (lambda: Beside(6, 8), False, "kernel"),
        (lambda: Patched(6, 8), False, "kernel"),
        (lambda: Mixed(6, 8), False, "kernel"),
    ],
    ids=lambda value: "" if callable(value) else None,
)
def test_any_layer_that_is_linear_in_its_weight(make, maps, kind):
    """By the law: what the solve tells of the layer is what the whole network does, and others stay as they are."""
    torch.manual_seed(0)
    teacher, x, kernels = Around(make(), maps).eval(), images(32), kind is not None
    student = noisy(teacher)
    before = weights(student)
    plan = plan_alignment(*walks(student, teacher), {}, kernels)
    kinds = {point.layer: point.kind for point in plan.points if point.layer.startswith("layer")}
    found = recover(student, teacher, {}, x, kernels=kernels)
    assert found["after"] == pytest.approx(distance(student, teacher, x), rel=1e-3)
    assert found["after"] < 0.7 * found["before"]
    if kind is None:
        assert not kinds
        assert set(plan.left) == {"layer"}
        assert all(torch.equal(value, weights(student)[name]) for name, value in before.items() if "layer" in name)
        return
    assert kinds
    assert set(kinds.values()) == {kind}
    assert not any(reason != alignment.FROZEN for reason in plan.left.values())
    for point in (point for point in plan.points if not point.shortcut):  # what was solved for is what it now gives
        after = next(block["after"] for block in found["blocks"] if block["name"] == point.layer)
        assert after <= 1.05 * _layer_error(student, teacher, x, point) + 1e-4
        assert _layer_error(student, teacher, x, point) <= 1.05 * after + 1e-4


def _layer_error(student, teacher, x, point):
    """‖S-T‖²/‖T‖² of what a layer gives in a forward of its own."""
    values = []
    for network in (student, teacher):
        walk, live = Walk(network.eval(), "student", x), {}
        walk.advance(live, 0, point.node, x.clone())
        walk.look(live, point.node, point.call)
        values.append(live[f"output of {point.layer}"])
    return float((values[0] - values[1]).square().sum() / values[1].square().sum())


def test_heads_that_were_taken_out_are_aligned_with_those_that_stayed():
    """Of attention whose projections are one parameter, as in torchvision's transformers."""

    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.attention = nn.Conv2d(3, 12, 4, 4), nn.MultiheadAttention(12, 3, batch_first=True)
            self.fc = nn.Linear(12, 5)

        def forward(self, x):
            x = self.stem(x).flatten(2).mT
            return self.fc((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))

    torch.manual_seed(0)
    teacher, x = Vision().eval(), images(32)
    made = shrink(teacher, x[:2], "l1", ratio=0.34)
    found = recover(made.network.eval(), teacher, made.kept, x)
    assert not found["left"]
    assert {"attention.in_proj_weight", "attention.out_proj"} < {block["name"] for block in found["blocks"]}
    assert len(made.network.attention.in_proj_weight) < 36
    assert found["after"] < 0.7 * found["before"]


class Deciding(nn.Module):
    """Which way it goes depends on the numbers, so that it runs as one piece."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.a(x).relu()
        return self.fc(self.b(x if float(x.max()) < 1e9 else -x).relu().mean((2, 3)))


def test_what_cannot_be_recorded_runs_as_a_whole():
    torch.manual_seed(0)
    teacher, x = Deciding().eval(), images(48)
    student, kept = noisy(teacher), {}
    walk = Walk(student, "student", x[:2])
    assert [node.op for node in walk.nodes] == ["placeholder", "call_module", "output"]
    points = plan_alignment(walk, walks(student, teacher)[1], kept).points
    assert [point.layer for point in points if point.inside] == ["a", "b"]  # the outputs are those of the last
    found = recover(student, teacher, kept, x, kernels=True)
    assert [block["name"] for block in found["blocks"]] == ["a", "b", "fc"]
    assert found["after"] < 0.1 * found["before"]
    assert found["after"] == pytest.approx(distance(student, teacher, x), rel=1e-3)


class ActNorm(nn.BatchNorm2d):
    """A norm with its nonlinearity, as timm has it."""

    def forward(self, x):
        x = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return x.relu()


def test_a_norm_with_a_nonlinearity_is_aligned_before_it():
    results = []
    for norms in (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()), lambda: nn.Sequential(ActNorm(6))):
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), norms(), nn.Conv2d(6, 4, 3), nn.Flatten()).eval()
        torch.nn.init.uniform_(teacher[1][0].running_var, 0.5, 2)
        student = noisy(teacher)
        points = plan_alignment(*walks(student, teacher), {}).points
        assert [point.norm for point in points] == ["1.0", None]
        recover(student, teacher, {}, images(40))
        results.append(weights(student))
    assert same(*results)


def noisy(network, share=0.3):
    """A copy with other weights, every matrix of them."""
    student = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in student.parameters():
            if weight.dim() > 1:
                weight += share * weight.std() * torch.randn(weight.shape, generator=generator)
    return student


class Shifting(Net):
    """Changes what it is given."""

    def forward(self, x):
        x -= 0.5
        return super().forward(x)


def test_networks_that_change_their_input_are_recovered_alike():
    found = []
    for kind, shift in ((Net, 0.0), (Shifting, 0.5)):
        student, kept, teacher = shrunken()
        student.__class__ = teacher.__class__ = kind
        x = images(24)[:, :1, :6, :6] + shift
        found.append(recover(student, teacher, kept, x))
    assert found[0]["before"] == pytest.approx(found[1]["before"], rel=1e-4)
    assert found[0]["after"] == pytest.approx(found[1]["after"], rel=1e-3)


class Masked(Net):
    """Gives a mask beside its logits, one of them not finite; ``rough`` makes the others depend on the batch."""

    rough = False

    def forward(self, x):
        logits = super().forward(x) / (len(x) if self.rough else 1)
        return {"logits": logits, "mask": logits > 0, "low": logits.masked_fill(logits == logits.amin(), -torch.inf)}


def test_outputs_that_are_not_finite_hide_nothing():
    x = torch.randn(4, 1, 6, 6)
    assert Walk(Masked(8), "student", x).nodes
    network = Masked(8)
    network.rough = True
    with pytest.raises(UserError, match="the number of its samples"):
        Walk(network, "student", x)


def test_a_network_of_one_layer_has_its_name():
    layer = nn.Linear(6, 4)
    assert [node.op for node in Walk(layer, "student", torch.randn(2, 6)).nodes] == [
        "placeholder",
        "call_module",
        "output",
    ]


def test_augmented_views_are_more_samples():
    results = []
    for augmented in (0, 2, 8, None):
        student, kept, teacher = shrunken()
        made = setup_of(pictures(16), student, kept, teacher, augment=Augment(shift=1), augmented=augmented)
        fskd.plan(made)[0].solve(lambda done, total: None)
        results.append(weights(student))
    assert apart(*results[:2]) > 0
    assert same(*results[2:])  # so few samples are looked at as often as that without being told


@pytest.mark.parametrize("room", [1, 4, 1000])
@pytest.mark.parametrize("count", [3, 50, 112, 334, 600, 1000])
def test_chunks_hold_every_view_of_every_sample_once_and_are_small(count, room, monkeypatch):
    """Clean samples first; all views of a sample in one fold; no more pixels at once than there is room for."""
    monkeypatch.setattr(fskd, "PIXELS", 36 * room)
    student, kept, teacher = shrunken()
    made = setup_of(pictures(count), student, kept, teacher, augment=Augment(shift=1))
    looked: list[tuple[int, list[int]]] = []
    whole = Views.batches

    def watched(self, size, view, positions):
        looked.append((view, positions.tolist()))
        return whole(self, size, view, positions)

    monkeypatch.setattr(Views, "batches", watched)
    inputs, folds = fskd._chunks(made)
    assert set(folds) == set(range(min(count, fskd.FOLDS)))
    fold_of: dict[int, int] = {}
    seen: Counter[tuple[int, int]] = Counter()
    clean = 0
    for chunk, fold in enumerate(folds):
        looked.clear()
        x, y = inputs(chunk)
        assert len(x) == len(y) == sum(len(positions) for _, positions in looked)
        assert len(x) <= room
        for view, positions in looked:
            assert (view == -1) == (clean < count)
            clean += len(positions) * (view == -1)
            assert all(fold_of.setdefault(position, fold) == fold for position in positions)
            seen.update((view, position) for position in positions)
    augmented = {3: 8, 50: 8, 112: 7, 334: 1, 600: 0, 1000: 0}[count]
    assert seen == Counter((view, position) for view in range(-1, augmented) for position in range(count))


def test_progress_and_preview():
    student, kept, teacher = shrunken()
    made, seen = setup_of(pictures(12), student, kept, teacher), []
    fskd.plan(made)[0].solve(lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [row["student"] for row in fskd.preview(made)] == ["conv1", "conv2", "fc"]
    assert [row["kind"] for row in fskd.preview(made)] == ["full", "full", "linear"]
    made = setup_of(pictures(12), student, kept, teacher, solve="kernel")
    assert [row["kind"] for row in fskd.preview(made)] == ["kernel"] * 3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_single_sample_is_enough_to_run(count):
    student, kept, teacher = shrunken(norm=True)
    found = fskd.plan(setup_of(pictures(count), student, kept, teacher))[0].solve(lambda done, total: None)
    assert found["after"] <= found["before"]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(36, 36)

    def forward(self, x):
        return self.fc(self.fc(x.flatten(1)))


class Branching(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Shaped(Net):
    """Asks for shapes as models do that torch.fx alone cannot trace."""

    def forward(self, x):
        n, c, h, w = x.shape
        if h != w or c < 1:
            x = x[..., : min(h, w)]
        return super().forward(x.reshape(n, c, h, -1) * float(w > 0))


def test_control_flow_on_shapes_is_followed():
    teacher = Shaped(8)
    student, kept, _ = shrunken()
    student.__class__ = Shaped
    teacher.load_state_dict(shrunken()[2].state_dict())
    found = fskd.plan(setup_of(pictures(20), student, kept, teacher))[0].solve(lambda done, total: None)
    assert found["after"] < found["before"]


class Assigning(Net):
    """Writes into a part of its input and of its features."""

    def forward(self, x):
        x = x.clone()
        x[:, :, 0] = 0
        features = self.bn1(self.conv1(x)).relu()
        features[:, :, :2] = features[:, :, :2] * 0.5
        return self.fc(self.bn2(self.conv2(features)).relu().mean((2, 3)))


def test_assignments_to_parts_are_followed():
    student, kept, teacher = shrunken()
    student.__class__ = teacher.__class__ = Assigning
    x = torch.randn(5, 1, 6, 6)
    walk = Walk(teacher, "teacher", x[:2])
    with torch.no_grad():
        assert torch.equal(walk.run(x), teacher.eval()(x))
    found = fskd.plan(setup_of(pictures(20), student, kept, teacher))[0].solve(lambda done, total: None)
    assert found["after"] < found["before"]


class Random(Net):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5))


class Counting(Net):
    def forward(self, x):
        return super().forward(x) / len(x)


class ForTwo(Net):
    def forward(self, x):
        return super().forward(x.reshape(2, 1, 6, 6))


def test_what_cannot_be_recovered_is_told_in_a_sentence():
    student, kept, teacher = shrunken()

    def told(words, *, student=student, kept=kept, teacher=teacher, samples=None, positions=None, solve=False):
        made = setup_of(samples or pictures(12), student, kept, teacher, positions)
        act = fskd.plan(made)[0].solve if solve else lambda report: fskd.preview(made)
        with pytest.raises(UserError, match=words) as caught:
            act(lambda done, total: None)
        assert str(caught.value).endswith(".")
        assert "expected" in str(caught.value)

    told("no samples", positions=torch.arange(0))
    told("no layer of that name", teacher=zoo.build("mlp", {"num_classes": 3, "channels": 1, "image_size": 6}))
    told("conv1.*4 channels of the teacher's 8", kept={})
    told("list of kept channels", kept={**kept, "conv1": [0, 1, 2, 99]})
    told("not known|list of kept", kept={**kept, "conv1": [0]})
    told("more than once", student=Twice(), teacher=Twice(), kept={})
    told("gives other outputs each time", student=Random(8), teacher=Random(8), kept={})
    told("the number of its samples", student=Counting(8), teacher=Counting(8), kept={})
    told("the number of its samples", student=ForTwo(8), teacher=ForTwo(8), kept={})
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    told(r"cannot run on samples of shape \[1, 6, 6\]", student=flat, teacher=copy.deepcopy(flat), kept={})
    strided = copy.deepcopy(teacher)
    strided.conv1.stride = (2, 2)
    told("maps of one size", teacher=strided)
    broken = copy.deepcopy(teacher)
    broken.conv2.weight.data[kept["conv2"][0]] = torch.nan
    told("teacher's layer 'conv2'.*not finite", teacher=broken, solve=True)
    broken = copy.deepcopy(student)
    broken.conv1.weight.data[0, 0, 0, 0] = torch.inf
    told("student's layer 'conv1'.*not finite", student=broken, solve=True)


class Held(nn.Sequential):
    """Its author keeps BatchNorm in eval mode."""

    def train(self, mode: bool = True) -> "Held":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def layered(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    network = kind(*parts, nn.Flatten(), nn.Linear(128, 5))
    with torch.no_grad():
        for norm in (network[1], network[4]):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    return network.eval()


def spoiled(network: nn.Module) -> nn.Module:
    student = copy.deepcopy(network)
    with torch.no_grad():
        for index in (0, 3, 7):
            student[index].weight.mul_(0.7).add_(0.02 * torch.randn(student[index].weight.shape))
    return student


def recovered(student: nn.Module, teacher: nn.Module) -> dict:
    torch.manual_seed(1)
    chunks = torch.randn(32, 3, 8, 8).split(8)
    return fskd.recover(student, teacher, {}, lambda n: (chunks[n], chunks[n]), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("frozen", "held"), [((0, 1), False), ((1,), False), ((3,), False), ((0, 4), False), ((), True)]
)
def test_what_is_frozen_stays(frozen, held):
    """Layers and norms whose parameters are frozen, statistics too, and norms that the module holds in eval mode."""
    teacher = layered(Held if held else nn.Sequential)
    student = spoiled(teacher)
    for index in frozen:
        student[index].requires_grad_(False)
    stay = [f"{index}." for index in ((1, 4) if held else frozen)]
    before = copy.deepcopy(student.state_dict())
    found = recovered(student, teacher)
    after = student.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert not any(name.startswith(tuple(stay)) for name in moved if stay)
    assert {f"{index}.weight" for index in {0, 3, 7} - set(frozen)} <= moved
    assert found["after"] < found["before"] / 2


def test_nothing_but_frozen_layers():
    teacher = layered()
    with pytest.raises(UserError, match="every layer of the student is frozen"):
        recovered(spoiled(teacher).requires_grad_(False), teacher)


def test_a_student_that_is_no_copy_is_refused_before_anything_is_solved():
    teacher, fresh = layered(), layered()
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(UserError, match=r"names but give other values .*kd") as caught:
        recovered(fresh, teacher)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), fresh.state_dict().values(), strict=True))
    shorter = nn.Sequential(OrderedDict(kv for kv in copy.deepcopy(teacher).named_children() if kv[0] not in "345"))
    shorter.add_module("7", nn.Linear(8 * 36, 5))
    with pytest.raises(UserError, match="the teacher's layer '3' has no counterpart"):
        recovered(shorter, teacher)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", ["vgg8_bn", "resnet8"])
def test_some_rows_of_each_sample_do_nearly_as_well_as_all(name, kernels, monkeypatch):
    teacher, errors, counts = network(name), [], Counter()
    add = fskd.Moments.add

    def counting(moments, fold, x, d):
        counts[alignment.ROWS] += len(x)
        add(moments, fold, x, d)

    monkeypatch.setattr(fskd.Moments, "add", counting)
    for least in (10**6, 200):
        student, kept = pruned(teacher)
        monkeypatch.setattr(alignment, "ROWS", least)
        before = recover(student, teacher, kept, images(64), kernels=kernels)["before"]
        errors.append(distance(student, teacher, images(64, seed=9)))
    assert counts[200] < 0.7 * counts[10**6]
    assert errors[1] < errors[0] + 0.05 * before


def test_the_rows_that_are_looked_at_are_as_many_of_each_sample():
    student, kept, teacher = shrunken(norm=False)
    point = plan_alignment(*walks(student, teacher, torch.randn(2, 1, 6, 6)), kept).points[0]
    live = {point.value: torch.arange(6 * 200).view(6, 1, 20, 10).expand(6, 4, 20, 10).float()}
    rows = point.chosen(live, 6, 60 / alignment.ROWS, seed=3)
    assert torch.equal(rows // 200, torch.arange(6).repeat_interleave(10))
    assert len(rows.unique()) == 60
    assert torch.equal(rows, point.chosen(live, 6, 60 / alignment.ROWS, seed=3))
    assert point.chosen(live, 6, 1.0, seed=3) is None


@pytest.mark.parametrize("kernels", [False, True])
def test_a_layer_changes_only_where_samples_that_it_was_not_solved_on_gain(kernels):
    teacher = network("mobile")
    student, kept = pruned(teacher)
    before = weights(student)
    found = recover(student, teacher, kept, images(8), kernels=kernels)
    assert found["held_out_after"] < found["held_out_before"]
    left = [block["name"] for block in found["blocks"] if block["after"] == block["before"]]
    for block in found["blocks"]:
        changed = block["name"] not in left
        assert (block["held_out_after"] < block["held_out_before"]) == changed
    for name in left:
        assert torch.equal(student.get_submodule(name).weight, before[name + ".weight"])


def test_held_out_errors_are_those_of_a_loop_over_the_folds():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
    student, x = copy.deepcopy(teacher), torch.randn(80, 3, 2, 2).double()
    with torch.no_grad():
        student[1].weight += 0.3 * torch.randn_like(student[1].weight)
        x[:, 2] += 0.1 * x[:, 1]
    first, size = copy.deepcopy(student), float(teacher(x).detach().square().sum())
    (block,) = recover(student, teacher, {}, x, kernels=True)["blocks"]
    errors = Counter()
    for fold in range(4):
        rest = torch.cat([x[other::4] for other in range(4) if other != fold])
        alone = copy.deepcopy(first)
        fskd.recover(alone, teacher, {}, lambda _, rest=rest: (rest, rest), [0], kernels=True, ridge=block["ridge"])
        for at, net in (("before", first), ("after", alone)):
            errors[at] += float((net(x[fold::4]) - teacher(x[fold::4])).detach().square().sum())
    assert block["held_out_before"] == pytest.approx(errors["before"] / size)
    assert block["held_out_after"] == pytest.approx(errors["after"] / size, rel=1e-3, abs=1e-15)
