"""The house: a room imports only rooms on floors below it, and the picture shows it as it is."""

import re
import sys
import traceback
from pathlib import Path

from protege import distill
from protege.methods import Fit, Method, MethodSettings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import house  # noqa: E402


def test_arrows_go_down():
    assert house.upwards() == []


def test_reports_need_folders_only():
    assert house.imports("report") == {}
    assert "report" not in house.imports("tasks")


def test_kinds_of_surgery_know_nothing_of_each_other():
    kinds = {"pruning", "solving", "stages", "tracing", "widening"}
    beside = {}
    for path in (house.SOURCE / "surgery").glob("*/*.py"):
        entered = set(re.findall(r"from \.\.(\w+)", path.read_text(encoding="utf-8"))) & kinds - {"tracing"}
        beside |= {path.parent.name: entered} if entered else {}
    assert beside == {}


def test_every_room_is_drawn():
    rooms = {path.name for path in house.SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(house.floor_of)


def test_the_picture_is_that_of_the_code():
    assert (ROOT / "docs" / "house.svg").read_text(encoding="utf-8") == house.picture()


def test_from_distill_to_a_step_there_are_at_most_six_functions_and_each_calls_one_further_down(tmp_path):
    """Of the package's own, decorators of public functions apart; the last of them holds the loop over batches."""
    ways = []

    def plan(setup):
        def step(student, batch):
            frames = [frame for frame in traceback.extract_stack() if house.SOURCE in Path(frame.filename).parents]
            ways.append([(Path(f.filename).relative_to(house.SOURCE).parts, f.name) for f in frames])
            rows, truth, weights = setup.rows(student(batch.inputs), batch)
            return {"loss": setup.task_loss(rows, truth, weights)}

        return [Fit("mine", setup.student, step)]

    method = Method(plan, MethodSettings, needs_teacher=False)
    distill(None, "zoo:mlp", "digits", method, tmp_path / "out", samples=20, epochs=1, eval_every=1)
    way = [(place, name) for place, name in ways[-1] if place[0] not in ("settings.py", "torch_utils.py")]
    assert next(name for _, name in way) == "distill"
    assert [name for _, name in way][-2:] == ["_train_epoch", "_update"]
    assert len(way) <= 6
    floors = [house.floor_of[place[0]] for place, _ in way]
    assert floors == sorted(floors)
