"""scripts/environment.py notices what is broken in an environment, and torchvision's operators can be declared."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module that works on an empty .venv elsewhere."""
    spec = importlib.util.spec_from_file_location("environment", SCRIPTS / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "complete.json")
    return module


def install(site: Path, name: str) -> Path:
    """Put a package of one file there, recorded as pip records it."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / name).mkdir()
    (site / name / "__init__.py").write_text("VALUE = 1\n")
    record = f"{name}/__init__.py,sha256=x,10\n{name}/__pycache__/__init__.pyc,,\n{info.name}/RECORD,,\n"
    (info / "RECORD").write_text(record)
    return info


@pytest.mark.parametrize("harm", ["nothing", "file gone", "file cut short", "record gone", "record garbled"])
def test_damaged_packages_are_found_and_forgotten(environment: ModuleType, harm: str) -> None:
    """A package with a missing or shortened file is forgotten, so that pip installs it again; others are left alone."""
    site = environment.site_packages()
    sound, harmed = install(site, "sound"), install(site, "harmed")
    if harm == "file gone":
        (site / "harmed" / "__init__.py").unlink()
    elif harm == "file cut short":
        (site / "harmed" / "__init__.py").write_text("VALUE")
    elif harm == "record gone":
        (harmed / "RECORD").unlink()
    elif harm == "record garbled":
        (harmed / "RECORD").write_bytes(b"\xff\xfe\x00")
    assert environment.damaged_distributions() == ([] if harm == "nothing" else [harmed])
    environment.forget_damaged()
    assert sound.exists()
    assert harmed.exists() == (harm == "nothing")


def test_each_kind_of_unfinished_environment_is_told_apart(environment: ModuleType) -> None:
    """No environment, one without its stamp, and one with other contents are all worked on, each with its reason."""
    assert environment.needs_work({"cpu"}) == "it does not exist yet"
    environment.VENV.mkdir()
    assert environment.needs_work({"cpu"}) == "it was not finished"
    environment.STAMP.write_text('{"key": "of another pyproject.toml", "extras": ["cpu"]}')
    assert environment.needs_work({"cpu"}) == "what it should contain has changed"
    environment.STAMP.write_text(f'{{"key": "{environment.key()}", "extras": ["cpu"]}}')
    assert environment.needs_work({"cpu", "dev"}) == "it lacks the parts for dev"
    assert environment.needs_work({"cpu"}) == "its Python does not run"


def test_torchvision_of_another_build_can_be_imported(tmp_path: Path) -> None:
    """With the hook, a torchvision that describes operators its missing half should have registered is importable."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        'import torch\n@torch.library.register_fake("torchvision::nms")\ndef nms(dets, scores, threshold): ...\n'
    )
    # -S, so that a hook which this environment may need itself does not take part.
    paths = [str(tmp_path), str(SCRIPTS), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    results = []
    for hook in ("", "import torchvision_operators;"):
        code = f"import sys; sys.path[:0] = {paths!r}; {hook} import torchvision"
        command = [sys.executable, "-S", "-c", code]
        results.append(subprocess.run(command, capture_output=True, text=True, check=False))
    assert "does not exist" in results[0].stderr
    assert results[1].returncode == 0, results[1].stderr
