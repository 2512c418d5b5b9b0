"""A method from outside the package, by every door: its name, the object itself, recipes, studies, entry points."""

import shutil
import sys
from importlib import import_module
from pathlib import Path

import forks
import pytest
import tomli_w
import torch
from pydantic import Field
from safetensors.torch import load_file

import protege
from protege import UserError
from protege.commands import app
from protege.lookup import source_digest
from protege.methods import Fit, Logits, Method, MethodSettings, named
from protege.run.study import run_study

PLUGIN = '''
"""DIST (Huang et al. 2022, section 3.2): Pearson correlation between and within classes."""

import torch.nn.functional as F
from pydantic import Field

from protege.methods import Fit, Logits, Method, MethodSettings


class Settings(MethodSettings):
    inter: float = Field(1.0, ge=0, description="weight of the distance between classes")
    intra: float = Field(1.0, ge=0, description="weight of the distance within classes")


def distance(a, b):
    a, b = (v - v.mean(1, keepdim=True) for v in (a, b))
    return 1 - F.cosine_similarity(a, b, dim=1).mean()


def plan(setup):
    s = setup.settings

    def step(student, batch):
        rows, truth, weights = setup.rows(student(batch.inputs), batch)
        teacher, student = batch.signals["teacher"]["logits"].softmax(1), rows.softmax(1)
        dist = s.inter * distance(student, teacher) + s.intra * distance(student.T, teacher.T)
        return {"loss": setup.task_loss(rows, truth, weights) + dist, "dist": dist}

    return [Fit("dist", setup.student, step, setup.asked(Logits()))]


dist = Method(plan, Settings, defaults={"warmup": 0.0})


def make():
    return dist


def faulty(setup):
    return [Fit("x", setup.student, lambda student, batch: student(batch.nothing), setup.asked(Logits()))]


def lossless(setup):
    return [Fit("x", setup.student, lambda student, batch: {"loss": 3.0}, setup.asked(Logits()))]


def empty(setup):
    return []


def two(student, teacher):
    return []
'''
RUN = {"student": "zoo:cnn_tiny", "data": "digits", "samples": 300, "epochs": 2, "batch_size": 100}


@pytest.fixture
def here(tmp_path, monkeypatch, digits_teacher) -> Path:
    """A folder with a plugin of its own name, in which everything is run; module names are not used twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PROTEGE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(digits_teacher, "teacher")
    name = f"plugin_{abs(hash(str(tmp_path)))}"
    Path(f"{name}.py").write_text(PLUGIN)
    return Path(name)


def weights(out: str) -> dict[str, torch.Tensor]:
    return load_file(Path(out) / "student" / "model.safetensors")


def assert_same(first: str, second: str) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_every_door_leads_to_the_same_student(here):
    method = f"{here}:dist"
    result = protege.distill("teacher", **RUN, method=method, intra=2.0, out="name")
    assert result.result["method"] == method
    assert [phase["name"] for phase in result.result["phases"]] == ["dist"]
    module = sys.modules[str(here)]
    protege.distill("teacher", **RUN, method=module.dist, intra=2.0, out="object")
    protege.distill("teacher", **RUN, method=f"{here}:make", intra=2.0, out="made")
    options = [f"--{key.replace('_', '-')}={value}" for key, value in {**RUN, "method": method, "intra": 2.0}.items()]
    by_command = forks.run("distill", "--teacher=teacher", *options, "--out=command")
    assert by_command.returncode == 0, by_command.stderr
    Path("recipe.toml").write_text(tomli_w.dumps({**RUN, "teacher": "teacher", "method": method, "intra": 2.0}))
    protege.distill(recipe="recipe.toml", out="recipe")
    Path("study.toml").write_text(
        tomli_w.dumps(
            {
                "name": "own",
                "seeds": [0],
                "recipe": {**RUN, "teacher": "teacher", "method": method},
                "grid": {"intra": [2.0, 0.0]},
            }
        )
    )
    study = run_study(Path("study.toml"), Path("study"))
    assert {run["status"] for run in study["runs"]} == {"done"}
    in_study = next(path for path in Path("study/runs").iterdir() if "intra-2" in path.name)
    for other in ("object", "made", "command", "recipe", str(in_study)):
        assert_same("name", other)
    other = next(path for path in Path("study/runs").iterdir() if "intra-0" in path.name)
    assert any(not torch.equal(value, weights(str(other))[key]) for key, value in weights("name").items())


def test_help_has_its_options(here, capsys):
    with pytest.raises(SystemExit):
        app.program.main(["distill", "--method", f"{here}:dist", "--help"], prog_name="protege")
    told = " ".join(capsys.readouterr().out.split())
    assert "--intra" in told
    assert "weight of the distance within classes" in told


def test_the_example_of_the_page_runs(here):
    page = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    Path("mine.py").write_text(code)
    told = forks.run("distill", "--method=mine:method", "--share=0.7", "--teacher=teacher", "--student=zoo:cnn_tiny",
                   "--data=digits", "--epochs=1", "--out=mine")  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "share = 0.7" in Path("mine/recipe.toml").read_text()


def test_a_run_goes_on_with_it_in_another_process_unless_its_code_has_changed(here):
    settings = {"teacher": "teacher", **RUN, "method": f"{here}:dist", "checkpoint_seconds": 0.0}
    protege.distill(**settings, out="whole")
    for name in ("cut", "changed"):
        shutil.copytree("whole", name)
        (Path(name) / "result.json").unlink()
        shutil.rmtree(Path(name) / "student")
        last = max(Path(name).glob("checkpoint/*.json"))  # of the end; the one before it is within the run
        last.with_suffix(".pt").unlink()
        last.unlink()
    assert forks.run("distill", "--resume", "--out=cut").returncode == 0
    assert_same("whole", "cut")
    plugin = Path(f"{here}.py")
    plugin.write_text(plugin.read_text().replace("return 1 -", "return 2 -"))
    refused = forks.run("distill", "--resume", "--out=changed")
    assert refused.returncode == 2
    assert "another code of the method" in refused.stderr


def test_one_given_in_python_alone(here):
    def plan(setup):
        def step(student, batch):
            rows, truth, weights = setup.rows(student(batch.inputs), batch)
            return {"loss": setup.task_loss(rows, truth, weights)}

        return [Fit("mine", setup.student, step, setup.asked(Logits()))]

    for method in (plan, Method(plan, MethodSettings)):
        result = protege.distill("teacher", **RUN, method=method, out="mine", overwrite=True)
        assert result.result["method"].startswith("python:")
    again = forks.run("distill", "--resume", "--out=mine")
    assert again.returncode in (0, 2)  # it is finished
    with pytest.raises(UserError, match="given in Python"):
        protege.distill("teacher", **RUN, method="python:nobody", out="other")


def test_one_that_an_installed_package_offers(here, tmp_path, monkeypatch, capsys):
    """The package lies in a folder of the path, with the metadata that an installer writes."""
    installed = tmp_path / "site-packages"
    metadata = installed / "dist_of_huang-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dist-of-huang\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[protege.methods]\nhuang = {here}_installed:dist\n")
    (installed / f"{here}_installed.py").write_text(PLUGIN)
    protege.distill("teacher", **RUN, method=f"{here}:dist", out="name")
    monkeypatch.syspath_prepend(str(installed))
    named.offered.cache_clear()
    try:
        result = protege.distill("teacher", **RUN, method="huang", out="offered")
        assert result.result["method"] == "huang"
        assert_same("name", "offered")
        options = [f"--{key.replace('_', '-')}={value}" for key, value in RUN.items()]
        by_command = forks.run("distill", "--teacher=teacher", *options, "--method=huang", "--out=command")
        assert by_command.returncode == 0, by_command.stderr
        assert_same("name", "command")
        with pytest.raises(SystemExit):
            app.program.main(["distill", "--method", "huang", "--help"], prog_name="protege")
        assert "--intra" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"choose one of .*huang"):
            protege.distill("teacher", **RUN, method="nonsense", out="nothing")
    finally:
        named.offered.cache_clear()


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("faulty", "fails with AttributeError"),
        ("lossless", "a dict of scalar tensors"),
        ("empty", "expected a list of Fit and Solve"),
        ("two", "or a plan"),
        ("Settings", "expected a protege.methods.Method"),
        ("nothing", "has no 'nothing'"),
    ],
)
def test_faulty_ones_are_one_sentence_before_anything_is_written(attribute, said, here):
    with pytest.raises(UserError, match=said):
        protege.distill("teacher", **RUN, method=f"{here}:{attribute}", out="run")
    assert not Path("run").exists()


def test_a_setting_that_every_run_has_is_refused():
    class Settings(MethodSettings):
        epochs: int = 3

    with pytest.raises(UserError, match="rename it"):
        protege.preview("zoo:cnn_tiny", **RUN, method=Method(lambda setup: [], Settings))
    with pytest.raises(UserError, match="derived from"):
        Method(lambda setup: [], dict)


def test_the_code_of_a_method_is_that_of_all_modules_that_it_is_made_of(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / f"parts_{abs(hash(str(tmp_path)))}"
    package.mkdir()
    files = {"__init__.py": "", "impl.py": "from .helper import scale\n\n\ndef plan(setup):\n    return scale\n"}
    files |= {"helper.py": "from . import deep\nscale = 0.1\n", "deep.py": "", "apart.py": ""}
    for name, text in files.items():
        (package / name).write_text(text)
    plan = import_module(f"{package.name}.impl").plan
    before = source_digest(plan)
    (package / "apart.py").write_text("nobody imports it = True")
    assert source_digest(plan) == before
    for name in ("helper.py", "deep.py"):
        (package / name).write_text(files[name] + "\nscale = 50\n")
        assert source_digest(plan) != before
        (package / name).write_text(files[name])
    assert source_digest(plan) == before


def test_settings_that_are_lists_are_text_with_commas_or_json(here):
    class Settings(MethodSettings):
        names: list[str] = Field(default_factory=list)
        sizes: list[int] = Field(default_factory=list)

    read = Settings.model_validate({"names": "a, b", "sizes": "[1, 2]"})
    assert (read.names, read.sizes) == (["a", "b"], [1, 2])
    with pytest.raises(ValueError, match="valid integer"):
        Settings.model_validate({"sizes": "1,x"})
