"""Weights that are damaged or do not fit: what processes of `medsr` say, leave and never do."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path

import pytest
import torch
from bundle_copies import save_weights, tiny_network
from processes import contents, save, told


def flip(path: Path) -> None:
    """One bit of a number, which no other check sees."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    start = content.index(largest.filename.encode()) + largest.file_size // 2
    content[start + 300] ^= 1
    path.write_bytes(content)


def not_finite(path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.last.weight.view(-1)[3] = float("nan")
    save_weights(network, path)


def with_argument(name: str, value: object, path: Path) -> None:
    save_weights(tiny_network(), path)
    content = torch.load(path, weights_only=True)
    content["network"][name] = value
    torch.save(content, path)


def with_model(model: object, path: Path) -> None:
    save_weights(tiny_network(), path)
    torch.save(torch.load(path, weights_only=True) | {"model": model}, path)


WEIGHTS = {
    "missing": (lambda p: None, "no such weights file"),
    "text": (lambda p: p.write_text("no weights"), "not a PyTorch weights file, or a damaged one"),
    "empty": (lambda p: p.touch(), "not a PyTorch weights file, or a damaged one"),
    "cut short": (lambda p: (save_weights(tiny_network(), p), p.write_bytes(p.read_bytes()[:9000])), "damaged"),
    "one bit flipped": (lambda p: (save_weights(tiny_network(), p), flip(p)), "damaged"),
    "no dictionary": (lambda p: torch.save([1, 2], p), "medsr convert"),
    "of another scale": (lambda p: save_weights(tiny_network(scale=2), p), "scale is 2 in .* and 4"),
    "of two channels": (
        lambda p: save_weights(tiny_network(in_channels=2, out_channels=2), p),
        "in_channels is 2 in .* and 1",
    ),
    "of arguments that do not go together": (functools.partial(with_argument, "num_heads", 5), "num_heads is 5, which"),
    "of an unknown argument": (functools.partial(with_argument, "gates", 3), "unexpected keyword argument 'gates'"),
    "of an expression": (functools.partial(with_argument, "mlp_ratio", "$print(1)"), r"mlp_ratio is '\$print\(1\)'"),
    "not finite": (not_finite, "not finite"),
    "of layers without end": (functools.partial(with_argument, "num_blocks", 10**9), "num_blocks is 1000000000"),
    "of more layers than there are": (functools.partial(with_argument, "num_blocks", 10**6), "more than 20000 layers"),
    "of more numbers than it has": (functools.partial(with_argument, "embed_dim", 12 * 2**12), "its weights are"),
    "of no dictionary": (lambda p: torch.save({"model": {}, "network": [1]}, p), "no .*dictionary; official weights"),
    "of no tensors": (functools.partial(with_model, [1, 2]), "expected a dictionary of tensors"),
    "of text for tensors": (functools.partial(with_model, {"a": "b"}), r"w\.pt: "),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_damaged_or_do_not_fit_are_refused(medsr_process, bundle, tmp_path, case):
    make, reason = WEIGHTS[case]
    make(tmp_path / "w.pt")
    save(tmp_path / "a.nii.gz")
    before = contents(tmp_path)
    result = medsr_process("upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle, "--weights", "w.pt")
    told(result, r"w\.pt: ", reason)
    assert contents(tmp_path) == before
