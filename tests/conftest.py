"""What all tests share."""

import functools
import logging
import os
from pathlib import Path

import pytest

# threads of each worker on all cores would take twice as long; torch reads this once
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

LONG = (
    *("test_install.py", "test_readme.py", "upscaling/test_memory.py", "bundles/test_finetuning.py"),
    *("bundles/test_bundles.py", "weights/test_vendoring.py", "networks/test_contract.py", "bundles/test_lgsr.py"),
    *("test_machines.py", "upscaling/test_cohort.py", "data/dicom/test_series.py", "bundles/test_comparison.py"),
    *("commands/test_upscale.py", "commands/test_benchmark.py", "upscaling/test_ends.py", "data/test_bad_volumes.py"),
    *("test_cluster.py", "test_cli.py", "bundles/test_training.py", "evaluation/test_tables.py"),
)
"""Files that take longest come first, so that no process is left alone with one in the end."""


def pytest_configure(config):
    config.option.loadscopereorder = False  # xdist's order is by the number of tests


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def names_of_monai():
    """Each configuration has MONAI look through all of its modules for the names of its classes: here once."""
    from warm_python import remember_names

    remember_names()


@pytest.fixture(autouse=True)
def log_level():
    """`medsr` and bundles set up the log for their process, which here goes on with other tests."""
    logging.getLogger("medsr_monai").setLevel(logging.NOTSET)
    yield
    for handler in logging.getLogger().handlers[:]:
        if type(handler) is logging.StreamHandler:  # of a stream that ends with the test
            logging.getLogger().removeHandler(handler)


@pytest.fixture
def medsr(capfd, monkeypatch, tmp_path):
    """Run `medsr` in this process, in an empty folder: exit code, stdout and stderr."""
    from medsr_monai import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            cli.main([str(a) for a in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The bundle rdst_e with a small network and its weights."""
    from bundle_copies import tiny_bundle

    return tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def warm():
    """Processes of `medsr` and `monai.bundle` that are forked from one which has torch and MONAI imported."""
    from warm_python import WarmPython

    if not hasattr(os, "fork"):
        pytest.skip("processes are forked")
    warm = WarmPython()
    yield warm
    warm.end()


@pytest.fixture(scope="session")
def warm_python(warm):
    """The path of such a Python; beside it lie such a `medsr` and `torchrun`."""
    return warm.folder / "python"


@pytest.fixture
def undrawn(monkeypatch):
    """Quality pictures are empty: to draw them takes longer than all else of a small volume."""
    from matplotlib.figure import Figure

    from medsr_monai.upscaling.quality import QualityCheck

    monkeypatch.setattr(QualityCheck, "draw", lambda *arguments: Figure(figsize=(1, 1), dpi=10))


@pytest.fixture(scope="session")
def processes(warm, tmp_path_factory):
    """Processes of `medsr` that may be limited and killed."""
    from processes import Processes

    return Processes(warm, tmp_path_factory.mktemp("processes"))


@pytest.fixture
def medsr_process(processes, tmp_path, monkeypatch):
    """Run `medsr` in a process whose working folder, and the test's, is ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(processes.run, folder=tmp_path)


@pytest.fixture
def warm_spawn(warm_python):
    """What multiprocessing spawns are such processes, too."""
    from multiprocessing import resource_tracker, spawn

    resource_tracker.ensure_running()
    before = spawn.get_executable()
    spawn.set_executable(str(warm_python))
    yield
    spawn.set_executable(before)
