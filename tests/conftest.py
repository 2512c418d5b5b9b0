"""What all tests share: a cache folder of their own, one thread, workers that are forks, a small teacher on digits."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of subprocesses, too: two tests run at a time

import pytest
import torch
from forks import ForkedWorker

from protege.run import latency, workers


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch) -> Path:
    """Each test has its own ``PROTEGE_CACHE``, so that none is served what another paid for."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PROTEGE_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks this small only lose by threads, and subprocesses are told the same number."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """What is there, most of it imported modules, need not be looked through again at the end of every phase."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def few_turns() -> Iterator[None]:
    """Networks are timed in a few short turns, but for the tests of how precise that is."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LEAST": 2, "MOST": 2, "TURN": 0.0}.items():
            patch.setattr(latency, name, value)
        yield


@pytest.fixture(autouse=True, scope="session")
def forked_workers() -> Iterator[None]:
    """Studies start forks of this process, but for the tests of what they start else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "start", ForkedWorker)
        yield


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory) -> Path:
    """The student folder of a small network trained on digits to about 0.9."""
    from protege import train

    out = tmp_path_factory.mktemp("teacher") / "run"
    train("zoo:mlp?hidden=32", "digits", out=out, epochs=6, batch_size=32, lr=0.05, weight_decay=0)
    return out / "student"
