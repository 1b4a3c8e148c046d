"""Which kernels a GPU has run, as the results in the tree say it."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

import convkit as ck
from convkit.bench import status, work
from convkit.bench.measure import own
from convkit.paths import kernels_dir

NAME = "relu_fprop_vectorized.cu"


def sha(name: str) -> str:
    return hashlib.sha256((kernels_dir() / name).read_bytes()).hexdigest()


def of_gpu_run(folder: Path, *, ok: bool = True, source: str | None = None) -> None:
    document = {
        "machine": {"device": "NVIDIA H200"},
        "kernels": {NAME: source or sha(NAME)},
        "stages": [
            {"name": "compile", "records": [{"key": "lrn_fprop_sliding/float32", "ok": True}]},
            {
                "name": "gate",
                "records": [
                    {"key": "relu_fprop/vectorized/float32/1", "ok": True},
                    {"key": "relu_fprop/vectorized/float16/1", "ok": ok},
                    {"key": "lrn_fprop/sliding/float32/1", "ok": None},
                ],
            },
        ],
    }
    (folder / "gpu-x.json.gz").write_bytes(gzip.compress(json.dumps(document).encode()))


def of_bench(folder: Path, device: str, verdict: str) -> None:
    entry = {"file": f"kernels/{NAME}", "source_sha256": sha(NAME), "status": verdict}
    machine = {"device": device, "name": "NVIDIA H200"}
    document = {"machine": machine, "kernels": {"relu_fprop/vectorized": entry}, "rows": []}
    (folder / "run.json").write_text(json.dumps(document))


def test_a_kernel_that_passed_the_gate_of_a_gpu_run_has_run(tmp_path):
    of_gpu_run(tmp_path)
    assert status.kernels_run(tmp_path) == {NAME: "NVIDIA H200"}
    assert status.sentence(tmp_path).startswith("A GPU has run 1 of the ")


def test_one_that_failed_in_a_dtype_or_has_another_source_has_not(tmp_path):
    for number, fault in enumerate(({"ok": False}, {"source": "0" * 64})):
        folder = tmp_path / str(number)
        folder.mkdir()
        of_gpu_run(folder, **fault)
        assert status.kernels_run(folder) == {}
        assert status.sentence(folder).startswith("No GPU has run the ")


@pytest.mark.parametrize(
    ("device", "verdict", "ran"), [("cuda", "run", True), ("cuda", "not yet", False), ("cpu", "run", False)]
)
def test_a_result_file_of_a_gpu_counts_too(device, verdict, ran, tmp_path):
    of_bench(tmp_path, device, verdict)
    assert bool(status.kernels_run(tmp_path)) == ran


def test_what_is_no_result_is_passed_over(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json.gz").write_bytes(b"no gzip")
    (tmp_path / "c.json").write_text("[]")
    assert status.kernels_run(tmp_path) == status.kernels_run(tmp_path / "none") == {}


def test_the_mark_follows(monkeypatch):
    item = next(i for i in work.items(work.Wanted(layers=("relu1",), directions=("fwd",), batches=(1,))))
    (kernel,) = (i for i in ck.implementations("relu_fprop", device="cuda") if i.name == "vectorized")
    monkeypatch.setattr(status, "kernels_run", dict)
    assert status.UNRUN in own.entry(kernel, item, {}).marks
    monkeypatch.setattr(status, "kernels_run", lambda: {NAME: "NVIDIA H200"})
    assert status.UNRUN not in own.entry(kernel, item, {}).marks
    mine = replace(kernel, source="/tmp/mine.cu")
    assert status.UNRUN in own.entry(mine, item, {}).marks


def test_the_page_on_benchmarks_says_it():
    page = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
    assert status.sentence() in " ".join(page.read_text(encoding="utf-8").split())


def test_the_readme_does_not_contradict_it():
    readme = " ".join((Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8").split())
    assert ("No GPU has run them yet" in readme) == (not status.kernels_run())
