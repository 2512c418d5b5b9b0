"""The house: a room imports only rooms on floors below it, and the picture shows it as it is."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import house  # noqa: E402


def test_arrows_go_down():
    assert house.upwards() == []


def test_reports_need_folders_only():
    assert house.imports("report") == {}
    assert "report" not in house.imports("tasks")


def test_every_room_is_drawn():
    rooms = {path.name for path in house.SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(house.floor_of)


def test_the_picture_is_that_of_the_code():
    assert (ROOT / "docs" / "house.svg").read_text(encoding="utf-8") == house.picture()
