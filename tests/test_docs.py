"""The pages are true where a program can tell: paths, links, the order of the rooms, README's Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import test_structure

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Folders that a page may leave out in front of a path.
SHORT = [ROOT / f"convkit/{folder}" for folder in ("..", "", "network", "cpu", "cpu/native/kernels")]
_FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
_PATH = re.compile(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:py|cu|cuh|cpp|hpp|md|json|toml))?)(?:[ :`*])")
#: Files that a page tells its reader to make, that a run makes, or that are named as gone.
ABSENT = re.compile(r"leaky_relu|op_idea|convkit/cli/ops\.py|plain_numpy|^build/|^bench/cpu\.py")


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_exist(page):
    missing = [
        path
        for path in _PATH.findall(prose(page))
        if not ABSENT.search(path) and not any((folder / path).exists() for folder in (*SHORT, page.parent))
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose(page))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_the_python_of_the_readme_runs(tmp_path, compiler):
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    files = {match[1]: block for block in blocks if (match := re.match(r"# (\w+\.py)\n", block))}
    assert {"mine.py", "swap.py"} <= files.keys()
    for name, block in files.items():  # each is a program as it stands
        (tmp_path / name).write_text(block, encoding="utf-8")
    program = "\n".join(block for block in blocks if block not in files.values())

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True, text=True, timeout=300, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    run("-c", program)
    done = run("swap.py", CONVKIT_CACHE=str(tmp_path / "cache"))  # where nothing has passed
    assert "'mine' (mine.py) has not passed the gate" in done.stderr
    assert re.search(r"^relu2 +relu_fprop +mine .*unchecked$", done.stdout, re.M)


def test_the_python_about_training_runs(tmp_path, need):
    for package in ("safetensors", "sklearn", "cv2", "PIL"):
        need(package)
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    digits = need("sklearn.datasets").load_digits()
    image = digits.images[7].astype("uint8").repeat(3, axis=0).repeat(3, axis=1) * 15
    need("PIL.Image").fromarray(image).save(tmp_path / "seven.png")
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    error, prediction = done.stdout.splitlines()
    assert re.fullmatch(r"[\d.]+% of 397 images are wrong; 95 % interval \(0\.\d+, 0\.\d+\)", error)
    assert re.fullmatch(r"seven\.png \[(\('\d', [\d.]+\)(, )?){3}\]", prediction)


def test_rooms_stand_in_the_order_that_is_tested():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed = page.partition("## The rooms")[2].partition("```text\n")[2].partition("```")[0]
    assert [line.partition("  ")[0] for line in listed.splitlines()] == [
        " ".join(line.split()) for line in test_structure.ORDER
    ]


def test_each_room_is_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rooms = [path.parent.name for path in (ROOT / "convkit").glob("*/__init__.py")]
    assert len(rooms) > 5
    assert not [room for room in rooms if f"`convkit/{room}/`" not in readme]
