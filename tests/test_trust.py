"""Whose code runs: what the user types, and of what a folder names only networks by scheme, unless it is trusted."""

import json
import os
import sys
from pathlib import Path

import forks
import pytest
import tomli_w
import torch
from test_report_snippets import printed
from torch import nn

import protege
from protege.commands import app
from protege.errors import UserError
from protege.models import load_model
from protege.report import write_run_report
from protege.run.study import run_study
from protege.run.study_file import load_study, slug

NETS = (
    "from pathlib import Path\nfrom torch import nn\n"
    "Path({mark!r}).touch()\n"
    "class Net(nn.Sequential):\n"
    "    def __init__(self, num_classes=10, name=''):\n"
    "        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))\n"
    "def make(num_classes, width=1):\n    return Net(num_classes)\n"
)


class Held(nn.Sequential):
    """A network of a module that the program has imported."""

    def __init__(self, outputs: int = 10, name: str = "") -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, outputs))


def naming(folder: Path, model: str, **arguments: object) -> Path:
    """A model folder that names this to build its network."""
    if not folder.exists():
        load_model(Held(), data=protege.load_data("digits")).save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model": model, "arguments": arguments}))
    return folder


def written(folder: Path, name: str) -> Path:
    """A module ``name`` in the folder; the file that importing it makes."""
    mark = folder / f"{name} was imported"
    (folder / f"{name}.py").write_text(NETS.format(mark=str(mark)))
    return mark


def command(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["protege", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
    return ended.value.code or 0


CALLS = {
    "os:system": {"command": "rmdir MARK"},
    "shutil:rmtree": {"path": "MARK"},
    "torch:load": {"f": "MARK"},
    "subprocess:Popen": {"args": ["rmdir", "MARK"]},
    "protege.models.load:load_model": {"spec": "os:system?command=rmdir MARK"},
    "protege.models:load_model": {"spec": "shutil:rmtree?path=MARK", "trust": True},
    "protege.run.api:train": {"student": "zoo:mlp", "data": "digits", "out": "MARK", "overwrite": True},
    "understudy.models.load:load_model": {"spec": "os:system?command=rmdir MARK"},
    "builtins:exec": {"source": "import os; os.rmdir('MARK')"},
    "unittest.__main__:x": {},
    "antigravity:geohash": {},
    "torch.nn:Module.__init__": {},
    "protege.models.sources:importlib.import_module": {"name": "antigravity"},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_folder_runs_nothing_that_it_names(name, tmp_path):
    mark = tmp_path / "mark"
    mark.mkdir()
    arguments = json.loads(json.dumps(CALLS[name]).replace("MARK", str(mark)))
    folder, before = naming(tmp_path / "model", name, **arguments), set(sys.modules)
    shown = f"would run {name.replace('understudy', 'protege')}("
    for opened in (
        lambda: load_model(folder),
        lambda: protege.evaluate(folder, "digits"),
        lambda: protege.diagnose("zoo:mlp", "digits", student=str(folder)),
        lambda: protege.shrink(folder, ratio=0.5, dry_run=True),
        lambda: protege.train(str(folder), "digits", tmp_path / "out"),
        lambda: protege.distill(str(folder), "zoo:mlp", "digits", out=tmp_path / "out"),
        lambda: protege.preview(str(folder), "zoo:mlp", "digits", method="auto"),
    ):
        with pytest.raises(UserError) as refused:
            opened()
        assert shown in str(refused.value)
        assert "trust=True" in str(refused.value)
    assert mark.exists()
    assert not (tmp_path / "out").exists()
    assert not {"antigravity", "unittest.__main__"} & (set(sys.modules) - before)


def test_code_that_a_folder_names_runs_with_trust_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mark = written(tmp_path, "nets_trusted")
    folder = naming(tmp_path / "model", "nets_trusted:make", num_classes=10, width=2)
    options = ("--model", folder, "--data", "digits")
    assert command("evaluate", *options) == 2
    told = capsys.readouterr().err.replace("\n", " ")
    assert "would run nets_trusted:make(num_classes=10, width=2)" in told
    assert "allow it with --trust" in told
    assert not mark.exists()
    assert command("evaluate", *options, "--trust") == 0
    assert mark.exists()
    assert command("evaluate", *options) == 2  # imported by now, but by no program
    assert load_model(folder, trust=True).classes == tuple("0123456789")
    with pytest.raises(UserError, match="would run"):  # a function, in an imported module or not
        load_model(folder)


def test_what_lies_in_a_folder_is_never_imported_because_it_is_named(tmp_path):
    mark = written(tmp_path, "net")
    for name in ("timm", "torchvision", "transformers", "segmentation_models_pytorch"):
        (tmp_path / f"{name}.py").write_text((tmp_path / "net.py").read_text())
    naming(tmp_path / "model", "net:Net")
    for file in (tmp_path / "model").iterdir():
        file.rename(tmp_path / file.name)
    for spec in (".", "torchvision:x", "zoo.x:y"):
        done = forks.run("evaluate", "--model", spec, "--data", "digits", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert not mark.exists()


def test_a_class_that_the_program_has_imported_needs_no_trust(tmp_path):
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    folder = naming(tmp_path / "model", f"{__name__}:Held")
    assert torch.equal(load_model(folder)(images), load_model(folder, trust=True)(images))
    load_model(naming(folder, f"{__name__}:Held", outputs=10))
    for name, arguments in (
        ("Held", {"name": "os:system"}),
        ("Held", {"outputs": {"os:system": 1}}),
        ("naming", {}),
        ("NETS", {}),
        ("Held.forward", {}),
        ("pytest.mark", {}),
    ):
        with pytest.raises(UserError, match=r"would run|unknown"):
            load_model(naming(folder, f"{__name__}:{name}", **arguments))
    assert command("evaluate", "--model", naming(folder, f"{__name__}:Held"), "--data", "digits") == 2


def test_a_network_that_is_given_takes_nothing_of_what_the_folder_names(tmp_path):
    mark = tmp_path / "mark"
    mark.mkdir()
    folder = naming(tmp_path / "model", "shutil:rmtree", path=str(mark), num_classes=10)
    model = load_model(folder, network=Held())
    model.save(tmp_path / "again")
    assert mark.exists()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model"] == f"{__name__}:Held"


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        ("timm:resnet18", {"pretrained": True}, "pretrained"),
        ("timm:resnet18", {"checkpoint_path": "x.safetensors"}, "checkpoint_path"),
        ("timm:resnet18", {"pretrained_cfg": {"file": "evil.pth"}}, "pretrained_cfg"),
        ("smp:unet", {"encoder_weights": "imagenet"}, "encoder_weights"),
    ],
)
def test_a_folder_fetches_no_weights(model, arguments, told, tmp_path):
    folder = naming(tmp_path / "model", model, num_classes=10, **arguments)
    with pytest.raises(UserError, match=f"{told} = .*would fetch"):
        load_model(folder)


@pytest.mark.parametrize(
    "spec",
    [
        "unittest.__main__:x",
        "unittest.__main__:main",
        "turtledemo.__main__:main",
        "antigravity:x",
        "antigravity.x:y",
        "this:x",
        "idlelib.idle:x",
        "__hello__:x",
        "sneaky:Net",
        "sneaky.inner:Net",
    ],
)
def test_a_typed_spec_that_is_no_factory_imports_nothing(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sneaky.py").write_text("raise SystemExit('imported')\n")
    before, path = set(sys.modules), list(sys.path)
    with pytest.raises(UserError, match=r"has no|names a program|names neither"):
        load_model(spec, num_classes=3)
    assert spec.split(":")[0].split(".")[0] not in (set(sys.modules) - before - {"unittest"})
    assert sys.path == path


def test_a_module_that_ends_the_interpreter_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_script.py").write_text("def net(): pass\nraise SystemExit(3)\n")
    with pytest.raises(UserError, match="fails on import with SystemExit"):
        load_model("a_script:net")


def test_an_installed_module_comes_before_a_file_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mark = written(tmp_path, "wave")
    with pytest.raises(UserError, match="calling wave:open"):
        load_model("wave:open?f=nothing")
    assert not mark.exists()


def test_a_run_knows_what_its_recipe_names(tmp_path, monkeypatch):
    """A run that is finished gives its student again, one of another factory it does not."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "nets_of_a_run")
    run = protege.train("nets_of_a_run:make?width=3", "digits", tmp_path / "run", epochs=1, samples=10)
    assert protege.train(out=tmp_path / "run", resume=True).metrics == run.metrics
    naming(tmp_path / "run" / "student", "nets_of_a_run:make", num_classes=10, width=4)
    with pytest.raises(UserError, match="would run nets_of_a_run:make"):
        protege.train(out=tmp_path / "run", resume=True)
    assert protege.train(out=tmp_path / "run", resume=True, trust=True).metrics == run.metrics


def test_printed_lines_show_that_trust_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "nets_printed")
    protege.train("nets_printed:make", "digits", tmp_path / "run", epochs=1, samples=10)
    python, shell = printed(tmp_path / "run")
    assert ", trust=True)" in python
    assert shell.endswith("--trust")


@pytest.mark.parametrize(
    "changes",
    [
        {"class": "os:path", "call": "__import__('os').system('x')"},
        {"class": "a:b\nimport os", "call": "b(...)"},
        {"class": "nets:Net", "call": "Net(x=boom('y'))"},
        {"class": "nets:Net", "call": "Net()\nboom('y')"},
        {"class": 3, "call": ["x"], "check": {"shape": ["1); boom('y'); (", 3]}},
        {"check": 5, "input": {"channels": "boom('y')", "size": "boom('y')"}},
    ],
)
def test_code_to_copy_has_no_more_in_it_than_the_network(changes, tmp_path):
    class Inner(Held):
        def __init__(self, layers):
            super().__init__()

    protege.train(Inner(nn.Linear(2, 2)), "digits", out=tmp_path / "run", epochs=1, samples=10)
    path = tmp_path / "run" / "student" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    write_run_report(tmp_path / "run")
    (python, *_) = printed(tmp_path / "run")
    assert not any(word in python for word in ("boom", "__import__", "import os", "system"))
    compile(python, "report", "exec")


def test_a_study_trusts_what_its_file_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    written(tmp_path, "nets_of_a_study")
    short = {"data": "digits", "samples": 20, "epochs": 1}
    plan = {
        "name": "own teacher",
        "seeds": [0],
        "recipe": {"teacher": "prepared:big", "student": "zoo:cnn_tiny", "validation": 0, **short},
        "grid": {"method": ["kd"]},
        "prepare": {"big": {"command": "train", "model": "nets_of_a_study:make", **short, "samples": 400}},
    }
    Path("study.toml").write_text(tomli_w.dumps(plan))
    found = run_study("study.toml", "out")
    assert [run["status"] for run in found["runs"]] == ["done"]
    naming(Path("out/prepared/big/student"), "nets_of_a_study:Net")  # what it names no more
    Path("study.toml").write_text(tomli_w.dumps({**plan, "seeds": [0, 1]}))
    found = run_study("study.toml", "out", resume=True)
    assert "would run nets_of_a_study:Net" in found["runs"][1]["status"]
    found = run_study("study.toml", "out", resume=True, trust=True)
    assert [run["status"] for run in found["runs"]] == ["done", "done"]
    assert os.path.exists("out/study.md")


@pytest.mark.parametrize(
    "name",
    ["../../../x", "/tmp/x", "..", ".", "a/b", "a\\b", "a\0b", "CON", "nul.txt", "x" * 300, "", "x.", "C:x", "a\nb"],
)
def test_what_a_study_prepares_stays_in_its_folder(name, tmp_path):
    prepare = {name: {"command": "train", "model": "zoo:mlp", "data": "digits"}}
    recipe = {"teacher": f"prepared:{name}", "student": "zoo:mlp", "data": "digits"}
    (tmp_path / "plan.toml").write_text(tomli_w.dumps({"name": "x", "recipe": recipe, "prepare": prepare}))
    with pytest.raises(UserError, match=r"cannot be the name of a folder") as refused:
        run_study(tmp_path / "plan.toml", tmp_path / "a" / "b" / "out")
    assert len(str(refused.value)) < 700
    assert os.listdir(tmp_path) == ["plan.toml"]


def test_names_of_a_study_that_are_long_or_odd_name_folders_in_it(tmp_path):
    cases = {name: {"data": "digits"} for name in ("../../x", "x" * 300, "x" * 299 + "y", "é" * 200, "a\0b")}
    plan = {"name": "x", "recipe": {"student": "zoo:mlp", "method": "none"}, "cases": cases}
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan))
    study = load_study(tmp_path / "plan.toml")
    names = {slug(*run) for run in study.planned()}
    assert len(names) == 5 * 3
    for name in names:
        (tmp_path / f"{name}.toml.12345678.tmp").touch()
        assert (tmp_path / name).parent == tmp_path


ODD = [
    "[" * 100_000,
    '{"format": 1, "arguments": ' + "[" * 100_000,
    '{"format": ' + "9" * 5000 + "}",
    '{"format": true}',
    "NaN",
    "",
    *(
        {key: value}
        for key, values in {
            "more": [1],
            "arguments": [{"width": 10**30}, {"num_classes": 10**12}, {"num_classes": "a" * 9999}, {"a" * 9999: 1}],
            "classes": [[1], [None], {}, 10**30],
            "input": [{"channels": 10**30}, {"ranges": 5}, {"size": "a" * 9999}, {"mean": {}}, {"a" * 9999: 1}],
            "structure": [[1], [{"module": "fc", "type": "Linear", "out_features": 10**30}], [{"type": []}]],
            "kept": [{"fc": [-1]}, {"fc": "all"}],
            "extra": [{"fc.weight": 5}, {"_extra_state": 5}, []],
            "check": [{"shape": [10**9, 10**9], "values": 2, "outputs": [1]}, {"shape": []}, {"values": 0}, "x"],
            "dtype": ["float128", 3, None],
            "memory": ["", 3],
            "named": ["no", 1],
            "task": [None, []],
        }.items()
        for value in values
    ),
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_an_odd_config_is_one_sentence(odd, tmp_path, capsys):
    folder = load_model("zoo:mlp", data=protege.load_data("digits")).save(tmp_path / "model")
    path = folder / "config.json"
    text = odd if isinstance(odd, str) else json.dumps(json.loads(path.read_text()) | odd)
    path.write_text(text)
    assert command("evaluate", "--model", folder, "--data", "digits") == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ")
    assert "\n" not in told
    assert len(told) < 900


def test_transformers_runs_nothing_that_comes_with_a_model(tmp_path, monkeypatch):
    """Neither modules that its files name nor kernels, and nobody is asked."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (tmp_path / "mine.py").write_text("raise SystemExit('imported')\n")
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 12, "n_positions": 8}
    config = {"model_type": "gpt2", **sizes}
    auto = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    opened = load_model(f"transformers:{tmp_path}?pretrained=false", num_classes=12)
    assert isinstance(opened.network.model, transformers.GPT2LMHeadModel)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": auto}))
    with pytest.raises(UserError, match="cannot be opened"):
        load_model(f"transformers:{tmp_path}?pretrained=false", num_classes=12)
    (tmp_path / "config.json").write_text(json.dumps(config | {"_attn_implementation": "stranger/kernel"}))
    with pytest.raises(UserError, match="would run code of the hub"):
        load_model(f"transformers:{tmp_path}?pretrained=false", num_classes=12)
    folder = opened.save(tmp_path / "saved")
    said = json.loads((folder / "config.json").read_text())
    said["arguments"]["config"]["_attn_implementation"] = "stranger/kernel"
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="would run code of the hub"):
        load_model(folder)
