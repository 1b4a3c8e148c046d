"""`convkit sass` and `convkit ptx`: a user's kernel compiled by NVRTC, with no GPU."""

from __future__ import annotations

import pytest

from convkit import new
from convkit.cli import main
from convkit.cuda import nvrtc, sass
from convkit.errors import MissingExtra


@pytest.fixture
def mine(tmp_path):
    return str(new.write("conv2d_fprop", tmp_path / "mine.cu"))


def test_ptx(mine, capsys, cuda_compiler):
    assert main(["ptx", mine, "--arch", "sm_80"]) == 0
    out = capsys.readouterr().out
    assert ".entry mine(" in out and ".target sm_80" in out and "\0" not in out


def test_sass(mine, capsys, cuda_compiler):
    assert main(["sass", mine]) == 0
    out = capsys.readouterr().out
    assert "FFMA" in out and "/*0000*/" in out and "mine.cu, float32" in out and "sm_90a, NVRTC" in out
    row = out.splitlines()[-1].split()
    assert row[0] == "mine" and 16 <= int(row[1]) <= 255 and row[2:5] == ["0", "0", "0"]
    assert main(["sass", mine, "--summary"]) == 0
    assert "/*0000*/" not in capsys.readouterr().out


def test_another_tile(capsys, cuda_compiler):
    assert main(["sass", "conv2d_fprop_implicit_gemm_mma", "--summary"]) == 0
    whole = capsys.readouterr().out
    assert "TILE_M = 128" in whole and "64 HMMA of" in whole
    assert main(["sass", "conv2d_fprop_implicit_gemm_mma", "--summary", "--tile", "TILE_M=64,WARP_M=32"]) == 0
    half = capsys.readouterr().out
    assert "TILE_M = 64" in half and "32 HMMA of" in half


@pytest.mark.parametrize("command", ["ptx", "sass"])
def test_an_error_names_the_line(command, mine, capsys, cuda_compiler):
    with open(mine) as file:
        text = file.read()
    with open(mine, "w") as file:
        file.write(text.replace("sum += map", "sum += mop"))
    line = next(n for n, one in enumerate(text.splitlines(), 1) if "sum += map" in one)
    assert main([command, mine]) == 2
    assert f"mine.cu({line}): error" in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nothing.cu"], "nothing.cu cannot be read"),
        (["mine.py"], "mine.py is no CUDA kernel"),
        (["relu_fprop_vectorised"], "did you mean 'relu_fprop_vectorized'"),
        (["relu_fprop_vectorized", "--arch", "hopper"], "unknown architecture 'hopper': such as sm_80"),
        (["conv2d_fprop_implicit_gemm", "--tile", "TILE_M"], "--tile takes NAME=NUMBER"),
        (["conv2d_fprop_implicit_gemm", "--tile", "TILE_O=8"], "did you mean 'TILE_"),
        (["relu_fprop_vectorized", "--dtype", "float64"], "unknown dtype of relu_fprop_vectorized 'float64'"),
    ],
)
def test_refusals(arguments, said, capsys, cuda_compiler):
    for command in ("ptx", "sass"):
        assert main([command, *arguments]) == 2
        assert said in capsys.readouterr().err


def test_what_is_missing_comes_with_the_command(mine, capsys, monkeypatch):
    def gone(*_):
        raise MissingExtra("compiling CUDA kernels", "cuda-core", "cuda13")

    monkeypatch.setattr(nvrtc, "_toolchain", gone)
    for command in ("ptx", "sass"):
        assert main([command, mine]) == 2
        assert "pip install 'convkit[cuda13]'" in capsys.readouterr().err


def test_nvdisasm_may_be_missing(mine, capsys, monkeypatch, cuda_compiler):
    def gone():
        raise MissingExtra("disassembling CUDA kernels (nvdisasm)", "nvidia-cuda-nvdisasm", "static")

    monkeypatch.setattr(sass, "nvdisasm", gone)
    assert main(["sass", mine]) == 2
    assert "pip install 'convkit[static]'" in capsys.readouterr().err
