"""`convkit explain`: what an implementation receives, as the ops' own files have it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from convkit import explain, registry
from convkit.cli import main
from convkit.op import OPS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ops.md"


def test_the_page_is_up_to_date():
    wanted = "write it anew: convkit explain > docs/ops.md"
    assert PAGE.read_text(encoding="utf-8") == explain.page(), wanted


@pytest.mark.parametrize("op", OPS)
def test_the_call_is_one_that_can_be_registered(op):
    """A function of the signature that is printed fits the op."""
    it = explain.received(op)
    made = {}
    exec(it.call.replace("run(", "def run(", 1) + ": pass", made)
    registry._fits(op, made["run"], False, False)
    names = list(inspect.signature(made["run"]).parameters)
    assert names == ["problem", *OPS[op].inputs, *OPS[op].outputs, *OPS[op].options, *OPS[op].flags]


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_left_unsaid(op):
    it = explain.received(op)
    assert it.summary and all(option.type in ("bool", "int", "float") for option in it.options)
    for tensor in it.tensors:
        assert tensor.shape and tensor.dtype
        if len(it.op.cases.bases()[0].shapes[tensor.name]) > 1 and it.op.problem.__name__ != "Elementwise":
            assert tensor.shape.startswith("("), f"the docstring of {op} has no shape for {tensor.name}"


def test_ties_none_and_places_are_said(capsys):
    assert main(["explain", "maxpool2d_fprop"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "of equal ones the first" in out and "uint8, uint16 or uint32" in out and "NumPy arrays" in out
    assert main(["explain", "conv2d_fprop"]) == 0
    assert "b may be None" in capsys.readouterr().out
    assert main(["explain", "linear_wgrad_sgd"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "w_new of w" in out and "finite: passed by keyword" in out and "Learning rate" in out


def test_an_op_that_is_none(capsys):
    assert main(["explain", "maxpool_fprop"]) == 2
    assert "did you mean 'maxpool2d_fprop'" in capsys.readouterr().err
