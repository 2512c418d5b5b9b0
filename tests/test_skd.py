"""Stagewise KD: what learns when, from what, and the same result from caches as from forward passes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tools import CLASSES, Curtain, apart, loop, model, perform, pictures, plan, planned, same, setup_of, weights
from torch import nn

import protege
from protege.commands import app
from protege.data import InMemory
from protege.methods import METHODS, stages
from protege.methods.skd import Settings
from protege.models import zoo
from protege.run import finished, prepare
from protege.run import run as running
from protege.surgery import first_outputs
from protege.tasks import TASKS
from protege.training.journal import Journal
from protege.training.loop import Loop
from protege.training.schedule import default_lr

TASK = TASKS["classification"]


def network(name: str, seed: int = 0, **arguments):
    torch.manual_seed(seed)
    made = model(zoo.build(name, {"num_classes": CLASSES, "channels": 1, **arguments}), seed=seed)
    with torch.no_grad():  # statistics that matter
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return made


SMALL = {"image_size": 16, "width": 24, "depth": 3, "heads": 2}
PAIRS = {
    "residual": (("resnet8", {}), ("resnet20", {})),
    "narrower": (("cnn_small", {"width": 4}), ("cnn_small", {"width": 6})),
    "transformer": (("vit_tiny", SMALL), ("vit_tiny", SMALL)),
}


def networks(kind: str):
    (ours, own), (theirs, other) = PAIRS[kind]
    return network(ours, 1, **own), network(theirs, 2, **other)


def images(kind: str, **more) -> InMemory:
    return pictures(24, side=16, **more)


def taught(kind: str, out: Path, *, method: str = "skd", samples: InMemory | None = None, watch=None, **settings):
    """Run a method on small pictures; ``watch`` sees the student after each phase."""
    student, teacher = networks(kind)
    samples = images(kind) if samples is None else samples
    chosen = METHODS[method]
    own = {k: settings.pop(k) for k in list(settings) if k in chosen.settings.model_fields}
    phases = list(chosen.plan(setup_of(student, teacher, TASK, chosen.settings(**own), samples)))
    held = (samples, torch.arange(18, 24))
    common = {"epochs": 2, "batch_size": 6, "lr": 0.01, "optimizer": "adamw", "views": 2, "select": "best"}
    made = loop(student, out, samples=samples, positions=torch.arange(18), held=held, **{**common, **settings})
    if watch:
        original = made._fit

        def fit(phase, saved):
            outcome = original(phase, saved)
            watch(phase, student)
            return outcome

        made._fit = fit  # type: ignore[method-assign]
    return student, phases, perform(made, phases)


@pytest.mark.parametrize("kind", PAIRS)
def test_earlier_stages_stay_bit_for_bit(kind, tmp_path):
    seen: list[tuple] = []
    student, phases, _ = taught(kind, tmp_path, watch=lambda phase, s: seen.append((phase, weights(s))))
    assert [p.name for p, _ in seen] == [p.name for p in phases]
    assert seen[-1][0].name == "head"
    before = weights(networks(kind)[0])
    for phase, after in seen:
        own = {n for n, _ in phase.trainee.named_parameters()} | {n for n, _ in phase.trainee.named_buffers()}
        own = {n.split("stages.0.")[-1] for n in own if "adapter" not in n}
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed
        assert changed <= own
        assert {n for n, p in student.named_parameters()} & own <= changed  # every parameter of the stage learned
        before = after


def test_what_a_phase_needs(tmp_path):
    student, teacher = networks("residual")
    phases = METHODS["skd"].plan(setup_of(student, teacher, TASK, Settings(), images("residual")))
    assert [p.name for p in phases] == ["layer1", "layer2", "layer3", "head"]
    assert [p.select_by for p in phases] == ["loss"] * 3 + ["accuracy"]
    assert [sorted(p.reads) for p in phases] == [["pixels"], [], [], ["labels"]]
    assert [[s.name for s in p.sources] for p in phases] == [["teacher"], ["prefix", "teacher"]] * 1 + [
        ["prefix", "teacher"],
        ["prefix"],
    ]
    total = sum(p.numel() for phase in phases for p in phase.trainee.parameters())
    assert total == sum(p.numel() for p in student.parameters())  # each learns once; equal widths need no adapter


class Merging(nn.Module):
    """Patches that are merged, as in Swin, with the channels last: as maps [N, H, W, C] or as tokens [N, H·W, C]."""

    def __init__(self, width: int = 8, tokens: bool = False) -> None:
        super().__init__()
        self.tokens, self.patches = tokens, nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(n * width, n * width), nn.GELU()) for n in (1, 2, 4))
        self.merges = nn.ModuleList(nn.Linear(4 * n * width, 2 * n * width) for n in (1, 2))
        self.norm, self.head = nn.LayerNorm(4 * width), nn.Linear(4 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        for number, block in enumerate(self.blocks):
            side = x.shape[1]
            if number:
                x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
                x = self.merges[number - 1](x.flatten(1, 2) if self.tokens else x)
                side = side // 2
            elif self.tokens:
                x = x.flatten(1, 2)
            x = block(x)
            x = x.unflatten(1, (side, side)) if self.tokens and number < 2 else x
        x = self.norm(x)
        return self.head(x.mean(1) if self.tokens else x.mean((1, 2)))


@pytest.mark.parametrize(("ours", "theirs"), [(0, 1), (1, 0), (0, None), (None, 1)])
def test_features_are_compared_place_by_place_whatever_their_layout(ours, theirs, tmp_path):
    def made(tokens, seed):
        if tokens is None:
            return network("cnn_small", seed, width=4)
        torch.manual_seed(seed)
        return model(Merging(8, bool(tokens)), seed=seed)

    samples, (student, teacher) = images("residual"), (made(ours, 1), made(theirs, 2))
    setup = setup_of(student, teacher, TASK, Settings(), samples)
    phases = METHODS["skd"].plan(setup)
    pairs = stages.paired(setup)
    assert [p.student.level for p in pairs] == ([1, 2, 3] if None not in (ours, theirs) else [1, 2])
    for pair, module in zip(pairs, phases, strict=False):
        raw = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
        with first_outputs({"": student.network.get_submodule(pair.student.name)}) as feature:
            student.eval()(raw)
        want = feature[""] if pair.student.shape[0] == feature[""].shape[1] else None
        got = pair.student.laid_out(feature[""])
        height, width = pair.student.grid
        assert got.shape == (3, pair.student.channels, height, width)
        for row, column in ((0, 0), (1, 0), (height - 1, width - 1)):
            if ours is None:
                expected = want[:, :, row, column]
            else:
                expected = feature[""][:, row * width + column] if ours else feature[""][:, row, column]
            assert torch.equal(got[:, :, row, column], expected)
        assert module.trainee.adapter(feature[""]).shape == (3, pair.teacher.channels, height, width)
    options = {"samples": samples, "positions": torch.arange(18), "held": (samples, torch.arange(18, 24))}
    done = perform(loop(student, tmp_path, epochs=1, batch_size=6, lr=0.01, optimizer="adamw", **options), phases)
    assert done


def test_a_stage_that_holds_nearly_all_is_told(caplog):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, 2, 1),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.Flatten(),
        nn.Linear(64, 600),
        nn.Linear(600, CLASSES),
    ]
    lopsided = model(nn.Sequential(*layers))
    METHODS["skd"].plan(setup_of(lopsided, lopsided, TASK, Settings(stages="0,1"), images("residual")))
    (record,) = [r for r in caplog.records if "hardly divide" in r.getMessage()]
    assert "stage 'head' holds 99.5 % of the student's parameters" in record.getMessage()
    caplog.clear()
    student, teacher = networks("residual")
    METHODS["skd"].plan(setup_of(student, teacher, TASK, Settings(), images("residual")))
    assert not [r for r in caplog.records if "hardly divide" in r.getMessage()]


class Named(nn.Module):
    """A network of the user's own, one of whose stages has the name of the last phase."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.head(self.body(x)).mean((2, 3)))


def test_a_stage_called_like_a_phase():
    chosen = Settings(stages="body,head")
    phases = METHODS["skd"].plan(setup_of(model(Named()), model(Named(), seed=2), TASK, chosen, images("residual")))
    assert [phase.name for phase in phases] == ["body", "stage head", "head"]


def test_adapters_are_no_part_of_the_student(tmp_path):
    student, phases, _ = taught("narrower", tmp_path)
    names = set(networks("narrower")[0].state_dict())
    assert set(student.state_dict()) == names
    assert any("adapter.weight" in name for name, _ in phases[0].trainee.named_parameters())


@pytest.mark.parametrize("kind", ["residual", "transformer"])
def test_cached_as_online(kind, tmp_path):
    """Stage input and target from half-precision caches, or recomputed up to the cut: the same to rounding."""
    cached, _, state = taught(kind, tmp_path / "a", optimizer="sgd", select="last")
    online, _, other = taught(kind, tmp_path / "b", optimizer="sgd", select="last", budget=0)
    assert state.served > 0
    assert other.served == 0
    moved = apart(weights(online), weights(networks(kind)[0]))
    assert apart(weights(cached), weights(online)) < 0.02 * moved
    assert not list((tmp_path / "a" / "signals").rglob("*.float16"))  # of no use to another run


def test_pixels_are_left_alone_where_caches_have_all(tmp_path, monkeypatch):
    fetched: list[str] = []
    original = InMemory.fetch
    running: list[str] = []
    monkeypatch.setattr(
        InMemory, "fetch", lambda self, *a: (fetched.append(running[-1] if running else ""), original(self, *a))[1]
    )
    epoch = Loop._train_epoch

    def train_epoch(self, fit, step):
        running.append(f"{fit.phase.name} {self.state.epoch}")
        epoch(self, fit, step)

    monkeypatch.setattr(Loop, "_train_epoch", train_epoch)
    taught("residual", tmp_path, epochs=4, eval_every=4)
    assert "layer1 3" in fetched  # the first stage learns from images
    assert "layer2 0" in fetched  # to fill the caches
    assert "layer2 2" not in fetched
    assert "head 2" not in fetched


def test_stages_do_not_read_labels(tmp_path):
    garbage = images("residual")
    garbage = InMemory(garbage.pixels, garbage.labels.flip(0))
    seen: dict[str, list] = {"a": [], "b": []}
    taught("residual", tmp_path / "a", watch=lambda _, s: seen["a"].append(weights(s)))
    taught("residual", tmp_path / "b", samples=garbage, watch=lambda _, s: seen["b"].append(weights(s)))
    for a, b in list(zip(seen["a"], seen["b"], strict=True))[:-1]:
        assert same(a, b)
    assert not same(seen["a"][-1], seen["b"][-1])


def test_a_stage_learns_its_features(tmp_path):
    """The loss of each stage falls to a part of what it was, and is what the networks really differ by."""
    student, *_ = taught("residual", tmp_path, epochs=40, views=1, select="last", augment=protege_clean())
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("layer1", "layer2", "layer3"):
        losses = [e["train"]["loss"] for e in log if e.get("event") == "epoch" and e["phase"] == name]
        assert losses[-1] < 0.7 * losses[0]
    teacher = networks("residual")[1].eval()
    samples = images("residual")
    heard = []
    for each in (student.eval(), teacher):
        handle = each.network.layer3.register_forward_hook(lambda m, i, o: heard.append(o.detach()))
        each(samples.fetch(torch.arange(18, 24), -1, protege_clean()).inputs)
        handle.remove()
    told = [e["eval"]["loss"] for e in log if e.get("event") == "epoch" and e["phase"] == "layer3" and e.get("eval")]
    assert told[-1] == pytest.approx(float((heard[0] - heard[1]).square().mean()), rel=1e-2)


def protege_clean():
    from protege.data import Augment

    return Augment()


def test_inherited_stem_and_head(tmp_path):
    student, teacher = networks("residual")
    found = METHODS["skd"].plan(setup_of(student, teacher, TASK, Settings(inherit=True), images("residual")))
    before = weights(student)
    found[0].solve(lambda done, total: None)
    after, theirs = weights(student), weights(teacher)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name.split(".")[1] for name in changed} == {"conv1", "bn1", "fc"}
    assert all(torch.equal(after[name], theirs[name]) for name in changed)


@pytest.mark.parametrize(("kind", "rates"), [("residual", [{"optimizer": "adamw", "lr": 2e-3}]), ("narrower", [{}])])
def test_an_inherited_head_is_only_tuned(kind, rates):
    student, teacher = networks(kind)
    phases = METHODS["skd"].plan(setup_of(student, teacher, TASK, Settings(inherit=True), images(kind)))
    assert [phase.overrides for phase in phases if phase.name == "head"] == rates


def test_whole_layers_are_inherited_and_a_stem_of_its_own(caplog):
    """A stage that is the stem as a whole is inherited; a layer of which only the bias fits is not."""
    student, teacher = network("cnn_small", 1, width=4), network("cnn_small", 2, width=4)
    narrow, wide = networks("narrower")
    for ours, theirs, expected in ((student, teacher, True), (narrow, wide, False)):
        phase = METHODS["skd"].plan(setup_of(ours, theirs, TASK, Settings(inherit=True), images("narrower")))[0]
        before = weights(ours)
        copied = phase.solve(lambda done, total: None)["copied_values"]
        after, given = weights(ours), weights(theirs)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert bool(changed) == expected == bool(copied)
        assert all(torch.equal(after[name], given[name]) for name in changed)
    assert "no layer of the student's stem and head" in caplog.text


@pytest.mark.parametrize("words", [["--inherit"], ["--inherit", "true"]])
@pytest.mark.parametrize("last", [False, True])
def test_inherit_may_stand_alone(words, last, monkeypatch):
    seen: dict = {}
    monkeypatch.setattr("protege.run.api.distill", lambda **settings: seen.update(settings))
    others = ["--method", "skd"]
    monkeypatch.setattr("sys.argv", ["protege", "distill", *(others + words if last else words + others)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0
    assert (seen["inherit"], seen["method"]) == ("true", "skd")


def test_joint_finetuning_learns_everything_from_the_target(tmp_path):
    seen: list[tuple] = []
    settings = {"finetune_epochs": 3, "target": "topk", "k": 2, "select": "last"}
    *_, state = taught("residual", tmp_path, watch=lambda p, s: seen.append((p, weights(s))), **settings)
    assert [d["name"] for d in state.done] == ["layer1", "layer2", "layer3", "head", "finetune"]
    assert state.done[-1]["epochs"] == 3
    a, b = seen[-2][1], seen[-1][1]
    assert all(not torch.equal(a[name], b[name]) for name, _ in networks("residual")[0].named_parameters())


def test_what_the_joint_phase_begins_with_counts(tmp_path):
    """At a rate that spoils it, the last phase keeps what it began with."""
    seen: list[dict] = []
    phases = {"finetune": {"lr": 30.0, "clip": 1.0}}
    settings = {"finetune_epochs": 2, "phases": phases}
    *_, state = taught("residual", tmp_path, watch=lambda p, s: seen.append(weights(s)), **settings)
    assert state.done[-1]["best"]["epoch"] == 0
    assert same(seen[-1], seen[-2])


@pytest.mark.parametrize("method", ["skd", "fitnets", "simultaneous", "fsp"])
def test_an_own_train_of_the_student_is_respected(method, tmp_path, monkeypatch):
    """An author who keeps BatchNorm in eval mode finds its statistics as they were, whatever the phases are made of."""
    build = zoo.build

    def held(self, mode=True):
        nn.Module.train(self, mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def build_held(*args):
        made = build(*args)
        made.__class__ = type("Held", (type(made),), {"train": held})
        return made

    monkeypatch.setattr(zoo, "build", build_held)
    before = weights(networks("residual")[0])
    student, *_ = taught("residual", tmp_path, method=method, **({"finetune_epochs": 1} if method == "skd" else {}))
    after = weights(student)
    assert all(torch.equal(before[name], after[name]) for name, _ in student.named_buffers())
    assert all(not torch.equal(before[name], after[name]) for name, _ in student.named_parameters())


@pytest.mark.parametrize("method", ["simultaneous", "fitnets", "at", "fsp"])
@pytest.mark.parametrize("kind", ["residual", "narrower"])
def test_the_methods_it_is_compared_with(method, kind, tmp_path):
    before = weights(networks(kind)[0])
    student, *_ = taught(kind, tmp_path, method=method)
    after = weights(student)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert all(not torch.equal(before[name], after[name]) for name, _ in student.named_parameters())
    assert set(after) == set(before)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    protege.train("zoo:cnn_tiny?width=6", "digits", out=out, epochs=8, batch_size=32, lr=0.1)
    return out / "student"


RUN = {
    **{"student": "zoo:cnn_tiny?width=3", "data": "digits", "samples": 60, "views": 2, "method": "skd", "epochs": 2},
    **{"batch_size": 16, "precision": "fp32", "checkpoint_seconds": 0, "finetune_epochs": 1, "eval_every": 1},
}


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory) -> Path:
    """A run that was never killed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTEGE_CACHE", str(out.parent / "cache"))
        protege.distill(str(teacher), out=out, **RUN)
    return out


@pytest.mark.parametrize("moment", [2, 7, 13, 19])
def test_killed_and_resumed(moment, teacher, whole, tmp_path, monkeypatch):
    for module in (finished, running):
        monkeypatch.setattr(module, "write_run_report", lambda out: None)
    with pytest.MonkeyPatch.context() as patch:
        original, calls = Journal.save_when_due, 0

        def hooked(*args, **kwargs):
            nonlocal calls
            calls += 1
            original(*args, **kwargs)
            if calls == moment:
                raise Curtain

        patch.setattr(Journal, "save_when_due", hooked)
        with pytest.raises(Curtain):
            protege.distill(str(teacher), out=tmp_path / "run", **RUN)
    for file in (tmp_path / "run" / "signals").rglob("*.float16"):  # never flushed: the machine may have gone down
        file.write_bytes(bytes(file.stat().st_size))
    protege.distill(str(teacher), out=tmp_path / "run", resume=True, **RUN)
    assert not (tmp_path / "run" / "signals").exists()
    mine, theirs = (load_file(out / "student" / "model.safetensors") for out in (tmp_path / "run", whole))
    assert same(mine, theirs)
    mine, theirs = (json.loads((out / "result.json").read_text()) for out in (tmp_path / "run", whole))
    assert [p["best"] for p in mine["phases"]] == [p["best"] for p in theirs["phases"]]
    assert mine["student"]["metrics"] == theirs["student"]["metrics"]


def test_a_run_is_not_resumed_with_others(teacher, tmp_path, monkeypatch):
    """Another teacher at the same place, or other samples, would end in a student that no whole run has."""
    save = Journal.save_when_due

    def hooked(*args, **kwargs):
        save(*args, **kwargs)
        raise Curtain

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "save_when_due", hooked)
        with pytest.raises(Curtain):
            protege.distill(str(teacher), out=tmp_path / "run", **RUN)
    origin_of = prepare.origin_of
    for what in ("teacher", "data set"):
        other = {what: "other"}
        monkeypatch.setattr(prepare, "origin_of", lambda *setup, other=other: origin_of(*setup) | other)
        with pytest.raises(protege.UserError, match=f"resume=True found another {what} than .* was begun with"):
            protege.distill(str(teacher), out=tmp_path / "run", resume=True, **RUN)
    monkeypatch.setattr(prepare, "origin_of", origin_of)
    protege.distill(str(teacher), out=tmp_path / "run", resume=True, **RUN)


def test_own_defaults_give_way_to_the_user(teacher, tmp_path):
    found = protege.preview(str(teacher), "zoo:cnn_tiny?width=3", "digits", "skd", samples=60)
    assert {phase["optimizer"] for phase in found["phases"]} == {"adamw"}
    assert "target" not in found["settings"], "which nothing would use"
    found = protege.preview(
        *(str(teacher), "zoo:cnn_tiny?width=3", "digits", "skd"),
        **{"samples": 60, "optimizer": "sgd", "epochs": 7, "finetune_epochs": 3, "phases": {"head": {"epochs": 5}}},
    )
    assert [phase["optimizer"] for phase in found["phases"]] == ["sgd"] * 3 + ["adamw"], "the last one has its own rate"
    assert found["phases"][-1]["lr"] == 2e-3
    assert [phase["epochs"] for phase in found["phases"]] == [7, 7, 5, 3]
    assert found["settings"]["target"] == "kd"


def test_a_preview_names_what_is_inherited_and_the_disk_that_is_needed(teacher, tmp_path):
    setup = (str(teacher), "zoo:cnn_tiny?width=3", "digits")
    found = protege.preview(str(teacher), str(teacher), "digits", "skd", samples=60, inherit=True, views=2)
    modules = dict(protege.load_model(str(teacher)).network.named_modules())
    (inherited,) = [phase["inherited_layers"] for phase in found["phases"] if phase["name"] == "inherit"]
    assert inherited
    assert set(inherited) <= modules.keys()
    for settings in ({"method": "skd"}, {"method": "kd"}, {"method": "kd", "optimizer": "adamw", "ema": 0.9}):
        told = protege.preview(*setup, samples=60, views=2, **settings)["disk"]
        result = protege.distill(*setup, samples=60, views=2, epochs=1, out=tmp_path / str(settings), **settings).result
        kept = [path.stat().st_size for path in (tmp_path / str(settings) / "checkpoint").glob("*.pt")]
        assert result["cache"]["bytes"] <= told["signals"] + 2**16, "besides small files"
        assert max(kept) <= told["checkpoints"] / 3 + 2**16
    assert protege.preview(*setup, "kd", samples=60, views="all")["disk"]["signals"] == 0


def dry_run(teacher: Path, *more: str) -> int:
    arguments = ["distill", "--teacher", str(teacher), "--student", "zoo:cnn_tiny?width=3", "--data", "digits"]
    arguments += ["--method", "skd", "--samples", "60", "--dry-run", *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["protege", *arguments])
        with pytest.raises(SystemExit) as end:
            app.main()
    return int(end.value.code or 0)


def test_dry_run_prints_the_pairing_and_writes_nothing(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dry_run(teacher) == 0
    told = capsys.readouterr().out
    assert "layer1" in told
    assert "(3, 8, 8)" in told
    assert "(6, 8, 8)" in told
    assert "with label smoothing 0.0, inherit no, finetune epochs 0" in told
    assert "target" not in told, "which nothing would read"
    assert dry_run(teacher, "--finetune-epochs", "2", "--target", "topk") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "target topk, temperature 4.0, weight 0.9, k 10" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stages", "expected"),
    {
        "no such module": ("layer9=layer1", "layer9"),
        "no such teacher module": ("layer1=layer7", "layer7"),
        "out of order": ("layer2=layer2,layer1=layer1", "layer1"),
        "twice": ("layer1=layer1,layer1=layer2", "layer1"),
        "other resolution": ("layer2=layer1", "resolution"),
        "no feature": ("fc=fc", "fc"),
    }.values(),
)
def test_stages_that_cannot_be(stages, expected, teacher, capsys):
    assert dry_run(teacher, "--stages", stages) == 2
    told = capsys.readouterr().err.strip()
    assert len(told.splitlines()) == 1
    assert told.startswith("error: ")
    assert expected in told


def test_wrapped_and_frozen_networks_are_told_how_to_be_given(tmp_path):
    student, teacher = networks("residual")
    whole = student.network
    student.network = nn.DataParallel(whole)
    with pytest.raises(protege.UserError, match=r"the student is wrapped in DataParallel.*pass its \.module"):
        plan("skd", student, teacher)
    student.network = torch.compile(whole)
    with pytest.raises(protege.UserError, match=r"wrapped in OptimizedModule.*pass its \._orig_mod"):
        plan("skd", student, teacher)
    student.network = whole.requires_grad_(False)
    with pytest.raises(protege.UserError, match=r"every parameter of the student is frozen.*requires_grad_\(True\)"):
        plan("skd", student, teacher)


def test_the_default_rate_of_a_mean_of_losses(tmp_path):
    """Each of the losses counts as it would alone at the usual rate; AdamW's steps do not depend on it."""
    student, teacher = networks("residual")
    (phase,) = phases = plan("simultaneous", student, teacher)
    samples = {"samples": pictures(), "epochs": 1, "batch_size": 32}
    usual = default_lr("sgd", 32)
    assert phase.parts > 2
    for own, expected in (({}, phase.parts * usual), ({"lr": 0.3}, 0.3), ({"optimizer": "adamw"}, None)):
        made = planned(loop(student, tmp_path, **samples, **own), phases).plan
        assert made.settings_of(phase).lr == expected


class Viewing(nn.Module):
    """A network that works on contiguous images only."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(width * 16, 10)

    def forward(self, x):
        x = self.layer1(x)
        x = x.view(x.size(0), -1).view(x.size())
        return self.fc(self.layer2(x).view(x.size(0), -1))


@pytest.mark.parametrize("method", ["skd", "simultaneous", "fitnets"])
def test_networks_for_contiguous_images(method, tmp_path):
    torch.manual_seed(0)
    teacher = protege.train(Viewing(6), "digits", out=tmp_path / "teacher", epochs=1, batch_size=32, lr=0.05)
    made = protege.distill(
        teacher.student, Viewing(), "digits", method, tmp_path / "run", samples=60, epochs=2, batch_size=20, views=2
    )
    assert made.student.layout == "contiguous"


def test_what_is_counted_and_told_is_the_teachers(teacher, tmp_path):
    """The student's own stages are run ahead, too, into caches that are gone when the phase is over."""
    data = {"samples": 60, "views": 2, "epochs": 2, "batch_size": 20, "validation": 0.2}
    made = protege.distill(str(teacher), "zoo:cnn_tiny?width=3", "digits", "skd", tmp_path / "run", **data)
    assert made.result["teacher_samples_forwarded"] == 2 * 48 + 12
    assert Path(made.result["cache"]["path"]).is_dir()


def test_too_few_samples_to_hold_any_out(teacher, tmp_path, caplog):
    with caplog.at_level("INFO", logger="protege"):
        made = protege.distill(
            str(teacher), "zoo:cnn_tiny?width=3", "digits", "skd", tmp_path / "run", samples=10, epochs=1
        )
    assert "leave none to hold out" in caplog.text
    assert made.result["data"]["train_samples"] == 10
    again = protege.distill(recipe=tmp_path / "run" / "recipe.toml", out=tmp_path / "again")
    assert again.metrics == made.metrics


def test_all_samples_may_be_learned_from(teacher):
    own = {"samples": 60, "select": "last", "validation": 0.0}
    with pytest.raises(protege.UserError, match=r"patience = 3 cannot be had without held-out .*patience=0"):
        protege.preview(str(teacher), "zoo:cnn_tiny?width=3", "digits", "skd", **own)
    found = protege.preview(str(teacher), "zoo:cnn_tiny?width=3", "digits", "skd", patience=0, **own)
    assert found["samples"] == 60


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("skd", {"temperature": 2.0}, "temperature = 2.0 would do nothing.*finetune_epochs"),
        ("at", {"temperature": 2.0}, "'temperature' belongs to method"),
        ("fsp", {"stages": "layer1"}, "found one cut, 'layer1'"),
    ],
)
def test_settings_that_would_do_nothing(method, options, expected, teacher):
    with pytest.raises(protege.UserError, match=expected):
        protege.preview(str(teacher), "zoo:cnn_tiny?width=3", "digits", method, samples=60, **options)


@pytest.mark.parametrize("method", ["at", "fsp"])
def test_maps_are_compared_where_there_are_maps(method):
    student, teacher = networks("transformer")
    with pytest.raises(protege.UserError, match="compares feature maps"):
        METHODS[method].plan(setup_of(student, teacher, TASK, METHODS[method].settings(), images("transformer")))


def test_a_frozen_stage_is_refused_where_its_adapter_could_learn():
    student, teacher = network("resnet8"), network("resnet8x4")
    student.network.layer2.requires_grad_(False)
    with pytest.raises(protege.UserError, match=r"in stage 'layer2' nothing is left to learn; .* not frozen"):
        METHODS["skd"].plan(setup_of(student, teacher, TASK, Settings(), images("residual")))


@pytest.mark.parametrize("method", ["at", "simultaneous"])
def test_what_learns_as_a_whole_need_not_come_apart(method, tmp_path):
    """A layer that two stages use, named by an alias."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared, self.head = (
                nn.Conv2d(1, 8, 3, 2, 1),
                nn.Conv2d(8, 8, 3, 1, 1),
                nn.Linear(8, CLASSES),
            )
            self.parts = nn.ModuleList([self.stem])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.shared(self.stem(x).relu())
            return self.head(self.shared(x.relu()).mean((2, 3)))

    torch.manual_seed(0)
    student, teacher = model(Twice(), seed=1), model(Twice(), seed=2)
    chosen, samples = METHODS[method], images("residual")
    settings = chosen.settings(stages="parts.0,shared")
    with pytest.raises(protege.UserError, match="is used in both stages"):
        METHODS["skd"].plan(setup_of(student, teacher, TASK, Settings(stages="parts.0,shared"), samples))
    phases = list(chosen.plan(setup_of(student, teacher, TASK, settings, samples)))
    assert [row["stage"] for row in chosen.preview(setup_of(student, teacher, TASK, settings, samples))][-1] == "head"
    before = weights(student)
    perform(loop(student, tmp_path, samples=samples, epochs=1, batch_size=6), phases)
    after = weights(student)
    assert all(not torch.equal(after[name], before[name]) for name in ("network.stem.weight", "network.shared.weight"))


def test_a_student_is_cut_once(monkeypatch):
    cuts = []
    split = stages.split
    monkeypatch.setattr(stages, "split", lambda *given: cuts.append(given[1]) or split(*given))
    protege.preview("zoo:resnet20", "zoo:resnet8", "digits", "skd", samples=40)
    assert len({*map(tuple, cuts)}) == len(cuts), "no cut is made twice"
