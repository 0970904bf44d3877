"The wheel and the sdist, built from a clean copy: what is in them, and what they say about themselves."
import importlib, re, shutil, subprocess, sys, tarfile, zipfile
from email.parser import Parser
from pathlib import Path
import pytest
import fastai_bnfold

root = Path(__file__).resolve().parents[1]
site = "https://github.com/fastai-bnfold/fastai-bnfold"
left_out = shutil.ignore_patterns(".*", "_*", "build", "dist", "*.egg-info", "nbs")

@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    "A folder with the sdist, and the wheel built from that sdist"
    src, out = tmp_path_factory.mktemp("src")/"copy", tmp_path_factory.mktemp("dist")
    keep = lambda folder, names: left_out(folder, [o for o in names if o not in ("__init__.py", "_modidx.py")])
    shutil.copytree(root, src, ignore=keep)
    res = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out], cwd=src, capture_output=True, text=True)
    assert res.returncode == 0, res.stdout + res.stderr
    return out

@pytest.fixture(scope="module")
def wheel(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as o: yield o

@pytest.fixture(scope="module")
def sdist(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as o: yield {n.partition("/")[2] for n in o.getnames()}

def in_info(wheel, name):
    return wheel.read(next(o for o in wheel.namelist() if o.endswith(f".dist-info/{name}"))).decode()

@pytest.fixture(scope="module")
def meta(wheel): return Parser().parsestr(in_info(wheel, "METADATA"))

def settings(key): return {o.strip() for o in re.search(rf"^{key} =\n((?: +.+\n?)+)", (root/"settings.ini").read_text(), re.M)[1].splitlines()}

def requires(meta, extra):
    "The required distributions, as written, of an extra; None: those without one"
    reqs = [re.split(r"\s*;\s*", o) for o in meta.get_all("Requires-Dist")]
    return {o[0] for o in reqs if (re.search(r"extra == .(\w+)", o[1])[1] if len(o) > 1 and "extra ==" in o[1] else None) == extra}

def test_name_and_version(meta, dist):
    assert (meta["Name"], meta["Version"]) == ("fastai-bnfold", fastai_bnfold.__version__)
    assert {o.name.split("-")[0] for o in dist.iterdir()} == {"fastai_bnfold"}

def test_who_and_on_what_terms(meta, wheel):
    assert (meta["Author"], meta["License-Expression"] or meta["License"]) == ("fastai_bnfold contributors", "Apache-2.0")
    assert "Apache License" in in_info(wheel, "licenses/LICENSE")

def test_python(meta): assert meta["Requires-Python"] == ">=3.11"

def test_requirements_are_those_of_settings(meta):
    assert requires(meta, extra=None) == settings("requirements") != set()
    for o in ("dev", "onnx"): assert requires(meta, extra=o) == settings(f"{o}_requirements") != set()
    assert sorted(meta.get_all("Provides-Extra")) == ["dev", "onnx"]

def test_urls(meta):
    urls = dict(o.split(", ") for o in meta.get_all("Project-URL"))
    assert set(urls) == {"Repository", "Documentation", "Changelog"}
    assert urls["Repository"] == site and urls["Changelog"].startswith(site)

def test_description_is_the_readme(meta):
    assert meta["Description-Content-Type"] == "text/markdown"
    assert meta.get_payload().strip() == (root/"README.md").read_text(encoding="utf-8").strip() != ""

def entry_points(wheel): return re.findall(r"^(\w+) = ([\w.]+):(\w+)$", in_info(wheel, "entry_points.txt"), re.M)

def test_entry_points_lead_somewhere(wheel):
    names = {"bnfold", "fastai_bnfold"} if (root/"fastai_bnfold"/"cli.py").exists() else {"fastai_bnfold"}
    assert {o[0] for o in entry_points(wheel)} == names
    for _, module, name in entry_points(wheel): assert hasattr(importlib.import_module(module), name)

def test_wheel_holds_the_package_only(wheel):
    files = {o for o in wheel.namelist() if ".dist-info/" not in o}
    assert files == {f"fastai_bnfold/{o.name}" for o in (root/"fastai_bnfold").glob("*.py")} | {"fastai_bnfold/py.typed"}

def test_sdist_can_be_built_from(sdist):
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "fastai_bnfold/__init__.py"} <= sdist

def test_changelog_knows_the_version():
    assert re.search(r"^## (\S+)", (root/"CHANGELOG.md").read_text(), re.M)[1] == fastai_bnfold.__version__
