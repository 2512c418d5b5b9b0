"""The house: a room imports only rooms on floors below it, and the picture shows it as it is."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import house  # noqa: E402


def test_arrows_go_down():
    assert house.upwards() == []


def test_every_room_is_drawn():
    rooms = {path.name for path in house.SOURCE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(house.floor_of)


def test_the_picture_is_that_of_the_code():
    assert (ROOT / "docs" / "house.svg").read_text(encoding="utf-8") == house.picture()


def test_low_rooms_do_without_high_ones():
    """The rooms that anybody's loop takes alone import nothing that trains."""
    code = "import sys, protege.losses, protege.surgery; print([n for n in sys.modules if n.startswith('protege.')])"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not any(f"protege.{room}" in names for room in ("training", "methods", "commands", "report"))
