"""Pictures of result files: each kind shows something, clips nothing, and refuses what it cannot draw."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_capsules as synthetic

from convkit.bench.show import pictures
from convkit.errors import MissingExtra, OptionError


@pytest.fixture(scope="module")
def cpu() -> dict[str, Any]:
    return synthetic.cpu()


@pytest.fixture(autouse=True)
def _drawn(need: Any) -> None:
    need("matplotlib")


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return imread(path)[..., :3]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        *((synthetic.cpu, kind) for kind in pictures.KINDS),
        (synthetic.hostile, "all"),
        pytest.param(synthetic.gpu, "all", marks=pytest.mark.slow),
        pytest.param(synthetic.hundred, "all", marks=pytest.mark.slow),
    ],
)
def test_pictures_show_something_and_clip_nothing(make: Any, kind: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing, a layout that does not fit
        image = pixels(pictures.picture([make()], tmp_path / "p.png", kind))
    assert image.shape[1] == 1560 and 300 < image.shape[0] < 10000
    dark = (image < 0.95).any(axis=2)
    assert 0.005 < dark.mean() < 0.6
    for edge in (dark[0], dark[-1], dark[:, 0], dark[:, -1]):
        assert not edge.any(), "something reaches the edge"


def test_all_pictures_of_all_capsules_stand_in_one(tmp_path: Path, cpu: dict[str, Any]) -> None:
    small = synthetic.document(cpu["rows"][:2])
    paths = [pictures.picture([small], tmp_path / f"{k}.png", k) for k in pictures.KINDS]
    whole = pixels(pictures.picture([small, small, synthetic.empty()], tmp_path / "all"))
    assert whole.shape[0] == 2 * sum(pixels(path).shape[0] for path in paths)


def test_a_changed_capsule_is_called_changed(tmp_path: Path, cpu: dict[str, Any], monkeypatch: Any) -> None:
    said: list[str] = []
    plain = pictures._pixels
    monkeypatch.setattr(
        pictures, "_pixels", lambda f, heading, caveat: (said.append(caveat), plain(f, heading, caveat))[1]
    )
    for document in (cpu, {**cpu, "created": "2027-01-01"}):
        pictures.picture([document], tmp_path / "p.png", "accuracy")
    assert "Unchecked" in said[0] and "Believe no figure" not in said[0]
    assert said[1].startswith("Not as it was written")


def test_pictures_leave_matplotlib_as_it_was(tmp_path: Path, cpu: dict[str, Any]) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    pictures.picture([cpu], tmp_path / "p.png", "bars")
    assert dict(matplotlib.rcParams) == before


def test_pictures_refuse_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: dict[str, Any]
) -> None:
    for documents, path, kind, words in (
        ([cpu], tmp_path / "p.png", "pie", "unknown kind of picture 'pie'"),
        ([cpu], tmp_path / "p.pdf", "all", "ends in .png"),
        ([synthetic.empty()], tmp_path / "p.png", "all", "nothing to draw"),
        ([], tmp_path / "p.png", "bars", "nothing to draw"),
        ([cpu], tmp_path / "none" / "p.png", "bars", "there is no folder"),
    ):
        with pytest.raises(OptionError, match=words):
            pictures.picture(documents, path, kind)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtra, match=r"convkit\[bench\]"):
        pictures.picture([cpu], tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
