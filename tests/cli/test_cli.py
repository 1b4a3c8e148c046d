"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import fake_cupy
import pytest
import simulated
from conftest import need

from convkit import check, cli, devices, implements, registry
from convkit.bench import command, work
from convkit.bench.measure import clocks
from convkit.cli import main
from convkit.cpu import probe
from convkit.cuda.emulate import Emulator
from convkit.network.layers import Constant, Conv, Flatten, Linear, MaxPool, Normal, Relu
from convkit.network.presets import PRESETS, Preprocess, Preset


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "photo.png"
    need("PIL.Image").effect_noise((256, 256), 60).convert("RGB").save(path)
    return str(path)


def test_alexnet_prints_the_table(image, capsys, tmp_path, monkeypatch):
    """With times of a clock on which every call takes a millisecond."""
    monkeypatch.setattr(clocks, "_ns", simulated.Clock(look=1e-3).ns)
    monkeypatch.setattr(probe, "peak_gflops", lambda **_: probe.Peak(500.0, "by decree", "none", 1))
    report = tmp_path / "report.json"
    status = main(
        ["alexnet", image, "--preset", "owt", "--batch", "1", "--repeats", "1", "--json", str(report)]
    )
    captured = capsys.readouterr()
    assert status == 0
    for text in ("conv1+relu1", "% peak", "error", "images/s", "61,100,840 parameters", "loss"):
        assert text in captured.out
    document = json.loads(report.read_text())
    rows = {row["layer"]: row for row in document["rows"]}
    assert rows["conv2+relu2"]["output"] == "1x192x27x27"
    assert document["peak_gflops"] == 500
    for row in rows.values():
        assert 0 <= row["error"] < 1e-5, row
        assert row["forward_ms"] == pytest.approx(round(row["forward_ms"])) and row["forward_ms"] > 0.9, row
        assert row["peak_percent"] == pytest.approx(100 * row["gflops"] / 500), row
        assert row["gflops"] > 0 or row["layer"] == "flatten", row  # which moves data, and computes nothing
    # Forward, and the gradients of x and of w: three times the products of the definition.
    conv2 = rows["conv2+relu2"]
    done = conv2["gflops"] * 1e6 * (conv2["forward_ms"] + conv2["backward_ms"])
    assert done == pytest.approx(3 * 2 * 192 * 64 * 25 * 27 * 27, rel=0.01)
    assert document["images"] == ["photo.png"] and len(document["losses"]) == 2


def test_implementations_can_be_chosen_and_json_goes_to_stdout(image, capsys):
    argv = [
        "alexnet",
        image,
        "--preset",
        "owt",
        "--batch",
        "1",
        "--repeats",
        "1",
        "--no-errors",
        "--json",
        "-",
    ]
    assert main([*argv, "--impl", "linear_fprop=reference", "--impl", "maxpool2d_fprop=reference"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["layer"]: row for row in document["rows"]}
    assert rows["fc8"]["implementation"].split("/")[0] == "reference"
    assert rows["fc8"]["error"] is None


# ---------------------------------------------------------------------------------------------------
# On a GPU, and in another arithmetic
# ---------------------------------------------------------------------------------------------------
@pytest.fixture
def tiny(monkeypatch):
    """A preset whose step takes no time, also where the emulator runs it; on a clock that only looks move."""
    layers = (
        Conv("conv1", 4, 3, Normal(0.05), Constant(0), padding=1), Relu("relu1"), MaxPool("pool1"),
        Flatten("flatten"), Linear("fc8", None, Normal(0.01), Constant(0)),
    )  # fmt: skip
    small = Preset("tiny", 8, layers, preprocess=Preprocess(resize=8, scale=0.02))
    monkeypatch.setitem(PRESETS, "tiny", small)
    monkeypatch.setattr(clocks, "_ns", simulated.Clock(look=1e-3).ns)
    monkeypatch.setattr(probe, "peak_gflops", lambda **_: probe.Peak(500.0, "by decree", "none", 1))
    return ["--preset", "tiny", "--batch", "2", "--repeats", "1"]


@pytest.fixture
def cupy(monkeypatch, compiler):
    module = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "current", fake_cupy.current_executor(Emulator()))
    for place in (devices, check):
        monkeypatch.setattr(place, "gpu_found", lambda *_: True)
    return module


def test_alexnet_on_a_gpu_trains_as_on_the_cpu(image, tiny, cupy, capsys):
    assert main(["alexnet", image, *tiny, "--json", "-"]) == 0
    cpu = json.loads(capsys.readouterr().out)
    assert cpu["device"] == "cpu" and cpu["peak_gflops"] == 500
    waits = []
    wait = cupy.cuda.runtime.deviceSynchronize
    cupy.cuda.runtime.deviceSynchronize = lambda: (waits.append(1), wait())
    assert main(["alexnet", image, *tiny, "--device", "cuda", "--json", "-"]) == 0
    gpu = json.loads(capsys.readouterr().out)
    assert gpu["device"] == "cuda" and gpu["losses"] == pytest.approx(cpu["losses"], rel=1e-4)
    assert len(waits) > 2 * len(gpu["rows"])  # the time of a call is that of its work, not of its launch
    assert {r["implementation"] for r in gpu["rows"]} != {r["implementation"] for r in cpu["rows"]}
    assert all(0 <= row["error"] < 1e-5 for row in gpu["rows"]) and gpu["update_error"] < 1e-5
    assert gpu["peak_gflops"] is None and all(row["peak_percent"] is None for row in gpu["rows"])


def test_alexnet_on_the_second_gpu(image, tiny, cupy, capsys, monkeypatch):
    used = []
    empty = cupy.empty

    def watched(*args, **kwargs):
        used.append(cupy.cuda.runtime.getDevice())
        return empty(*args, **kwargs)

    monkeypatch.setattr(cupy, "empty", watched)
    assert main(["alexnet", image, *tiny, "--device", "cuda:1", "--no-errors"]) == 0
    out = capsys.readouterr().out
    assert "peak    not measured on a GPU" in out and "conv1+relu1" in out
    assert set(used) == {1} and cupy.cuda.runtime.getDevice() == 0
    assert main(["alexnet", image, *tiny, "--device", "cuda:2"]) == 2
    assert capsys.readouterr().err.endswith(": there is no cuda:2: CuPy sees 2, from cuda:0 to cuda:1\n")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_without_a_gpu_cuda_is_refused_in_a_line(device, image, capsys, monkeypatch):
    monkeypatch.setattr(devices, "gpu_found", lambda *_: False)
    assert main(["alexnet", image, "--device", device]) == 2
    error = capsys.readouterr().err
    assert error.startswith("convkit alexnet: no GPU was found") and error.count("\n") == 1


def test_alexnet_says_which_arithmetic_runs(image, tiny, capsys):
    assert main(["alexnet", image, *tiny, "--no-errors"]) == 0
    assert "math" not in capsys.readouterr().out  # what was asked for runs
    assert main(["alexnet", image, *tiny, "--no-errors", "--math", "tf32"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"conv1\+relu1 +[\w/]+ +fp32 ", out)
    assert "math    tf32 was accepted, but nothing that was picked computes in it: fp32 runs every" in out
    assert main(["alexnet", image, *tiny, "--no-errors", "--math", "tf32", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["math"] == "tf32" and {row["math"] for row in document["rows"]} == {"fp32"}


@pytest.fixture
def coarse():
    """Implementations in tf32, which are picked where it is accepted."""
    before = registry.implementations(layout=None)
    for op in ("linear_fprop", "linear_wgrad", "linear_wgrad_sgd", "linear_dgrad_wgrad_sgd", "conv2d_fprop"):
        for i in before:
            if (i.op, i.name) == (op, "reference"):
                implements(op, name="coarse", math="tf32", rank=10**6)(i.run)
    yield
    for key in [k for k in registry._IMPLEMENTATIONS if k[2] == "coarse"]:
        del registry._IMPLEMENTATIONS[key]


def test_alexnet_says_where_the_arithmetic_asked_for_runs(image, tiny, coarse, capsys):
    assert main(["alexnet", image, *tiny, "--no-errors", "--math", "tf32", "--json", "-"]) == 0
    maths = {row["layer"]: row["math"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert maths["fc8"] == "tf32" and "fp32" in maths["conv1+relu1"] and maths["pool1"] == "fp32"
    assert main(["alexnet", image, *tiny, "--no-errors", "--math", "tf32"]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.startswith("math    tf32 runs in ") and "fc8" in line and line.endswith("; fp32 in the rest")
    assert main(["alexnet", image, *tiny, "--no-errors"]) == 0
    assert "coarse" not in capsys.readouterr().out


def test_bench_marks_what_runs_in_a_finer_arithmetic(coarse):
    from convkit.bench.measure import own

    def marked(math, text):
        (item,) = work.items(work.Wanted(convs=(text,), directions=("fwd",), math=math))
        return {c.name: [m for m in c.marks if m.startswith("in ")] for c in own.entries(item)}

    tf32, fp32 = (marked(math, "1,4,9,9,8,3,3") for math in ("tf32", "fp32"))
    assert tf32.pop("coarse") == [] and "coarse" not in fp32
    assert tf32 and all(marks == ["in fp32"] for marks in tf32.values())
    assert fp32 and not any(fp32.values())


def test_the_small_alexnet(tmp_path, capsys):
    """More photographs than its data had classes, each of which is a class of its own."""
    for i in range(12):
        need("PIL.Image").new("RGB", (40, 36), (20 * i, 100, 200 - 10 * i)).save(tmp_path / f"{i:02}.png")
    argv = ["alexnet", str(tmp_path), "--preset", "small", "--batch", "12", "--repeats", "1", "--json", "-"]
    assert main(argv) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["layer"]: row for row in document["rows"]}
    assert rows["conv1+relu1"]["output"] == "12x32x32x32" and rows["fc8"]["output"] == "12x12"
    assert all(0 <= row["error"] < 1e-5 for row in rows.values())
    assert main(["alexnet", "--diff", "paper", "small"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^conv1.filters +96 +32$", out, re.M) and re.search(
        r"^num_classes +1000 +10$", out, re.M
    )


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 4e-3), ("float16", 1e-3), ("float64", 1e-14)])
def test_the_small_alexnet_in_other_dtypes(dtype, bound, image, capsys):
    argv = ["alexnet", str(image), "--preset", "small", "--batch", "2", "--repeats", "1", "--dtype", dtype]
    assert main([*argv, "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dtype"] == dtype
    errors = [row["error"] for row in document["rows"]]
    assert bound / 100 < max(errors) < bound


def test_diff(capsys):
    assert main(["alexnet", "--diff", "paper", "2012"]) == 0
    out = capsys.readouterr().out
    assert "norm1.groups" in out and "cnorm2.size" in out
    assert main(["alexnet", "--diff", "owt", "owt"]) == 0
    assert "do not differ" in capsys.readouterr().out


def test_a_file_is_all_that_a_command_needs(capsys, tmp_path, monkeypatch):
    (tmp_path / "hello.py").write_text(
        "def add(commands):\n"
        "    commands.add_parser('hello', help='say it').set_defaults(run=lambda args: print('hello') or 3)\n"
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    try:
        assert main(["hello"]) == 3 and capsys.readouterr().out == "hello\n"
        with pytest.raises(SystemExit):
            main(["--help"])
    finally:
        sys.modules.pop("convkit.cli.hello", None)
        vars(cli).pop("hello", None)
    listed = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.M)
    assert listed == [*cli._ORDER, "hello"], "the order of the help, and what it does not name behind it"


def test_list(capsys):
    assert main(["list", "conv2d_fprop"]) == 0
    out = capsys.readouterr().out
    assert "reference" in out and "native extension" in out
    for layout in ("NCHW>nChw16c", "nChw16c>NCHW", "nChw16c"):
        assert re.search(rf"conv2d_fprop +direct +cpu +{layout} +float32", out), layout
    assert "lrn_fprop" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "papr"], "did you mean 'paper'"),
        (["--impl", "conv2d_fprop=referense"], "did you mean 'reference'"),
        (["--impl", "conv2d_frop=reference"], "unknown op 'conv2d_frop'; did you mean 'conv2d_fprop'"),
        (["--impl", "reference"], "takes OP=NAME"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--math", "fp8"], "unknown math 'fp8'"),
        (["--batch", "0"], "batch must be at least 1"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--diff", "paper", "201"], "did you mean '2012'"),
        (["/absent.png"], "no such file or folder"),
        (["--json", "/absent/folder/x.json", "--repeats", "1"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, message, image, capsys):
    images = [] if argv[0].startswith("/") or argv[0] == "--diff" else [image]
    assert main(["alexnet", *images, *argv]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert "% peak" not in captured.out


# ---------------------------------------------------------------------------------------------------
# Malformed values
# ---------------------------------------------------------------------------------------------------
SIZES = "8,64,5,5,128,3,3"
LONG = "9" * 5000


def refused(argv, capsys):
    """The one line of a command that cannot be carried out."""
    try:
        status = main(argv)
    except SystemExit as end:  # argparse's own
        status = end.code
    captured = capsys.readouterr()
    assert status == 2 and captured.err.count("\n") == 1 and not captured.out, (argv, status, captured)
    return captured.err


@pytest.fixture
def nothing_runs(monkeypatch):
    """What is taken for good would run."""

    def ran(*args, **kwargs):
        raise AssertionError("it was taken for good")

    monkeypatch.setattr(command, "_measured", ran)
    monkeypatch.setattr(check, "check_these", ran)
    monkeypatch.setattr("convkit.cli.alexnet._profile", ran)


def test_malformed_values_of_conv_are_named_with_their_key(capsys, nothing_runs):
    for text, message in {
        "pad=x": "pad must be a whole number, or two such as 2x1, not 'x';",
        "pad=": "pad must be a whole number, or two such as 2x1, not '';",
        "pad=1x": "pad must be a whole number, or two such as 2x1, not '1x';",
        "pad=x1": "not 'x1'",
        "pad=1xx2": "not '1xx2'",
        "pad=1x2x3": "pad is one number, or two such as 2x1, not '1x2x3'",
        "pad=-1": "pad must be a whole number, or two such as 2x1, not '-1'",
        "pad=1.5": "not '1.5'",
        "pad==1": "not '=1'",
        "pad=1=2": "not '1=2'",
        "pad=\u0661": "not '\u0661'",
        "pad=99999999999": "must be at most",
        f"pad={LONG}": "pad is a number of 5000 digits, more than 100",
        "stride=x": "stride must be a whole number, or two such as 2x1, not 'x'",
        "stride=0": "stride must be at least 1, not 0",
        "dilation=x": "dilation must be a whole number, or two such as 2x1, not 'x'",
        "dilation=9": "the window spans 19 pixels",
        "groups=x": "groups must be a whole number, not 'x'",
        "groups=2x2": "groups is one number, not '2x2'",
        "groups=0": "not divisible by groups = 0",
        "padding=1": "unknown option 'padding'; did you mean 'pad'?",
        "=1": "unknown option ''",
        "": "'' is neither a size nor option=value",
        "pad": "pad needs a value, such as pad=1",
        "relu": "'relu' is neither a size nor option=value",
        "pad=1,": "'' is no option=value; the sizes come before the options",
        "pad=1,2": "'2' is no option=value; the sizes come before the options",
        "pad=1,pad=2": "pad is there twice; two numbers are pad=2x1",
        "3": "--conv takes 7 sizes, N,C,H,W,K,R,S[,",
    }.items():
        error = refused(["bench", "--device", "cpu", "--conv", f"{SIZES},{text}"], capsys)
        assert message in error and error.startswith("convkit bench: --conv"), text
    for text, message in {
        "": "--conv takes 7 sizes, N,C,H,W,K,R,S[,stride=1][,pad=0][,dilation=1][,groups=1], not ''",
        " ": "not ' '",
        "8,64": "not 2: '8,64'",
        "pad=1": "not 0: 'pad=1'",
        ",": "N must be a whole number, not ''",
        "8,x,5,5,128,3,3": "C must be a whole number, not 'x'",
        "8,64,-5,5,128,3,3": "H must be a whole number, not '-5'",
        "8,64,5,5.0,128,3,3": "W must be a whole number, not '5.0'",
        "8,64,5,5,pad,3,3": "pad needs a value",
        "8,64,5,5,128,,3": "R must be a whole number, not ''",
        "8,64,5,5,128,3,\u00b2": "S must be a whole number, not '\u00b2'",
        f"{LONG},64,5,5,128,3,3": "N is a number of 5000 digits, more than 100",
        f"8,{'9' * 90},5,5,128,3,3": "takes more bytes than an address can reach",
        "0,64,5,5,128,3,3": "an empty batch takes no time",
        "8,64,5,5,\n128,3,x\n": "--conv 8,64,5,5,128,3,x: S must be a whole number, not 'x'",
    }.items():
        assert message in refused(["bench", "--device", "cpu", "--conv", text], capsys), text


def test_white_space_in_a_conv_is_no_part_of_its_name():
    (item,) = work.items(work.Wanted(convs=(f" {SIZES}\n, pad = 1x2\t",), directions=("fwd",)))
    assert item.layer == f"{SIZES},pad=1x2" and item.problem.pad_left == 2


def test_other_malformed_values_are_told_in_a_line(image, capsys, nothing_runs, tmp_path):
    alexnet = ["alexnet", image, "--batch", "1", "--repeats", "1"]
    bench = ["bench", "--device", "cpu"]
    for argv, message in (
        ([*bench, "--batch", "x"], "--batch takes whole numbers of at least 1, such as 1,16, not 'x'"),
        ([*bench, "--batch", "1,1.5"], "not '1.5'"),
        ([*bench, "--batch", "1,"], "--batch takes whole numbers with commas between them, not '1,'"),
        ([*bench, "--batch", LONG], "--batch: a number of 5000 digits, more than 100"),
        ([*bench, "--layers", "conv1;conv2"], "unknown layer of alexnet (paper) 'conv1;conv2'"),
        ([*bench, "--directions", "fwd=1"], "unknown direction 'fwd=1'; did you mean 'fwd'?"),
        ([*bench, "--dtype", "float32,,"], "--dtype takes names with commas between them, not 'float32,,'"),
        ([*bench, "--dtype", "fp32"], "unknown dtype 'fp32'"),
        ([*bench, "--against", "torch,"], "--against takes names with commas between them, not 'torch,'"),
        (
            [*bench, "--op", "conv2d_fprop,conv2d_dgrad"],
            "unknown op 'conv2d_fprop,conv2d_dgrad'; did you mean",
        ),
        ([*bench, "--math", "tf32,fp32"], "unknown math 'tf32,fp32'; did you mean 'tf32'?"),
        ([*bench, "--step", "--math", "tf32"], "--step is measured in fp32, not 'tf32'"),
        ([*bench, "--step", "--net", "vgg"], "unknown network 'vgg'"),
        ([*bench, "--budget", "inf"], "--budget must be at least 0 and below 1e6, not inf"),
        (
            [*bench, "--rounds", "x"],
            "bench: argument --rounds: invalid int value: 'x'; see convkit bench --h",
        ),
        ([*bench, "--layouts", "x"], "argument --layouts: invalid choice: 'x'"),
        ([*bench, "--json", ""], "--json takes a file's name, not ''"),
        ([*bench, "--html", ""], "--html takes a file's name, not ''"),
        ([*bench, "--picture", ""], "--picture takes a file's name, not ''"),
        ([*bench, "--kernel", ""], "'' names no file"),
        ([*bench, ""], "'' names no file"),
        ([*bench, "--bogus"], "convkit bench: unrecognized arguments: --bogus; see convkit bench --help"),
        (["check", "relu_fprop_vectors", "--emulate"], "--emulate is for CUDA kernels; none was named"),
        (["check", "relu_fprop_vectors", "--engine", "ptx"], "--engine ptx is for CUDA kernels; none was"),
        (["check", "relu_fprop_vectors", "--sanitize"], "--sanitize is for CUDA kernels; none was named"),
        (["check", "relu_fprop", "--sanitise"], "--sanitise; did you mean --sanitize?; see convkit check"),
        ([*alexnet, "--dtype", "bflaot16"], "unknown dtype 'bflaot16'; did you mean 'bfloat16'?"),
        ([*alexnet, "--impl", ""], "--impl takes OP=NAME, such as conv2d_fprop=reference, not ''"),
        ([*alexnet, "--impl", "conv2d_fprop="], "not 'conv2d_fprop='"),
        ([*alexnet, "--impl", "=reference"], "not '=reference'"),
        ([*alexnet, "--impl", "max_error=1"], "--impl max_error=1: unknown op 'max_error'"),
        (
            [*alexnet, "--impl", "conv2d_fprop=reference=x"],
            "unknown implementation of conv2d_fprop 'reference=x'",
        ),
        (
            [*alexnet, "--impl", "relu_fprop=reference", "--impl", "relu_fprop=maximum"],
            "--impl names two implementations of relu_fprop: reference and maximum",
        ),
        ([*alexnet, "--lr", "inf"], "--lr must be a finite number of at least 0, not inf"),
        ([*alexnet, "--lr", "nan"], "--lr must be a finite number of at least 0, not nan"),
        ([*alexnet, "--batch", ""], "argument --batch: invalid int value: ''"),
        ([*alexnet, "--batch", "9" * 30], "no memory for a batch of 9999"),
        ([*alexnet, "--device", "cuda:"], "unknown device 'cuda:'"),
        ([*alexnet, "--device", "cuda:-1"], "unknown device 'cuda:-1'"),
        ([*alexnet, "--device", "CUDA"], "unknown device 'CUDA'"),
        ([*alexnet, "--json", ""], "--json takes a file's name, not ''"),
        ([*alexnet, "--json", str(tmp_path)], "it is a folder"),
        (["alexnet", "--diff", "paper"], "argument --diff: expected 2 arguments"),
        (["alexnet", ""], "an empty path names no image"),
        (["compare", "", ""], "'' names no file"),
        (["compare", "a"], "the following arguments are required: b"),
        (["report", ""], "'' names no file"),
        (["report", "-o", "", "x"], "--output takes a file's name, not ''"),
        (["verify", ""], "'' names no file"),
        (["check", "conv2d_fprop=direct"], "unknown op or implementation 'conv2d_fprop=direct'"),
        (["check", "lrn_fprop_slide"], "did you mean 'lrn_fprop_sliding'? Known: lrn_fprop_channels, "),
        (["check", "relu_fprop", "--json", ""], "--json takes a file's name, not ''"),
        (["check", "relu_fprop", "--json", str(tmp_path)], "it is a folder"),
        (["check", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["list", "--device", ""], "unknown device ''"),
        (["source", ""], "unknown kernel ''"),
        ([], "the following arguments are required: COMMAND"),
    ):
        assert message in refused(argv, capsys), argv


def test_a_file_whose_name_is_no_text_is_shown_all_the_same(image, tiny, tmp_path, capsys):
    name = os.fsencode(tmp_path) + b"/a\nb\xff.png"
    with open(image, "rb") as source, open(name, "wb") as target:
        target.write(source.read())
    assert main(["alexnet", os.fsdecode(name), *tiny, "--no-errors"]) == 0
    out = capsys.readouterr().out
    assert r"photographs: a\nb\udcff.png" in out.splitlines()[0]
    assert "Traceback" not in out


def test_check_takes_an_implementation_by_its_whole_name(compiler, capsys):
    assert main(["check", "relu_fprop_vectorized", "relu_fprop_maximum", "--quick", "--seed", "1"]) == 0
    table = capsys.readouterr().out.partition("\n\n")[0]
    rows = [line.split()[:2] for line in table.splitlines() if line.startswith("relu")]
    assert rows == [["relu_fprop", "maximum"], ["relu_fprop", "vectorized"]]


def test_help_and_version_from_the_shell():
    for argv in (["--help"], ["alexnet", "--help"], ["check", "--help"], ["list", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-m", "convkit", *argv], capture_output=True, text=True, check=True
        )
        assert "convkit" in done.stdout and not done.stderr


def test_no_percent_sign_is_doubled_in_the_help(capsys):
    """argparse formats the help of options, and of descriptions only those with %(prog)s."""
    for name in cli._ORDER:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert "%%" not in capsys.readouterr().out, name


def test_piped_output_survives_a_reader_that_leaves():
    command = f"{sys.executable} -m convkit list | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert "implementation" in done.stdout and "Traceback" not in done.stderr
