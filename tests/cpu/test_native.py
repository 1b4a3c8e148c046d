"""The C++ kernels' modules, their choice, their thread pool, and threadpoolctl's view of it.

What the kernels compute is the gate's business (test_gate.py, test_cpu.py), not asked here.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import threadpoolctl

import convkit as ck
from convkit import devices
from convkit.check import cases
from convkit.check.attempt import FIRST, Question, attempt
from convkit.cli import main
from convkit.cpu import extension, threads
from convkit.errors import OptionError
from convkit.registry import implementations

ROOT = Path(__file__).resolve().parents[2]
POOL = ROOT / "convkit" / "cpu" / "native" / "kernels"

needs_native = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, without what this session says about the kernels."""
    inherited = {k: v for k, v in os.environ.items() if k not in (extension.VARIABLE, threads.VARIABLE)}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def fresh(monkeypatch):
    """The choice of an instruction set is made anew, and again afterwards."""
    monkeypatch.setattr(devices, "cpu_kernels", None)
    monkeypatch.setattr(extension, "_broken", {})
    monkeypatch.delenv(extension.VARIABLE, raising=False)


# ---------------------------------------------------------------------------------------------------
# Which instruction set
# ---------------------------------------------------------------------------------------------------
@needs_native
def test_the_widest_is_chosen(fresh):
    assert extension.isas(), extension.unusable()
    assert extension.isa() == extension.isas()[0]
    assert extension.kernels() is sys.modules[f"convkit._cpu_{extension.isa()}"]
    assert extension.kernels_missing() is None


@needs_native
def test_another_can_be_chosen(fresh, monkeypatch):
    narrowest = extension.isas()[-1]
    monkeypatch.setenv(extension.VARIABLE, narrowest)
    assert extension.isa() == narrowest
    assert extension.kernels().__name__ == f"convkit._cpu_{narrowest}"


@needs_native
def test_each_module_has_the_registers_that_it_is_compiled_for():
    lanes = {"v4": 16, "v3": 8}
    for isa in extension.isas():
        with extension.using(isa) as module:
            assert extension.kernels() is module and extension.isa() == isa
            assert module.lanes == lanes.get(isa, 4)


@needs_native
def test_none_at_all_can_be_chosen(fresh, monkeypatch):
    monkeypatch.setenv(extension.VARIABLE, "none")
    assert extension.kernels() is None and extension.isa() == "none"
    assert "switched off" in extension.kernels_missing()
    monkeypatch.delenv(extension.VARIABLE)
    monkeypatch.setattr(devices, "cpu_kernels", None)
    chosen = extension.isa()
    with extension.using("none") as module:
        assert module is None and "switched off" in extension.kernels_missing()
    assert extension.isa() == chosen


@needs_native
@pytest.mark.parametrize("isa", ["avx512", "V4", "v4,v3", "v4" if "neon" in extension.isas() else "neon"])
def test_an_instruction_set_that_is_none_here(isa, fresh, monkeypatch):
    usable = f"usable here: {', '.join(extension.isas())}, none"
    with pytest.raises(OptionError, match=f"using.*{isa}.*{usable}"), extension.using(isa):
        pass
    monkeypatch.setenv(extension.VARIABLE, isa)
    for ask in (extension.kernels, extension.kernels_missing, extension.isa):
        with pytest.raises(OptionError, match=f"CONVKIT_ISA.*{isa}.*{usable}"):
            ask()


@needs_native
def test_an_instruction_set_that_the_cpu_lacks_is_not_loaded(fresh, monkeypatch):
    widest, *others = extension.isas()
    monkeypatch.setattr(extension, "_supported", lambda: tuple(others))
    load = extension._load
    monkeypatch.setattr(
        extension, "_load", lambda name: pytest.fail(name) if name.endswith(widest) else load(name)
    )
    assert widest not in extension.isas() and "this CPU" in extension.unusable()[widest]
    assert extension.isa() == (others[0] if others else "none")
    with pytest.raises(OptionError, match="this CPU"), extension.using(widest):
        pass


@needs_native
def test_a_module_that_cannot_be_loaded_makes_way_for_the_next(fresh, monkeypatch):
    widest, *others = extension.isas()
    load = extension._load

    def broken(name):
        return (None, f"{name} cannot be loaded (torn)") if name.endswith(widest) else load(name)

    monkeypatch.setattr(extension, "_load", broken)
    assert extension.isa() == (others[0] if others else "none")
    assert "torn" in extension.unusable()[widest]
    with pytest.raises(OptionError, match="torn"), extension.using(widest):
        pass


@needs_native
def test_a_module_that_was_not_built_says_why(fresh, monkeypatch, tmp_path):
    widest, *others = extension.isas()
    (tmp_path / "reasons").write_text(f"convkit._cpu_{widest}: c++ does not know -march\n")
    monkeypatch.setattr(extension, "_REASON_FILE", tmp_path / "reasons")
    monkeypatch.setattr(extension, "_installed", lambda isa: isa in others)
    assert "c++ does not know -march" in extension.unusable()[widest]
    assert extension.isa() == (others[0] if others else "none")
    monkeypatch.setattr(devices, "cpu_kernels", None)
    monkeypatch.setattr(extension, "_installed", lambda isa: False)
    assert extension.kernels() is None
    assert "c++ does not know -march" in extension.kernels_missing()


def test_without_the_extension_there_are_no_kernels(fresh, monkeypatch):
    monkeypatch.setattr(extension, "load", lambda: None)
    monkeypatch.setattr(extension, "why_missing", lambda: "convkit._native is not built: no luck")
    assert extension.kernels() is None and extension.isas() == () and extension.isa() == "none"
    assert "no luck" in extension.kernels_missing()


def test_an_import_leaves_the_kernels_where_they_are():
    code = "import sys, convkit; print([m for m in sys.modules if '_cpu_' in m])"
    assert python(code).stdout.strip() == "[]"


@needs_native
def test_a_bad_choice_does_not_break_the_import_and_is_one_line():
    done = python("import convkit; print('imported')", CONVKIT_ISA="avx512")
    assert done.stdout.strip() == "imported", done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "convkit", "list"],
        env={**os.environ, "CONVKIT_ISA": "avx512"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "usable here" in done.stderr and done.stderr.count("\n") == 1


@needs_native
def test_the_first_use_of_the_kernels_is_quick():
    code = """if True:
        import time, convkit
        from convkit.cpu import extension as native
        start = time.process_time()
        assert native.kernels() is not None
        print(time.process_time() - start)
    """
    assert min(float(python(code).stdout) for _ in range(3)) < 0.05


@needs_native
@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump is needed to look into a module")
def test_no_module_has_wider_registers_than_it_may():
    wide = {"v2": r"%[yz]mm", "v3": r"%zmm|%[xyz]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b", "v4": None}
    looked = 0
    for isa in set(extension.isas()) & set(wide):
        with extension.using(isa) as module:
            file = module.__file__
        found = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", file], capture_output=True, text=True, check=True
        ).stdout
        assert len(found.splitlines()) > 1000
        if wide[isa]:
            bad = [line for line in found.splitlines() if re.search(wide[isa], line)]
            assert not bad, bad[:5]
        else:
            assert "%zmm" in found
        looked += 1
    assert looked or "v2" not in extension.isas()


# ---------------------------------------------------------------------------------------------------
# convkit list
# ---------------------------------------------------------------------------------------------------
@needs_native
def test_list_names_the_instruction_sets(capsys, monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "3")
    assert main(["list", "relu_fprop", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("op ")  # the table comes first, for scripts
    assert f"C++ kernels: {extension.isa()}" in lines and "threads: 3" in lines
    for isa in extension.isas():
        (line,) = [line for line in lines if line.startswith(f"  {isa}: ")]
        assert line.endswith("in use" if isa == extension.isa() else "usable")
    with extension.using("none"):
        assert main(["list", "relu_fprop", "--device", "cpu"]) == 0
    assert "C++ kernels: none (" in capsys.readouterr().out
    assert main(["list", "relu_fprop", "--device", "cuda"]) == 0
    assert "threads" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------
# How many threads
# ---------------------------------------------------------------------------------------------------
def ours():
    return [entry for entry in threadpoolctl.threadpool_info() if entry["user_api"] == "convkit"]


@needs_native
def test_threadpoolctl_knows_convkit(monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "3")
    (entry,) = ours()
    assert entry["num_threads"] == 3 and entry["version"] == ck.__version__
    json.dumps(entry)
    controller = threadpoolctl.ThreadpoolController()
    assert [c.user_api for c in controller.select(user_api="convkit").lib_controllers] == ["convkit"]
    assert "convkit" not in {c.user_api for c in controller.select(user_api="blas").lib_controllers}


@needs_native
def test_threadpoolctl_limits_and_lifts(monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "4")
    with threadpoolctl.threadpool_limits(limits=2):
        assert threads.count() == 2
        with threadpoolctl.threadpool_limits(limits=1, user_api="convkit"):
            assert threads.count() == 1 and ours()[0]["num_threads"] == 1
        assert threads.count() == 2
        with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
            assert threads.count() == 2
        assert threads.count() == 2
    assert threads.count() == 4
    monkeypatch.setenv(threads.VARIABLE, "5")  # nothing of the limit is left
    assert threads.count() == 5


@needs_native
def test_a_limit_holds_for_the_first_call_too():
    code = """if True:
        import threadpoolctl, convkit
        with threadpoolctl.threadpool_limits(limits=1):
            from convkit.cpu import threads
            print(threads.count())
        print(threads.count())
    """
    assert python(code, CONVKIT_NUM_THREADS="3").stdout.split() == ["1", "3"]


@needs_native
def test_limits_of_two_python_threads_leave_nothing_behind(monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "4")
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen = []

    def first():
        with threadpoolctl.threadpool_limits(1, user_api="convkit"):
            first_in.set()
            assert second_in.wait(30)
        seen.append(threads.count())
        first_out.set()

    def second():
        assert first_in.wait(30)
        with threadpoolctl.threadpool_limits(2, user_api="convkit"):
            seen.append(threads.count())
            second_in.set()
            assert first_out.wait(30)
            seen.append(threads.count())
        seen.append(threads.count())

    both = [threading.Thread(target=work) for work in (first, second)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert seen == [2, 4, 2, 4]
    assert threads.count() == 4


@needs_native
def test_a_bad_number_of_threads_does_not_fail_calls_to_threadpoolctl(monkeypatch):
    monkeypatch.setenv(threads.VARIABLE, "many")
    assert ours()[0]["num_threads"] >= 1
    with threadpoolctl.threadpool_limits(1):
        assert threads.count() == 1
    with pytest.raises(OptionError, match="CONVKIT_NUM_THREADS"):
        threads.count()


@needs_native
def test_a_limit_reaches_the_pool(monkeypatch):
    monkeypatch.setattr(threads, "WORTH_WAKING", 1)
    monkeypatch.setenv(threads.VARIABLE, "4")

    def workers(expected):
        seen, all_in = set(), threading.Barrier(expected)

        def run(start, stop):
            if threading.get_ident() not in seen:  # the first range of this thread: it waits for the others
                seen.add(threading.get_ident())
                all_in.wait(60)
            counts.add(threads.count())

        threads.split(run, 64, 1e9)
        return len(seen)

    counts: set[int] = set()
    assert workers(4) == 4
    assert counts == {4}
    counts.clear()
    with threadpoolctl.threadpool_limits(2):
        assert workers(2) == 2
    assert counts == {2}  # in the pool's threads as well
    with threadpoolctl.threadpool_limits(1):
        assert workers(1) == 1


# ---------------------------------------------------------------------------------------------------
# The kernels' pool, through whichever implementations are there
# ---------------------------------------------------------------------------------------------------
@functools.cache
def questions():
    """The largest small case that each implementation in C++ accepts."""
    found = []
    for implementation in implementations(device="cpu", layout=None):
        if implementation.missing is not extension.kernels_missing or implementation.missing():
            continue
        fitting = [
            case
            for case in (case.of("float32") for case in cases(implementation.op))
            if not case.heavy and case.fill == "normal" and implementation.refusal(case.problem) is None
        ]
        if fitting:
            largest = max(fitting, key=lambda case: case.problem.flops(implementation.op))
            found.append((implementation, Question.of(largest, "float32")))
    return found


def results():
    """The bits that they all compute now."""
    found = []
    for implementation, question in questions():
        run = attempt(implementation, question, FIRST)
        assert not run.fault, (implementation.op, implementation.name, run.fault)
        found.append([output.tobytes() for output in run.outputs.values()])
    return found


@pytest.fixture
def expected(monkeypatch):
    """The bits, by one thread; then three are asked for."""
    if not questions():
        pytest.skip("there is no implementation in C++ here")
    monkeypatch.setenv(threads.VARIABLE, "1")
    found = results()
    monkeypatch.setenv(threads.VARIABLE, "3")
    return found


def test_same_bits_for_any_number_of_threads(expected, monkeypatch):
    for count in ("2", "3", "7"):
        monkeypatch.setenv(threads.VARIABLE, count)
        assert results() == expected


def test_same_bits_from_several_python_threads(expected):
    wrong = []

    def caller():
        wrong.extend(1 for _ in range(3) if results() != expected)

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert not wrong


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes(expected):
    assert results() == expected  # the pool has its threads now
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            results()

    other = threading.Thread(target=busy)
    other.start()
    try:
        for _ in range(3):
            child = os.fork()
            if child == 0:
                signal.alarm(100)  # a child that waits for threads which it has not got is ended by this
                try:
                    os._exit(0 if results() == expected else 1)
                finally:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        other.join()


#: In a new process: `work()` computes in C++ for some milliseconds.
WORK = """if True:
    import os, signal, sys, threading, time
    import numpy as np
    import convkit as ck
    from convkit import devices
    from convkit.cpu import extension as native, threads
    threads.WORTH_WAKING = 1
    x = np.ones((4, 32, 60, 60), np.float32)
    w = np.ones((64, 32, 3, 3), np.float32)
    problem = ck.Conv2d.of(x.shape, w.shape, padding=1)
    names = [
        i.name
        for i in ck.implementations("conv2d_fprop")
        if i.missing is native.kernels_missing and i.refusal(problem) is None
    ]
    def work():
        if names:
            return ck.conv2d_fprop(x, w, padding=1, impl=names[0])
        return native.load().fma_gflops(1, 0.02)
"""


@needs_native
def test_the_interpreter_ends_while_daemon_threads_compute():
    code = """
    begun = [threading.Event() for _ in range(3)]
    def forever(event):
        work()
        event.set()
        while True:
            work()
    for event in begun:
        threading.Thread(target=forever, args=(event,), daemon=True).start()
    assert all(event.wait(60) for event in begun)
    """
    for _ in range(3):
        done = python(WORK + code, CONVKIT_NUM_THREADS="3")
        assert done.returncode == 0 and not done.stderr, done


@needs_native
def test_the_lock_is_let_go_of():
    """Python code goes on while another thread is in C++.

    Nobody takes the interpreter's lock from a thread here, and within a call of a kernel only C++ can let go
    of it: a step that the main thread made between the beginning and the end of a call was made meanwhile. A
    call may be over before the main thread has got a core; then there is another one.
    """
    code = """
    sys.setswitchinterval(1e6)
    steps, within, over = 0, [], False
    class Watched:
        def __init__(self, module):
            self.module = module
        def __getattr__(self, name):
            function = getattr(self.module, name)
            def call(*arguments, **options):
                before = steps
                result = function(*arguments, **options)
                within.append(steps - before)
                return result
            return call
    if names:
        devices.cpu_kernels = Watched(native.kernels()), native.isa(), ""
    else:
        native.load = lambda module=Watched(native.load()): module
    def other():
        global over
        try:
            while len(within) < 300 and not any(within):
                work()
        finally:
            over = True
    thread = threading.Thread(target=other)
    thread.start()
    while not over:
        time.sleep(1e-4)
        steps += 1
    print(len(within) > 0, any(within))
    """
    done = python(WORK + code, CONVKIT_NUM_THREADS="1")
    assert done.stdout == "True True\n", done


@needs_native
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer")
def test_ctrl_c_at_any_moment_leaves_the_pool_whole():
    code = """
    import random
    result = work()
    def interrupt(*_):
        global waiting
        waiting = False
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, interrupt)
    random.seed(1)
    interrupts = 0
    while interrupts < 150:
        try:
            waiting = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 2e-2))
            while waiting:  # an exception within a destructor is lost
                work()
        except KeyboardInterrupt:
            interrupts += 1
    assert not names or (work() == result).all()
    print(interrupts)
    """
    done = python(WORK + code, CONVKIT_NUM_THREADS="3")
    assert done.returncode == 0 and done.stdout == "150\n", done


# ---------------------------------------------------------------------------------------------------
# The pool by itself
# ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stress(tmp_path_factory):
    """Builds tests/cpu/thread_pool_stress.cpp with these flags; returns the program's path."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if not shutil.which(compiler[0]) or not POOL.is_dir():
        assert not os.environ.get("CI"), "CI must have a C++ compiler"
        pytest.skip("needs a C++ compiler and the source tree")

    def build(*flags):
        program = tmp_path_factory.mktemp("pool") / "stress"
        sources = [Path(__file__).with_name("thread_pool_stress.cpp"), POOL / "thread_pool.cpp"]
        command = [*compiler, "-std=c++17", "-g1", "-pthread", *flags, f"-I{POOL}", *sources, "-o", program]
        subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
        return program

    return build


def run_stress(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "done\n", done
    return done


@pytest.mark.slow
def test_the_pool_under_stress(stress):
    program = stress("-O2")
    for _ in range(3):
        run_stress(program)
    run_stress(program, "starved")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_pool_under_a_sanitizer(stress, sanitizer):
    try:
        program = stress("-O1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the compiler lacks this sanitizer: {error.stderr[-200:]}")
    # ThreadSanitizer wants its addresses free, which a random layout may not leave them.
    steady = ["setarch", "-R"] if shutil.which("setarch") else []
    run_stress(*steady, program, "sanitized")
