"""Two processes agree with one: the same weights, metrics and counts, and only the first writes."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import forks
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tools import CLASSES, apart, events, loop, model, perform, pictures, plan, same, surroundings, weights

import protege
from protege.data import CLEAN, Augment, load_data
from protege.errors import UserError
from protege.models import load_model
from protege.models.precision import autocast_for, resolve_precision
from protege.run import run as running
from protege.signals import Source, TeacherCache, rows, signals
from protege.tasks import TASKS
from protege.training import processes
from protege.training.evaluate import evaluate
from protege.training.processes import make_accelerator

SETTINGS = {
    **{"student": "zoo:mlp?hidden=12", "data": "digits", "samples": 150, "views": 2, "epochs": 4, "batch_size": 32},
    **{"lr": 0.05, "precision": "fp32", "clip": 1.0, "ema": 0.8, "accumulate": 3, "validation": 0.1, "select": "best"},
    **{"checkpoint_seconds": 0, "eval_every": 1},
}

PROBE = '''
"""What each of the processes finds, written by each to a file of its own."""
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tools import CLASSES, Curtain, model, perform, pictures, plan, loop, same, weights

from protege.errors import UserError
from protege.data.labels import UNLABELLED
from protege.tasks import TASKS
from protege.models import zoo
from protege.training import Solve
from protege.training.journal import Journal
from protege.training.evaluate import evaluate

out, accelerator = Path(sys.argv[1]), Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
assert world == 2
found = {}
for count in (1, 2, 3, 40, 1001):
    samples = pictures(count, seed=count)
    found[count] = evaluate(model(seed=1), samples, TASKS["classification"].metrics(CLASSES), rank=rank, world=world)
samples = pictures(7)
samples._device_labels = torch.tensor([UNLABELLED, 1] * 3 + [UNLABELLED])  # the first process has no labels at all
found["unlabelled"] = evaluate(model(seed=1), samples, TASKS["classification"].metrics(CLASSES), rank=rank, world=world)

student = model(norm=True)  # BatchNorm's statistics are those of the first process
made = loop(student, out / "norm", views=1, epochs=2, batch_size=16, ema=0.5)
state = perform(made, plan("kd", student, model(seed=3)))
found["counts"] = [state.forwarded, state.served, state.seen]
found["metrics"] = made.evaluate(student, pictures(50, seed=9))[0]
torch.save(weights(student), out / f"weights-{rank}.pt")


def dropping(name, resume=False):
    student = model(norm=True, drop=0.5)
    made = loop(student, out / name, views=1, epochs=4, batch_size=16, ema=0.5, checkpoint_seconds=0)
    perform(made, plan("kd", student, model(seed=3)), resume)
    return weights(student)


def save(self, running):
    original(self, running)
    if self.state.epoch == 2:
        raise Curtain


undisturbed, original, Journal.save = dropping("a"), Journal.save, save
try:
    dropping("b")
    found["stopped"] = False
except Curtain:
    found["stopped"] = True
accelerator.wait_for_everyone()  # the first process has written
Journal.save = original
found["resumed"] = same(dropping("b", resume=True), undisturbed)


def staged(method):
    torch.manual_seed(0)
    networks = [model(zoo.build("cnn_small", {"num_classes": CLASSES, "channels": 1, "width": w})) for w in (4, 6)]
    held = (pictures(), torch.arange(32, 48))
    rest = {"positions": torch.arange(32), "held": held, "views": 2, "epochs": 3, "batch_size": 8, "select": "best"}
    made = loop(networks[0], out / method, patience=1, eval_every=1, lr=0.05, **rest)
    state = perform(made, plan(method, *networks))
    return weights(networks[0]), [(done["epochs"], done["best"]) for done in state.done]


def solve(report):
    with torch.no_grad():
        student.network.fc.bias += rank  # what each process finds differs
    return {"found": rank}


def growing():
    student = model(seed=rank, norm=True)  # processes that begin apart
    made = loop(student, out / "gpd", views=1, epochs=2, batch_size=16, ema=0.5, clip=1.0)
    perform(made, plan("gpd", student, model(seed=3)))
    return weights(student)


torch.save(growing(), out / f"gpd-{rank}.pt")
for method in ("skd", "fsp"):
    learned, found[method] = staged(method)
    torch.save(learned, out / f"{method}-{rank}.pt")
student.network.spare = torch.nn.Linear(1, 1)  # no loss reaches it
try:
    perform(loop(student, out / "spare", epochs=1), plan("none", student, None))
except UserError as error:
    found["spare"] = str(error)
del student.network.spare
made = loop(student, out / "solved")
state = perform(made, [Solve("shift", solve)])
found["solved"] = state.done[0]["best"]
torch.save(weights(student), out / f"solved-{rank}.pt")
(out / f"found-{rank}.json").write_text(json.dumps(found))
'''


TURNS = '''
"""Four processes, two on each of two nodes: who goes when, and what the first tells all."""
import json
import os
import sys
import time
from pathlib import Path

import torch

from protege.errors import UserError
from protege.signals.exchange import by_first
from protege.training.processes import in_turn, make_accelerator

out, accelerator = Path(sys.argv[1]), make_accelerator()
rank, found = accelerator.process_index, {}


def note(event):
    with open(out / "order", "a") as file:
        file.write(f"{rank} {event}\\n")


def fail():
    assert rank == 0
    raise UserError("three of them are too few.")


def stumble():
    raise KeyError("a word")


for failing in ((), (0,), (1, 2)):
    note("waits")
    accelerator.wait_for_everyone()
    try:
        with in_turn(accelerator):
            note("begins")
            time.sleep(0.02)
            note("ends")
            if rank in failing:
                raise UserError("no.")
    except UserError:
        note("fails")
    accelerator.wait_for_everyone()
found["told"] = by_first(lambda: rank)
for work in (fail, stumble):
    try:
        by_first(work)
    except Exception as error:
        found[work.__name__] = [type(error).__name__, str(error)]
backend = torch.distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
found["patience"] = backend.options._timeout.total_seconds()
(out / f"found-{rank}.json").write_text(json.dumps(found))
'''


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(arguments: list[str], **environment: object) -> None:
    """torchrun with two processes, or all that they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port())]
    environment["CUDA_VISIBLE_DEVICES"] = ""
    process = subprocess.Popen([*command, *arguments], env=surroundings(**environment), stderr=subprocess.PIPE)
    try:
        _, said = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        _, said = process.communicate()
    assert process.returncode == 0, said.decode()[-4000:]


def two_of(work: Callable[[], object], homes: Sequence[object] = (), nodes: int = 1) -> list[forks.Fork]:
    """Two forks of this process on each node, ended, each told its rank as torchrun tells it, and where its caches
    lie."""

    def told() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        work()

    given = {"WORLD_SIZE": 2 * nodes, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    given["CUDA_VISIBLE_DEVICES"] = ""
    caches = [{"PROTEGE_CACHE": home} for home in homes] or 2 * nodes * [{}]
    ranks = [forks.Fork(told, RANK=rank, LOCAL_RANK=rank % 2, **given, **caches[rank]) for rank in range(2 * nodes)]
    for process in ranks:
        process.wait()
    return ranks


def fork(program: Path, out: Path, nodes: int = 1) -> None:
    """A program in two processes on each node."""

    def work() -> None:
        sys.argv = [str(program), str(out)]
        runpy.run_path(str(program), run_name="__main__")

    for process in two_of(work, nodes=nodes):
        assert process.returncode == 0, process.stderr[-4000:]


def test_distilling(digits_teacher, tmp_path, monkeypatch):
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
    options += ["--method", "kd", "--teacher", str(digits_teacher), "--out", str(tmp_path / "two")]
    launch(["-m", "protege", "distill", *options], PROTEGE_CACHE=tmp_path / "cache")
    monkeypatch.setattr(running, "write_run_report", lambda out: None)
    protege.distill(str(digits_teacher), method="kd", out=tmp_path / "one", **SETTINGS)

    one, two = (load_file(tmp_path / name / "student" / "model.safetensors") for name in ("one", "two"))
    assert apart(one, two) < 1e-5
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert (one["environment"]["processes"], two["environment"]["processes"]) == (1, 2)
    for role in ("teacher", "student"):
        assert two[role]["metrics"] == pytest.approx(one[role]["metrics"], abs=1e-4)
        assert two[role]["confusion"] == one[role]["confusion"]
    assert two["student"]["before"] == pytest.approx(one["student"]["before"], abs=1e-4)
    assert [(p["epochs"], p["best"]["epoch"]) for p in two["phases"]] == [
        (p["epochs"], p["best"]["epoch"]) for p in one["phases"]
    ]
    for key in ("student_samples_seen", "teacher_samples_forwarded"):
        assert two[key] == one[key]
    assert two["cache"]["hits"] == one["cache"]["hits"]
    lines = [events(tmp_path / name) for name in ("one", "two")]
    assert [line["event"] for line in lines[0]] == [line["event"] for line in lines[1]]  # nothing is written twice
    for mine, theirs in zip(*lines, strict=True):
        if mine["event"] == "epoch":
            assert theirs["train"] == pytest.approx(mine["train"], abs=1e-4)
            assert theirs["eval"] == pytest.approx(mine["eval"], abs=1e-3)
    assert len(list((tmp_path / "two" / "checkpoint").glob("*.pt"))) == 2
    assert not list((tmp_path / "two").rglob("*.tmp"))


def test_evaluating_batch_norm_and_resuming(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    fork(tmp_path / "probe.py", tmp_path)
    mine, theirs = (json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert mine == theirs
    for count in (1, 2, 3, 40, 1001):
        metrics = TASKS["classification"].metrics(CLASSES)
        expected, details = evaluate(model(seed=1), pictures(count, seed=count), metrics)
        assert mine[str(count)][0] == pytest.approx(expected, rel=1e-5)
        assert mine[str(count)][1] == details
    assert mine["unlabelled"][0].keys() == {"accuracy", "balanced_accuracy", "macro_f1", "nll", "ece"}
    states = [torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1)]
    assert apart(*states) == 0
    assert mine["counts"] == [48, 96, 96]
    assert mine["stopped"]
    assert mine["resumed"]
    network = model(norm=True)
    network.load_state_dict(states[0])
    expected = evaluate(network, pictures(50, seed=9), TASKS["classification"].metrics(CLASSES))[0]
    assert mine["metrics"] == pytest.approx(expected, rel=1e-5)
    for name in ("gpd", "skd", "fsp", "solved"):  # stages, a phase that leaves the head alone, a solve
        assert apart(*(torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))) == 0
    assert mine["solved"] == {"found": 0}
    assert "does not depend on the parameter 'network.spare.weight' (one of 2)" in mine["spare"]


def taught(out: Path, homes: Sequence[Path], disturb: Callable[[int], object] = lambda rank: None) -> list[dict]:
    """What two processes come to whose caches lie there: weights, and what was forwarded, served and seen."""

    def work() -> None:
        rank, forwarded, original = Accelerator(cpu=True).process_index, [], Source.compute
        Source.compute = lambda self, inputs: forwarded.append(len(inputs)) or original(self, inputs)
        signals.BLOCK = 10
        disturb(rank)
        student = model(seed=1)
        made = loop(student, out / "run", views=2, epochs=4, batch_size=16)
        state = perform(made, plan("kd", student, model(seed=3)))
        counts = [state.forwarded, state.served, state.remembered]
        torch.save({"weights": weights(student), "counts": counts, "passes": forwarded}, out / f"{rank}.pt")

    out.mkdir()
    for process in two_of(work, homes):
        assert process.returncode == 0, process.stderr[-4000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("earlier", [(), range(15, 31)], ids=["new", "in part known"])
def test_without_a_shared_disk_each_sample_is_forwarded_once(earlier, tmp_path, monkeypatch):
    """What one disk has another is given: two nodes of one process each forward, serve and learn as two on one."""
    monkeypatch.setattr(signals, "BLOCK", 10)
    if earlier:
        for home in ("one", "b"):  # the second node has learned from some of the samples before
            monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / home))
            student = model(seed=5)
            made = loop(student, tmp_path / "first" / home, views=2, epochs=2, positions=torch.tensor(earlier))
            perform(made, plan("kd", student, model(seed=3)))
    on_one = taught(tmp_path / "shared", [tmp_path / "one"] * 2)
    on_two = taught(tmp_path / "apart", [tmp_path / "a", tmp_path / "b"])
    new = 2 * (48 - len(earlier))
    for found in (*on_one, *on_two):
        assert found["counts"] == [new, 4 * 48, 2 * len(earlier)]
        assert same(found["weights"], on_one[0]["weights"])
    for found in (on_one, on_two):
        assert sum(sum(each["passes"][1:]) for each in found) == new  # but for the few by which a teacher is known
        assert all(len(each["passes"]) > 2 for each in found)
    (mine,), (theirs,) = ([*(tmp_path / home).glob("*/cache.json")] for home in ("a", "b"))
    assert mine.parent.name == theirs.parent.name
    for file in ("logits.float16", "known.int32"):
        for view in range(2):
            stored, given = ((path.parent / f"view-000{view}" / file).read_bytes() for path in (mine, theirs))
            assert stored == given
    assert not [*tmp_path.rglob("disk-*"), *tmp_path.rglob("plan-*")]


def test_a_teacher_is_known_by_what_the_first_process_finds(tmp_path):
    """A second one, on another device, may find something else."""

    def disturb(rank: int) -> None:
        signals.behaviour = lambda fields: f"as found by {rank}"

    found = taught(tmp_path / "run", [tmp_path / "a", tmp_path / "b"], disturb)
    assert [each["counts"] for each in found] == [[96, 192, 0]] * 2
    assert len({path.parent.name for path in tmp_path.glob("[ab]/*/cache.json")}) == 1


def test_a_loop_of_ones_own_without_a_shared_disk(tmp_path):
    def work() -> None:
        rank, forwarded, original = Accelerator(cpu=True).process_index, [], Source.compute
        Source.compute = lambda self, inputs: forwarded.append(len(inputs)) or original(self, inputs)
        signals.BLOCK = 10
        data = [(image.numpy(), number % CLASSES) for number, image in enumerate(pictures().pixels[..., 0])]
        cache = TeacherCache(model(seed=3), data, views=1, augment="none", precision="fp32")
        batches = [batch for _ in range(2) for batch in cache.loader(16)]
        assert cache.fill() == 0
        said = {"passes": forwarded, "index": torch.cat([batch.index for batch in batches])}
        torch.save({**said, "logits": torch.cat([batch.teacher.logits for batch in batches])}, tmp_path / f"{rank}.pt")

    for process in two_of(work, [tmp_path / "a", tmp_path / "b"]):
        assert process.returncode == 0, process.stderr[-4000:]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert sum(sum(each["passes"][1:]) for each in found) == 48
    index, logits = (torch.cat([each[key] for each in found]) for key in ("index", "logits"))
    assert index.bincount().tolist() == [2] * 48
    expected = model(seed=3)(pictures().fetch(index, CLEAN, Augment()).inputs).detach()
    torch.testing.assert_close(logits, expected, rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_ends_all_processes(rank, tmp_path):
    """Before the rows are given, or while they are."""

    def work() -> None:
        if Accelerator(cpu=True).process_index == rank:
            rows.Rows.put = full
        student = model(seed=1)
        try:
            perform(loop(student, tmp_path / "run", views=2, epochs=4), plan("kd", student, model(seed=3)))
        except UserError as error:
            sys.exit(str(error))

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    for process in two_of(work, [tmp_path / "a", tmp_path / "b"]):
        assert process.returncode == 1
        assert process.stderr.count("is full; expected room for") == 1


def test_the_first_of_all_then_of_each_node_and_then_the_rest(tmp_path):
    (tmp_path / "turns.py").write_text(TURNS)
    fork(tmp_path / "turns.py", tmp_path, nodes=2)
    lines = (tmp_path / "order").read_text().splitlines()
    assert len(lines) == 3 * 12 + 3
    for begin in (i for i, line in enumerate(lines) if line == "0 begins"):
        ended = {line for line in lines[:begin] if line.endswith("ends")}
        after = lines[begin : begin + 10]
        assert after.index("0 ends") < after.index("2 begins") < after.index("2 ends")
        assert after.index("2 ends") < min(after.index("1 begins"), after.index("3 begins"))
        assert len(ended) in (0, 4)
    everyone = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(4)]
    sentence = "three of them are too few."
    assert [found["fail"][1] for found in everyone] == [sentence] + 3 * [f"process 0 failed: {sentence}"]
    for found in everyone:
        assert found["told"] == 0
        assert found["fail"][0] == "UserError"
        assert found["patience"] >= 3600
    assert [found["stumble"] for found in everyone] == [["KeyError", "'a word'"]] + 3 * [
        ["RuntimeError", "process 0 failed: 'a word'"]
    ]


def test_the_saved_student_is_the_one_that_was_measured(digits_teacher):
    """What these tests stand on: a saved folder loads to the same metrics."""
    data = load_data("digits")
    network = load_model(str(digits_teacher))
    device = torch.device("cpu")
    autocast = autocast_for(resolve_precision("auto", device), device)  # as the run measured
    metrics = evaluate(network, data.test, TASKS["classification"].metrics(10), autocast=autocast)[0]
    told = json.loads((digits_teacher.parent / "result.json").read_text())["student"]["metrics"]
    assert metrics == pytest.approx(told, abs=1e-3)
    assert metrics["accuracy"] > 0.85


def test_more_processes_than_gpus_are_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"^process 2 of this machine has no GPU, of which there are 2; .*: start 2 "):
        make_accelerator()
    monkeypatch.setattr(processes, "Accelerator", lambda **options: "made")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert make_accelerator() == "made"


def refused(homes: Sequence[Path], work: Callable[[int], object]) -> list[str]:
    """The sentences with which two processes end that would not perform the same run."""

    def told() -> None:
        rank = int(os.environ["RANK"])
        try:
            work(rank)
        except UserError as error:
            (homes[rank] / "told").write_text(str(error))

    two_of(told, homes)
    return [(home / "told").read_text() for home in homes]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("lr", r"^process 1 has lr = 0\.5 where the first has 0\.1; expected the same in all: "),
        ("data", r"^process 1 has another data set than the first; expected the same in all: "),
        ("missing", r"nowhere does not exist"),
    ],
)
def test_processes_that_would_not_perform_the_same_run_end_in_one_sentence(what, sentence, tmp_path):
    homes = [tmp_path / str(rank) for rank in range(2)]
    for home in homes:
        home.mkdir()

    def work(rank: int) -> None:
        pixels = torch.arange(40 * 64, dtype=torch.uint8).view(40, 8, 8) + (rank if what == "data" else 0)
        data = [(image, number % 2) for number, image in enumerate(pixels.numpy())]
        how = {"lr": (0.1, 0.5)[rank]} if what == "lr" else {}
        given = f"images:{tmp_path / 'nowhere'}" if what == "missing" and rank else data
        protege.train("zoo:mlp", given, out=homes[rank] / "out", **{"epochs": 1, "precision": "fp32", **how})

    for rank, told in enumerate(refused(homes, work)):
        assert re.search(sentence, told) or (what == "missing" and rank == 0 and told.startswith("process 1 failed: "))
        assert not (homes[rank] / "out").exists()
