"""Implementations: registering, choosing, refusing; a user's file and what is wrong with it."""

from __future__ import annotations

import functools
import threading

import numpy as np
import pytest
from blocks import blocked

import convkit as ck
from convkit import layouts, registry
from convkit.errors import NoImplementation, OptionError
from convkit.op import OPS
from convkit.ops.conv2d import Conv2d
from convkit.ops.elementwise import Elementwise
from convkit.ops.lrn import LRN
from convkit.registry import ALL_DTYPES, Implementation, select


@pytest.fixture(autouse=True)
def registry_kept():
    ck.implementations()
    before = dict(registry._IMPLEMENTATIONS)
    yield
    registry._IMPLEMENTATIONS.clear()
    registry._IMPLEMENTATIONS.update(before)


X = np.array([-1.0, 2.0], np.float32)


def plant(name, rank=1000, op="relu_fprop", value=7, **declared):
    @ck.implements(op, name=name, rank=rank, **declared)
    def run(problem, *arrays, **options):
        arrays[-1][...] = value

    return run


def test_every_op_has_a_reference_for_every_dtype():
    for op in OPS:
        (found,) = [i for i in ck.implementations(op, device="cpu") if i.name == "reference"]
        assert set(found.dtypes) == {*ALL_DTYPES, *OPS[op].pairs} and found.error == 0
        assert found.rank == min(i.rank for i in ck.implementations(op, device="cpu")), (
            "the reference is the last resort"
        )


def test_every_op_is_public():
    for op in OPS:
        assert callable(getattr(ck, op))
        assert getattr(ck, op).__doc__


def test_listed_in_order_of_preference():
    plant("low", -1000)
    plant("high", 1000)
    names = [i.name for i in ck.implementations("relu_fprop", device="cpu")]
    assert names[0] == "high" and names[-1] == "low"
    assert [i.op for i in ck.implementations()] == sorted(
        (i.op for i in ck.implementations()), key=list(OPS).index
    )
    assert {i.device for i in ck.implementations(device="cuda")} == {"cuda"}


def test_highest_rank_that_accepts_is_chosen():
    plant("picky", 2000, when=lambda g: "not today")
    plant("lacking", 1900, missing=lambda: "no compiler")
    plant("doubles", 1800, dtypes=("float64",))
    plant("coarse", 1700, error=1e-3)
    plant("tensor", 1600, math="tf32")
    plant("good", 1000)
    assert select("relu_fprop", Elementwise((3,))).name == "good"
    assert ck.relu_fprop(X).tolist() == [7, 7]
    assert select("relu_fprop", Elementwise((3,), "float64")).name == "doubles"
    assert select("relu_fprop", Elementwise((3,)), math="tf32").name == "tensor"
    with ck.use(max_error=1e-2):
        assert select("relu_fprop", Elementwise((3,))).name == "coarse"


def test_named_one_is_taken_or_refused_never_replaced():
    plant("doubles", 1800, dtypes=("float64",))
    plant("coarse", -5, error=1e-3, value=9)
    assert ck.relu_fprop(X, impl="coarse").tolist() == [9, 9], "naming it accepts its error"
    with pytest.raises(NoImplementation, match=r"relu_fprop: .*\n  doubles: takes float64, not float32"):
        ck.relu_fprop(X, impl="doubles")
    with ck.use(relu_fprop="doubles"), pytest.raises(NoImplementation, match="doubles: takes float64"):
        ck.relu_fprop(X)


def test_a_refusal_lists_every_candidate_with_its_reason():
    for name in [i.name for i in ck.implementations("relu_fprop", device="cpu")]:
        del registry._IMPLEMENTATIONS["relu_fprop", "cpu", name, "NCHW"]
    plant("picky", 4, when=lambda g: "not on a Monday")
    plant("lacking", 3, missing=lambda: "no compiler on this machine")
    plant("coarse", 2, error=1e-3)
    plant("tensor", 1, math="tf32")
    with pytest.raises(NoImplementation) as caught:
        ck.relu_fprop(X)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("relu_fprop: no implementation for cpu takes x(2,)")
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["picky", "lacking", "coarse", "tensor"]
    for word in ("Monday", "no compiler", "0.001, above max_error = 1e-05", "computes in tf32"):
        assert word in str(caught.value)


FLAG = np.ones(1, np.int32)


def test_what_takes_a_flag_is_read_from_the_signature():
    def plain(g, w, dw, v, w_new, v_new, lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity): ...
    def named(g, w, dw, v, w_new, v_new, *, finite=None, lr, momentum): ...
    def all_of_them(g, *arrays, **options): ...
    def by_place_alone(g, *finite): ...

    taken = {
        run.__name__: Implementation("sgd_momentum", "mine", run).flags
        for run in (plain, named, all_of_them, by_place_alone)
    }
    assert taken == {"plain": (), "named": ("finite",), "all_of_them": ("finite",), "by_place_alone": ()}
    assert Implementation("sgd_momentum", "mine", all_of_them, flags=()).flags == ()
    assert Implementation("sgd_momentum", "mine", functools.partial(named, lr=1)).flags == ("finite",)
    assert Implementation("relu_fprop", "mine", all_of_them).flags == ()
    with pytest.raises(OptionError, match="unknown flag of relu_fprop 'finite'"):
        plant("mine", flags=("finite",))
    (kernel,) = ck.implementations("sgd_momentum", device="cuda")
    assert kernel.flags == ("finite",)


def test_what_does_not_take_a_flag_is_passed_over_where_one_is_given():
    @ck.implements("sgd_momentum", name="old", rank=1000)
    def old(g, w, dw, v, w_new, v_new, *, lr, momentum, weight_decay, dampening, nesterov, lr_in_velocity):
        w_new[...] = v_new[...] = 7

    assert (ck.sgd_momentum(X, X, X, lr=0.1)[0] == 7).all()
    assert (ck.sgd_momentum(X, X, X, lr=0.1, finite=FLAG)[0] != 7).all()
    with pytest.raises(NoImplementation, match=r"sgd_momentum: .*\n  old: does not take finite="):
        ck.sgd_momentum(X, X, X, lr=0.1, finite=FLAG, impl="old")
    with ck.use(sgd_momentum="old"), pytest.raises(NoImplementation, match=r"old: does not take finite="):
        ck.sgd_momentum(X, X, X, lr=0.1, finite=FLAG)


def test_a_flag_is_passed_only_where_it_is_given_and_not_to_be_written():
    seen = []

    @ck.implements("sgd_momentum", name="mine", rank=1000)
    def mine(g, w, dw, v, w_new, v_new, **options):
        seen.append(options.get("finite"))
        if "finite" in options:
            options["finite"][...] = 0

    ck.sgd_momentum(X, X, X, lr=0.1)
    assert seen == [None]
    with pytest.raises(ValueError, match="read-only"):
        ck.sgd_momentum(X, X, X, lr=0.1, finite=FLAG)
    assert np.shares_memory(seen[1], FLAG) and FLAG[0] == 1


def test_a_name_may_stand_for_an_idea_in_several_layouts():
    """The layout is a part of the key; `implementations` lists those for arrays unless told otherwise."""
    maps = np.ones((1, 16, 2, 3), np.float32)
    plant("idea", op="lrn_fprop")
    plant("idea", op="lrn_fprop", value=9, layout="nChw16c")
    assert [i.layout for i in ck.implementations("lrn_fprop") if i.name == "idea"] == ["NCHW"]
    assert [i.label for i in ck.implementations("lrn_fprop", layout="nChw16c") if i.name == "idea"] == [
        "idea nChw16c"
    ]
    assert {i.layout for i in ck.implementations("lrn_fprop", layout=None) if i.name == "idea"} == {
        *("NCHW", "nChw16c")
    }
    assert select("lrn_fprop", LRN.of(maps.shape), layout="nChw16c").layout == "nChw16c"
    assert (ck.lrn_fprop(maps) == 7).all()
    assert (ck.lrn_fprop(blocked(maps)).data == 9).all()


def test_a_name_that_a_layout_lacks_is_refused_in_words():
    maps = blocked(np.ones((1, 16, 2, 3), np.float32))
    with pytest.raises(OptionError, match="'reference' takes tensors in NCHW, not in nChw16c"):
        ck.lrn_fprop(maps, impl="reference")
    with pytest.raises(
        OptionError, match="unknown implementation of lrn_fprop for cpu in nChw16c 'referense'"
    ):
        ck.lrn_fprop(maps, impl="referense")
    plant("boxes", op="lrn_fprop", rank=2000, layout="nChw16c", when=lambda g: "not today")
    with ck.use(lrn_fprop="boxes"), pytest.raises(NoImplementation) as caught:
        ck.lrn_fprop(maps)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("lrn_fprop: no implementation for cpu, in nChw16c, takes ")
    assert rest == ["  boxes: not today"]


def test_a_layout_that_nothing_takes_is_told_which_one_would_do():
    maps = layouts.Tensor.of(np.ones((1, 16, 2, 3), np.float32), "NHWC")
    with pytest.raises(NoImplementation) as caught:
        ck.lrn_fprop(maps)
    _, line = str(caught.value).splitlines()
    assert line == "  one takes it in NCHW or nChw16c (convkit.layouts)"
    for layout in ("NCHW", "nChw16c"):
        ck.lrn_fprop(layouts.Tensor.of(maps.logical(), layout))


def test_use_nests_and_ends():
    plant("seven")
    plant("nine", value=9)
    with ck.use(relu_fprop="seven"):
        assert ck.relu_fprop(X)[0] == 7
        with ck.use(relu_fprop="nine"):
            assert ck.relu_fprop(X)[0] == 9
            assert ck.relu_fprop(X, impl="seven")[0] == 7, "the call's own word counts most"
        assert ck.relu_fprop(X)[0] == 7
        with pytest.raises(ZeroDivisionError), ck.use(relu_fprop="reference"):
            _ = 1 // 0
        assert ck.relu_fprop(X)[0] == 7
    with ck.use(relu_fprop="reference"):
        assert ck.relu_fprop(X).tolist() == [0, 2]


def test_use_is_of_one_thread():
    plant("seven", -2000)
    seen = []
    with ck.use(relu_fprop="seven"):
        thread = threading.Thread(target=lambda: seen.append(ck.relu_fprop(X).tolist()))
        thread.start()
        thread.join()
    assert seen == [[0, 2]]


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: ck.relu_fprop(X, impl="referense"),
            "relu_fprop: unknown implementation .*did you mean 'reference'",
        ),
        (lambda: ck.use(relu_fprop="referense").__enter__(), "did you mean 'reference'"),
        (lambda: ck.use(relu_frop="reference").__enter__(), "did you mean 'relu_fprop'"),
        (lambda: ck.use(max_error=-1).__enter__(), "max_error"),
        (lambda: ck.use(max_eror=1e-6).__enter__(), "did you mean 'max_error'"),
        (lambda: ck.use(tuned="off").__enter__(), "tuned must be True or False, not 'off'"),
        (lambda: ck.use(checked="no").__enter__(), "checked must be True or False, not 'no'"),
        (lambda: ck.use(max_error=float("nan")).__enter__(), "max_error"),
        (lambda: ck.implementations("relu_frop"), "did you mean 'relu_fprop'"),
        (lambda: plant("mine", op="relu_forward"), "unknown op 'relu_forward'"),
        (lambda: plant("mine", math="fp64"), "unknown math 'fp64'"),
        (lambda: plant("mine", layout="NHCW"), "unknown layout 'NHCW'"),
        (lambda: plant("mine", layout=3), "relu_fprop, mine: layout must be a text, not 3"),
        (lambda: plant("mine", rank="high"), "relu_fprop, mine: rank must be an integer, not 'high'"),
        (lambda: plant("mine", when="N == 1"), "when must be a function or None, not 'N == 1'"),
        (lambda: plant("mine", prepare=3), "prepare must be a function or None, not 3"),
        (lambda: plant("mine", compiled="no"), "compiled must be True or False, not 'no'"),
        (lambda: plant("mine", dtypes="float32"), "dtypes must be a tuple, not 'float32'"),
        (lambda: plant("mine", device="cdua"), "unknown device 'cdua'; did you mean 'cuda'"),
        (
            lambda: ck.implements("relu_fprop", name="mine")(3),
            "relu_fprop, mine: a function is needed, not 3",
        ),
        (lambda: plant("mine", layout="nChw16c>nChw16c"), "did you mean 'nChw16c'"),
        (lambda: ck.implementations("lrn_fprop", layout="nChw8c"), "did you mean 'nChw16c'"),
        (
            lambda: select("conv2d_fprop", Conv2d.of((1, 1, 3, 3), (1, 1, 3, 3)), math="tf23"),
            "did you mean 'tf32'",
        ),
    ],
)
def test_unknown_names(call, words):
    with pytest.raises(OptionError, match=words):
        call()


GOOD = """
import numpy as np
import convkit as ck

@ck.implements("relu_fprop", name="{name}", rank=-1000)
def relu(problem, x, y):
    np.maximum(x, {value}, out=y)
"""


def test_a_file_registers(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD.format(name="mine", value=0))
    (found,) = ck.register(path)
    assert (found.op, found.name, found.source) == ("relu_fprop", "mine", str(path))
    assert ck.relu_fprop(X, impl="mine").tolist() == [0, 2]


def test_a_file_can_be_changed_and_registered_again(tmp_path):
    path = tmp_path / "mine.py"
    for value in (0, 5):
        path.write_text(GOOD.format(name="mine", value=value))
        assert len(ck.register(path)) == 1
        assert ck.relu_fprop(X, impl="mine")[0] == value


def test_a_taken_name_is_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(GOOD.format(name="mine", value=0))
    ck.register(tmp_path / "one.py")
    with pytest.raises(OptionError, match=r"already has an implementation 'mine'.*one\.py"):
        ck.register(tmp_path / "two.py")
    (tmp_path / "three.py").write_text(GOOD.format(name="reference", value=0))
    with pytest.raises(OptionError, match="already has an implementation 'reference'"):
        ck.register(tmp_path / "three.py")


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("none.py", None, "no such file"),
        ("mine.cu", "__global__", "mine.cu: no header"),
        ("mine", "", r"a \.cu, a \.cpp or a \.py file"),
        ("empty.py", "", "registers nothing"),
        ("broken.py", "def (", "SyntaxError"),
        ("leaves.py", "raise SystemExit(0)", "SystemExit"),
        (
            "dtypes.py",
            GOOD.format(name="m", value=0).replace("rank", "dtypes=('float8',), rank"),
            "unknown dtype",
        ),
        ("raises.py", GOOD.format(name="half", value=0) + "\n1 / 0\n", "ZeroDivisionError"),
        ("wrong.py", GOOD.format(name="m", value=0).replace("relu_fprop", "relu"), "unknown op 'relu'"),
        ("declares.py", GOOD.format(name="m", value=0).replace("rank", "speed"), "speed"),
    ],
)
def test_a_bad_file_leaves_nothing_behind(tmp_path, name, text, words):
    before = ck.implementations()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(OptionError, match=words):
        ck.register(tmp_path / name)
    assert ck.implementations() == before


def test_refusal_of_a_problem():
    one = Implementation("relu_fprop", "one", lambda *a: None, when=lambda g: "odd" if g.size % 2 else None)
    assert one.refusal(Elementwise((4,))) is None
    assert one.refusal(Elementwise((3,))) == "odd"
    assert one.refusal(Elementwise((4,), "float16")) == "takes float32, not float16"


def test_workspace_is_given_aligned():
    seen = []

    @ck.implements("relu_fprop", name="scratch", rank=1000, workspace=lambda g: 10 * g.size)
    def run(problem, x, y, *, workspace):
        seen.append((workspace.dtype, workspace.size, workspace.ctypes.data % 64))
        y[...] = x

    ck.relu_fprop(X)
    assert seen == [(np.uint8, 20, 0)]


def test_unknown_devices_and_paths():
    with pytest.raises(OptionError, match="unknown device 'tpu'"):
        ck.implementations(device="tpu")
    with pytest.raises(OptionError, match="a path is needed"):
        ck.register(None)


@pytest.mark.parametrize("given", [True, False, ""])
def test_when_gives_none_or_a_reason(given):
    """A condition, as `when` of a .cu file is, would decline what fits."""
    implementation = registry.Implementation(
        "relu_fprop", "mine", lambda p, x, y: None, when=lambda problem: given
    )
    with pytest.raises(OptionError, match="it gives None where the problem fits"):
        implementation.refusal(Elementwise((4,), "float32"))


# ---------------------------------------------------------------------------------------------------
# What a newcomer gets wrong
# ---------------------------------------------------------------------------------------------------
def test_a_cuda_kernel_by_name_on_an_array_of_numpy():
    x = np.ones((1, 4, 3, 3), np.float32)
    with pytest.raises(OptionError, match=r"'sliding' is a CUDA kernel: .* `with convkit.emulate\(\):`"):
        ck.lrn_fprop(x, impl="sliding")
    with pytest.raises(OptionError, match="unknown implementation of lrn_fprop for cpu 'slide'"):
        ck.lrn_fprop(x, impl="slide")


@pytest.mark.parametrize(
    "op, run, words",
    [
        ("relu_fprop", lambda x, y: None, r"called as run\(problem, x, y\), which .* too many positional"),
        ("relu_fprop", lambda problem, x, y, z: None, "missing a required argument: 'z'"),
        ("conv2d_fprop", lambda problem, x, w, b, y: None, r"run\(problem, x, w, b, y, \*, relu\)"),
        ("dropout_fprop", lambda p, x, y, **options: None, "multiple values for argument 'p'"),
    ],
)
def test_a_function_that_does_not_take_the_arguments_is_refused(op, run, words):
    before = registry.generation()
    with pytest.raises(OptionError, match=words):
        ck.implements(op, name="wrong")(run)
    assert registry.generation() == before


def test_a_function_that_takes_more_is_taken(monkeypatch):
    monkeypatch.setattr(registry, "_IMPLEMENTATIONS", dict(registry._IMPLEMENTATIONS))

    def run(problem, x, y, *, workspace, more=1):
        y[...] = np.maximum(x, 0)

    ck.implements("relu_fprop", name="more", workspace=lambda problem: 64)(run)
    ck.implements("relu_fprop", name="any")(lambda *arguments, **options: None)
    assert (ck.relu_fprop(-np.ones(3, np.float32), impl="more") == 0).all()


def test_tf32_comes_with_its_error():
    """Arithmetic that a call accepts is not refused for its error, unless a bound is set."""
    plant("tensor", 1600, math="tf32", error=4e-4)
    assert select("relu_fprop", Elementwise((3,)), math="tf32").name == "tensor"
    assert select("relu_fprop", Elementwise((3,))).name != "tensor"
    with ck.use(max_error=1e-5):
        assert select("relu_fprop", Elementwise((3,)), math="tf32").name != "tensor"
