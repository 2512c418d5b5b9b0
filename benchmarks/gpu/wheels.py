"""What a machine with a GPU lacks to run protege, as wheels: collected where there is a package index, unpacked there.

    python benchmarks/gpu/wheels.py gpu-wheels [--python 3.12]      # make gpu-wheels

Such a machine has Python, torch and no network. A wheel is a zip file of what lies in `site-packages`, so it needs
neither pip nor a virtual environment, which would not see a torch that lies in another one.
"""

from __future__ import annotations

import argparse
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
WHEELS = ROOT / "gpu-wheels"
LIMIT = 64 * 2**20  # bytes of all wheels together
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

NEEDED = {  # distribution → what is imported of it
    **{"accelerate": "accelerate", "torch-pruning": "torch_pruning", "safetensors": "safetensors", "numpy": "numpy"},
    **{"pydantic": "pydantic", "pydantic_core": "pydantic_core", "typer": "typer", "rich": "rich", "pillow": "PIL"},
    **{"tomli_w": "tomli_w", "filelock": "filelock", "psutil": "psutil", "jinja2": "jinja2"},
    # what those need, in turn
    **{"markupsafe": "markupsafe", "annotated-types": "annotated_types", "typing-inspection": "typing_inspection"},
    **{"typing_extensions": "typing_extensions", "markdown-it-py": "markdown_it", "mdurl": "mdurl", "tqdm": "tqdm"},
    **{"pygments": "pygments", "shellingham": "shellingham", "annotated-doc": "annotated_doc", "click": "click"},
    **{"huggingface_hub": "huggingface_hub", "fsspec": "fsspec", "packaging": "packaging", "pyyaml": "yaml"},
    **{"httpx2": "httpx2", "httpcore2": "httpcore2", "h11": "h11", "anyio": "anyio", "idna": "idna"},
    **{"truststore": "truststore"},
}
"""All that the checks import beside torch; pyarrow, scipy and scikit-learn, the largest, are not."""
KEPT = ("numpy",)  # stays that of the machine where it has one: other packages there are built against it


def collect(folder: Path, python: str) -> int:
    """Download the wheels of `constraints.txt` for a version of Python on Linux, and build our own; bytes in all."""
    names = {_plain(name) for name in NEEDED}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if "==" in line and _plain(line.partition("==")[0]) in names]
    if missing := names - {_plain(line.partition("==")[0]) for line in wanted}:
        sys.exit(f"constraints.txt has no version of {', '.join(sorted(missing))}; expected one of each: add it.")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    number = python.replace(".", "")
    target = ["--python-version", python, "--implementation", "cp"]
    target += [part for abi in (f"cp{number}", "abi3", "none") for part in ("--abi", abi)]
    target += [part for platform in (*PLATFORMS, "any") for part in ("--platform", platform)]
    subprocess.run([*pip, "download", "--no-deps", "--only-binary=:all:", *target, "-d", folder, *wanted], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True)
    return sum(path.stat().st_size for path in folder.glob("*.whl"))


def provide(folder: Path = WHEELS) -> None:
    """Make protege and what it needs importable, here and in processes that are started: the sources of this checkout,
    and the wheels where something is missing. Ends the program with a sentence where something is missing still."""
    places = [str(ROOT / "src")]
    if any(find_spec(name) is None for name in NEEDED.values()):
        places.append(_unpacked(folder))
    sys.path[:0] = places
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])
    if missing := [name for name in ("torch", *NEEDED.values()) if find_spec(name) is None]:
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


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12")
    given = parser.parse_args()
    size = collect(given.folder, given.python)
    count = len(list(given.folder.glob("*.whl")))
    print(f"{given.folder}: {count} wheels for Python {given.python}, {size / 2**20:.1f} MiB")
    if size > LIMIT:
        sys.exit(f"they take more than {LIMIT >> 20} MiB; leave out what a machine with torch has.")


if __name__ == "__main__":
    main()
