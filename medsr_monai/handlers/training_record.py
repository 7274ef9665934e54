"""The JSON beside a checkpoint, which says what the weights were trained with."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from ignite.engine import Engine

from medsr_monai.handlers.process_group import process_count
from medsr_monai.metrics.report import json_values
from medsr_monai.records.sidecar import (
    INTENDED_USE,
    file_record,
    read_sidecar,
    recorded,
    sha256,
    source_files,
    source_record,
    versions,
)
from medsr_monai.weights.load import save_atomically
from medsr_monai.weights.stated import METADATA

__all__ = ["TrainingRecord", "extend_record"]

FOLDERS = ("bundle_root", "ckpt_dir", "dataset_dir", "output_dir")
"""Settings that name folders of this machine, which are not recorded."""


class TrainingRecord:
    """The record of a training for the JSON beside its files: what it consists of and how far it has come.

    Everything is hashed once, when the training starts. Images are named relative to the folder of the data, all other
    files without any folder. A resumed training goes on with the list of ``Runs`` of the file that it resumes from.

    Args:
        settings: the configuration's ids and their values, as a bundle's ``$__local_refs`` holds them when the
            training starts, with whatever an overlay or the command line has changed. Of the top level are recorded:
            numbers, words and lists of these, the class of the loss, and files by name and checksum.
        files: the data list of each part, such as ``training`` and ``validation``.
        bundle_root: folder of the bundle, for its name and version; None leaves them out.
    """

    def __init__(
        self, settings: Mapping[str, object], files: Mapping[str, Sequence[Mapping]], bundle_root: str | None = None
    ) -> None:
        self.settings = settings
        self.files = files
        self.bundle_root = bundle_root
        self.runs: list[dict[str, Any]] = []
        self.content: dict[str, Any] = {}
        self.started = 0.0

    def start(self, engine: Engine, resumed_from: Path | None = None) -> None:
        """Hash the files and begin a run, which follows those in the JSON of the file ``resumed_from``."""
        self.runs = _earlier_runs(resumed_from)
        settings = _top_level(self.settings)
        named = {name: value for name, value in settings.items() if isinstance(value, str) and os.path.isfile(value)}
        self.content = {
            "IntendedUse": INTENDED_USE,
            "GeneratedBy": [{"Name": "medsr_monai", "Version": versions()["medsr_monai"], "Command": "training"}],
            "Bundle": self._bundle(),
            "Settings": _settings(self.settings),
            "Files": {name: file_record(path) for name, path in named.items()},
            "Inputs": self._inputs(),
        }
        device = torch.device(str(self.settings.get("device", "cpu")))
        self.started = perf_counter()
        self.runs.append(
            {
                "Started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "AfterEpoch": engine.state.epoch,
                "Device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                "Processes": process_count(),
                "Threads": torch.get_num_threads(),
                "Versions": versions(),
            }
        )

    @contextlib.contextmanager
    def written(self, path: Path, engine: Engine, facts: Mapping[str, object]) -> Iterator[Path]:
        """Give a temporary name to write ``path`` to; the file and its JSON take their names together.

        Args:
            path: the weights file.
            engine: the trainer.
            facts: plain values that are recorded beside epoch, steps and seconds.
        """
        self.runs[-1]["Seconds"] = round(perf_counter() - self.started, 3)
        training = {
            "Epoch": engine.state.epoch,
            "Steps": engine.state.iteration,
            "Seconds": round(sum(run.get("Seconds", 0.0) for run in self.runs), 3),
            **facts,
            "Runs": self.runs,
        }
        record = json.loads(json.dumps(json_values(self.content | {"Training": training})))
        with recorded(path, record) as (partial,):
            yield partial

    def _bundle(self) -> dict[str, Any] | None:
        if self.bundle_root is None:
            return None
        folder = Path(self.bundle_root).resolve()
        file = folder / METADATA
        return {"Name": folder.name, "Version": json.loads(file.read_text())["version"]} if file.is_file() else None

    def _inputs(self) -> list[dict[str, Any]]:
        base = self.settings.get("dataset_dir")
        lists: dict[str, set[str]] = {}
        for part, items in self.files.items():
            for item in items:
                for value in item.values():
                    for path in value if isinstance(value, (list, tuple)) else [value]:
                        if isinstance(path, (str, os.PathLike)) and os.path.exists(path):
                            lists.setdefault(str(path), set()).add(part)
        records = []
        for path, parts in lists.items():
            record = source_record(path, source_files(path))
            if base and Path(path).resolve().is_relative_to(Path(str(base)).resolve()):
                record["Name"] = Path(path).resolve().relative_to(Path(str(base)).resolve()).as_posix()
            records.append(record | {"Lists": sorted(parts)})
        return records


def extend_record(path: str | os.PathLike, content: object, facts: Mapping[str, object]) -> None:
    """Write new content to a weights file that a training wrote, and further facts about the training to its JSON."""
    path = Path(path)
    record = read_sidecar(path)
    if record is None:  # the weights come from elsewhere
        save_atomically(content, path)
        return
    record["Training"] |= facts
    with recorded(path, record) as (partial,):
        torch.save(content, partial)


def _earlier_runs(path: Path | None) -> list[dict[str, Any]]:
    """The runs that made a file, if its JSON is there and has the file's checksum."""
    record = None if path is None else read_sidecar(path)
    if record is None or record["Outputs"][0].get("SHA256") != sha256(path):
        return []
    return list(record.get("Training", {}).get("Runs", []))


def _top_level(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings of the top level but those that name folders."""
    return {name: value for name, value in settings.items() if not re.search("::|#", name) and name not in FOLDERS}


def _settings(settings: Mapping[str, object]) -> dict[str, object]:
    told = {}
    for name, value in _top_level(settings).items():
        if name == "loss" and isinstance(value, torch.nn.Module):
            told[name] = type(value).__name__
        else:
            with contextlib.suppress(TypeError):
                told[name] = _told(value)
    return told


def _told(value: object) -> object:
    """A value as JSON has it, a file by its name.

    Raises:
        TypeError: something else, or a path of something else.
    """
    if isinstance(value, (list, tuple)):
        return [_told(one) for one in value]
    if isinstance(value, str) and os.path.isfile(value):
        return Path(value).name
    if isinstance(value, torch.device):
        return str(value)
    if not (value is None or isinstance(value, (bool, int, float, str))) or os.sep in str(value):
        raise TypeError(f"{type(value)} is no setting")
    return value
