"""`convkit new`: what it writes passes the gate as it is, in every language and for every op that it has."""

from __future__ import annotations

import ast
import re
import shutil
import sys

import cupy_kernels
import fake_cupy
import numpy as np
import pytest

import convkit as ck
from convkit import check, devices, explain, new, registry
from convkit.cli import main
from convkit.cuda import header
from convkit.cuda.warnings import warnings_of
from convkit.op import OPS

EVERY = [(language, op) for language in new.LANGUAGES for op in new.ops_of(language)]
#: The main ops, which every language for users' kernels has at least.
MAIN = {"relu_fprop", "relu_dgrad", "conv2d_fprop"}


@pytest.fixture(autouse=True)
def _forgotten():
    """What a test registers is gone afterwards."""
    registry.builtin()
    with pytest.raises(ZeroDivisionError), registry.whole():
        yield
        raise ZeroDivisionError


def written(tmp_path, language, op, stem="mine"):
    return new.write(op, tmp_path / f"{stem}{new.LANGUAGES[language].suffix}", language)


def _needed(language, need):
    if language == "triton":  # a gigabyte, which comes with PyTorch for GPUs: not asked for anywhere
        pytest.importorskip("triton")
        need("torch")
    elif language in ("torch", "jax"):
        need(language)


def passes(path, capsys, *options):
    status = main(["check", str(path), "--quick", *options])
    out = capsys.readouterr().out
    assert status == 0 and " passes" in out, out


@pytest.mark.parametrize("language", ["cuda", "cpp", "python", "numba"])
def test_a_new_relu_passes(language, tmp_path, capsys, compiler):
    path = written(tmp_path, language, "relu_fprop")
    passes(path, capsys, "--in-process")


def test_a_kernel_may_be_called_a(tmp_path, capsys, compiler):
    assert main(["new", "relu_fprop", str(tmp_path / "a.cu")]) == 0
    passes(tmp_path / "a.cu", capsys, "--in-process")


#: What CI runs of the languages whose compilers take long; of the others all.
_IN_CI = {
    "cuda": ("relu_fprop", "conv2d_fprop", "maxpool2d_fprop", "linear_fprop"),
    "torch": ("relu_fprop", "conv2d_fprop"),
    "jax": ("relu_fprop",),
}


def _marked(language, op):
    thorough = op not in _IN_CI.get(language, (op,))
    return pytest.param(language, op, marks=[pytest.mark.thorough] if thorough else [])


@pytest.mark.slow
@pytest.mark.parametrize("language, op", [_marked(*one) for one in EVERY if one[0] != "cupy"])
def test_every_template_passes(language, op, tmp_path, capsys, compiler, need):
    _needed(language, need)
    # These two change their whole process: a simulator, an interpreter.
    alone = language in ("numba-cuda", "triton")
    passes(written(tmp_path, language, op), capsys, *([] if alone else ["--in-process"]))


@pytest.mark.parametrize("language", new.LANGUAGES)
def test_texts_are_whole(language):
    assert set(new.ops_of(language)) >= MAIN - ({"conv2d_fprop"} if language == "numba-cuda" else set())
    for op in new.ops_of(language):
        text = new.text(op, language, "mine")
        assert max(map(len, text.splitlines())) <= 110, op
        assert "@STEM@" not in text and "@NAME@" not in text
        assert "mine" in text and "convkit check" in text
        for tensor in explain.received(op).tensors:
            assert tensor.name in text
        if new.LANGUAGES[language].suffix == ".py":
            ast.parse(text)


def test_cuda_has_a_text_for_every_op_with_a_kernel(tmp_path):
    with_kernel = {i.op for i in registry.implementations(device="cuda", layout=None)}
    assert with_kernel <= set(new.ops_of("cuda")) and list(new.ops_of("python")) == list(OPS)
    for op in new.ops_of("cuda"):
        file = header.read(written(tmp_path, "cuda", op, f"{op}_mine"))
        assert file.name == "mine" and file.header.rank == -1 and file.header.launches
        assert not warnings_of(file.path), op


def test_the_next_step_is_printed(tmp_path, capsys):
    path = tmp_path / "my kernels" / "mine.cpp"
    path.parent.mkdir()
    assert main(["new", "relu_fprop", str(path)]) == 0
    assert f"next: convkit check '{path}'\n" in capsys.readouterr().out, "as a shell takes it"
    assert ck.register(path)[0].name == "mine"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["relu_fprob", "a.cu"], "unknown op 'relu_fprob'; did you mean 'relu_fprop'?"),
        (["relu_fprop", "a.cu", "--lang", "cuta"], "unknown language 'cuta'; did you mean 'cuda'?"),
        (["relu_fprop", "a-b.cu"], "a-b.cu: the stem becomes the function's name"),
        (["relu_fprop", "class.py"], "class.py: the stem becomes the function's name"),
        (["relu_fprop", "double.cu"], "double.cu: 'double' is a word of C++, and no function's name"),
        (["relu_fprop", "main.cpp"], "main.cpp: 'main' is a word of C++"),
        (["relu_fprop", "1a.py"], "letters, digits and underscores, no digit in front, no keyword"),
        (["relu_fprop", "a.txt"], "a.txt: the file ends in one of .cu, .cpp, .py"),
        (["relu_fprop", "a.py", "--lang", "cpp"], "a.py: a file in C++ ends in .cpp"),
        (["reorder", "a.cpp"], "no template for reorder in C++; there are: "),
        (["relu_fprop", "vectors.py"], "relu_fprop has an implementation 'vectors' already"),
        (["relu_fprop", "no/folder/a.py"], "No such file or directory"),
    ],
)
def test_refusals(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("precious")
    assert main(["new", "relu_fprop", str(path)]) == 2
    assert "exists, and is left as it is" in capsys.readouterr().err and path.read_text() == "precious"


# ---------------------------------------------------------------------------------------------------
# CuPy, on a stand-in for it
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def cupy(monkeypatch, compiler):
    module = fake_cupy.module()
    cupy_kernels.install(module)
    monkeypatch.setitem(sys.modules, "cupy", module)
    devices.gpu_found.cache_clear()
    yield module
    devices.gpu_found.cache_clear()


@pytest.mark.parametrize("op", ["relu_fprop", "relu_dgrad"])
def test_elementwise_kernels_pass_on_a_stand_in(op, cupy, tmp_path):
    _passes_there(written(tmp_path, "cupy", op))


@pytest.mark.slow
def test_a_raw_kernel_passes_on_a_stand_in(cupy, tmp_path):
    _passes_there(written(tmp_path, "cupy", "conv2d_fprop"))


def _passes_there(path):
    verdicts = check.check_these(ck.register(path), quick=True, seed=5)
    assert len(verdicts) > 30 and all(v.ok and not v.declined for v in verdicts), [
        str(v) for v in verdicts if not v.ok
    ]


def test_a_wrong_raw_kernel_fails_there(cupy, tmp_path):
    """The stand-in runs the source: a mistake in it is seen."""
    path = written(tmp_path, "cupy", "relu_fprop")
    path.write_text(path.read_text().replace("x < 0 ?", "x < 1 ?"))
    ck.register(path)
    y = ck.relu_fprop(cupy.asarray(np.float32([0.5, 2])), impl="mine").get()
    assert y.tolist() == [0, 2]


def test_cupy_without_a_gpu_is_not_run(tmp_path, capsys):
    path = written(tmp_path, "cupy", "relu_fprop")
    main(["check", str(path), "--quick", "--in-process"])
    out = capsys.readouterr().out
    assert "not run" in out and "FAILS" not in out


# ---------------------------------------------------------------------------------------------------
# From new to a bench table
# ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_bench_has_a_row_for_each_language(tmp_path, capsys, need):
    """In one run, in turns: a minute."""
    languages = ["cpp", "numba", "python", "torch", "jax"]
    for language in ("torch", "jax"):
        _needed(language, need)
    kernels = []
    for language in languages:
        kernels += ["--kernel", str(written(tmp_path, language, "relu_fprop", f"mine_{language}"))]
    arguments = ["--op", "relu_fprop", "--batch", "1", "--quick", "--against", "none"]
    assert main(["bench", *kernels, *arguments]) == 0
    out = capsys.readouterr().out
    for language in languages:
        assert re.search(rf"^mine_{language} +NCHW +[\d.]+ ", out, re.MULTILINE), out


@pytest.mark.slow
def test_bench_emulates_a_new_cuda_kernel(tmp_path, capsys, compiler):
    """No GPU: the bench says so, and does not time an emulated kernel."""
    path = written(tmp_path, "cuda", "relu_fprop")
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    assert main(["bench", "--kernel", str(path), "--op", "relu_fprop", "--quick", "--against", "none"]) == 2
    assert "cuda" in capsys.readouterr().err


def test_numbers_come_out_right(tmp_path, compiler):
    """One call of each through the public function."""
    x = np.array([-2, -0.0, 3, np.nan], np.float32)
    for language in ("cpp", "python"):
        path = written(tmp_path, language, "relu_fprop", f"mine_{language}")
        ck.register(path)
        np.testing.assert_array_equal(ck.relu_fprop(x, impl=path.stem), [0, 0, 3, np.nan])
