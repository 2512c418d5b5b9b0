"""What a machine with a GPU lacks to run protege, as wheels: collected where there is a package index, unpacked there.

    python benchmarks/gpu/wheels.py gpu-wheels 3.12      # make gpu-wheels

Such a machine has Python, torch and no network. A wheel is a zip file of what lies in `site-packages`, so it needs
neither pip nor a virtual environment, which would not see a torch that lies in another one.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "gpu-wheels"
LIMIT = 64 * 2**20  # bytes of all wheels together
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
DISTRIBUTIONS = """
accelerate annotated-doc annotated-types anyio click filelock fsspec h11 httpcore2 httpx2 huggingface-hub idna jinja2
markdown-it-py markupsafe mdurl numpy packaging pillow psutil pydantic pydantic-core pygments pyyaml rich safetensors
shellingham tomli-w tqdm truststore typer typing-extensions typing-inspection
"""  # all but what comes with torch, and pyarrow, scipy and scikit-learn: the largest, which no check needs
IMPORTED = ("accelerate", "safetensors", "pydantic", "typer", "rich", "tomli_w", "numpy", "PIL")
IMPORTED += ("filelock", "psutil", "jinja2")
KEPT = ("numpy",)  # stays that of the machine where it has one: other packages there are built against it


def collect(folder: Path, python: str) -> int:
    """Download the wheels of `constraints.txt` for a version of Python on Linux, and build our own; bytes in all."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions = {re.sub("[-_.]+", "-", line.partition("==")[0]).lower(): line for line in lines if "==" in line}
    wanted = [versions[name] for name in DISTRIBUTIONS.split()]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    abis = (f"cp{python.replace('.', '')}", "abi3", "none")
    target = ["--python-version", python, "--implementation", "cp", *(f"--abi={abi}" for abi in abis)]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "download", "--no-deps", "--only-binary=:all:", *target, "-d", folder, *wanted], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True)
    return sum(path.stat().st_size for path in folder.glob("*.whl"))


def provide(folder: Path = FOLDER) -> None:
    """Make protege and what it needs importable, here and in processes that are started: the sources of this checkout,
    and the wheels where something is missing. Ends the program with a sentence where something is missing still."""
    places = [str(ROOT / "src")]
    if any(find_spec(name) is None for name in IMPORTED):
        places.append(_unpacked(folder))
    sys.path[:0] = places
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])
    if missing := [name for name in ("torch", *IMPORTED) if find_spec(name) is None]:
        sys.exit(
            f"{', '.join(missing)} cannot be imported by {sys.executable}; expected torch on this machine and the rest "
            f"there or in {folder.name}/: collect it by make gpu-wheels where there is a package index."
        )


def _unpacked(folder: Path) -> str:
    """A scratch folder with what the wheels hold."""
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    site = tempfile.mkdtemp(prefix="protege-gpu-")
    atexit.register(shutil.rmtree, site, ignore_errors=True)
    for wheel in sorted(folder.glob("*.whl")):
        distribution, *_, python, abi, _ = wheel.stem.split("-")
        if here not in python.split(".") and abi not in ("none", "abi3"):
            sys.exit(
                f"{wheel.name} is not for this Python, {here}; expected wheels for it: make gpu-wheels "
                f"GPU_VERSION={sys.version_info.major}.{sys.version_info.minor}."
            )
        if distribution not in KEPT or find_spec(distribution) is None:
            with zipfile.ZipFile(wheel) as file:
                file.extractall(site)
    return site


if __name__ == "__main__":
    folder, python = Path(sys.argv[1]), sys.argv[2]
    size = collect(folder, python)
    print(f"{folder}: {len([*folder.glob('*.whl')])} wheels for Python {python}, {size / 2**20:.1f} MiB")
    if size > LIMIT:
        sys.exit(f"they take more than {LIMIT >> 20} MiB; leave out what a machine with torch has.")
