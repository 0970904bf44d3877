"The command line: every kind of export, what it writes and what it leaves alone, and how each error ends."
import json, os, shutil, subprocess, sys, time, types, warnings
from functools import partial
from pathlib import Path
import pytest, torch
from fastai.learner import Learner, load_learner
from fastai_bnfold import learner
from fastai_bnfold.cli import DONE, REFUSED, STOPPED, UNREAD, UNWRITTEN, USAGE, bnfold
from learners import bn_layers, kinds, table, texts, trained

given = dict(vision=['pics/cat/0.png', 'pics/dog/1.png'], unet=['pics/cat/0.png'], text=list(texts().text[:3]),
             tabular=['job:cook,town:Oslo,age:40,pay:,size:-3.5'])

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A folder with `<kind>.pkl` for each kind, and the pictures"
    path = tmp_path_factory.mktemp("exports")
    for kind in kinds: trained(kind, path).export(path/f"{kind}.pkl")
    table().to_csv(path/"rows.csv", index=False)
    return path

@pytest.fixture
def here(made, tmp_path, monkeypatch):
    "A copy of that folder to work in"
    shutil.copytree(made, tmp_path/"here")
    monkeypatch.chdir(tmp_path/"here")
    return tmp_path/"here"

def loaded(f):
    "An export, without fastai's warning about pickle"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_learner(f)

def contents(path="."): return {str(o): o.read_bytes() for o in Path(path).rglob("*") if o.is_file()}

def call(model, *args, items=("pics/cat/0.png",)): return bnfold([str(model), *[o for i in items for o in ("--item", i)], *map(str, args)])

def preds(f, items):
    "Probabilities that the export `f` gives for `items`"
    learn = loaded(f)
    with learn.no_bar(), learn.no_logging(): return learn.get_preds(dl=learn.dls.test_dl(items, num_workers=0))[0]

def for_preds(kind): return dict(tabular=lambda: table().drop(columns="class")).get(kind, lambda: given[kind])()

def paths(kind, items): return [Path(o) for o in items] if kind in ("vision", "unet") else items

def phases(lines): return all(o.startswith("bnfold: ") and o.endswith(" ...") for o in lines)

def fails(capsys, before, code, got, *says):
    "Exit code `code`, phases and then one line on stderr that says all of `says`, nothing on stdout, no file changed"
    out, err = capsys.readouterr()
    assert got == code and out == ""
    *before_it, line = err.splitlines()
    assert line.startswith("bnfold: error: ") and phases(before_it) and "Traceback" not in err
    for o in says: assert o in line
    assert contents() == before

# ---------------------------------------------------------------- done
@pytest.mark.parametrize("kind", kinds)
def test_folds(here, kind, capsys):
    before = contents()
    assert call(f"{kind}.pkl", items=given[kind]) == DONE
    out, err = capsys.readouterr()
    assert "BatchNorm layers" in out and f"wrote {kind}_folded.pkl" in out and phases(err.splitlines()) and "loading" in err
    after = contents()
    assert after.pop(f"{kind}_folded.pkl") and after == before
    n, m = (len(bn_layers(loaded(f).model)) for f in (f"{kind}.pkl", f"{kind}_folded.pkl"))
    assert m < n
    a, b = (preds(f, paths(kind, for_preds(kind))) for f in (f"{kind}.pkl", f"{kind}_folded.pkl"))
    assert torch.allclose(a, b, atol=1e-5)
    assert os.stat(f"{kind}_folded.pkl").st_size <= os.stat(f"{kind}.pkl").st_size

def test_comparison_can_fail(here):
    "Without its BatchNorms, not folded, the same export predicts something else"
    learn = loaded("vision.pkl")
    for n in bn_layers(learn.model): learn.model.set_submodule(n, torch.nn.Identity())
    learn.export(here/"without.pkl")
    a, b = (preds(f, paths("vision", given["vision"])) for f in ("vision.pkl", "without.pkl"))
    assert not torch.allclose(a, b, atol=1e-5)

@pytest.mark.parametrize("kind", ["vision", "tabular"])
def test_plan_writes_nothing(here, kind, capsys):
    before = contents()
    assert call(f"{kind}.pkl", "--plan", items=given[kind]) == DONE
    assert "folds into" in capsys.readouterr().out
    assert contents() == before

def test_csv_file(here): assert call("tabular.pkl", items=["rows.csv", *given["tabular"]]) == DONE and Path("tabular_folded.pkl").exists()

def test_many_items(here): assert call("vision.pkl", items=given["vision"]*10) == DONE

def test_items_of_a_pattern(here, capsys):
    "As the shell passes `--item pics/*/*.png`, behind the model and before it"
    names = sorted(map(str, Path("pics").glob("*/*.png")))
    assert len(names) > 4 and bnfold(["vision.pkl", "--item", *names]) == DONE
    assert bnfold(["--item", *names, "vision.pkl", "--force"]) == DONE
    capsys.readouterr()
    fails(capsys, contents(), USAGE, bnfold(["vision.pkl", "--force", "--item", *names, "pics/none.png"]), "'pics/none.png': no such file")

@pytest.mark.parametrize("args", [[], ["--plan"], ["--onnx", "--timeit"]], ids=lambda o: " ".join(o) or "fold")
def test_json(here, capsys, monkeypatch, args):
    "Nothing but JSON on the standard output"
    monkeypatch.setattr(learner, "bench", partial(learner.bench, n=6))
    assert call("vision.pkl", "--json", *args) == DONE
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["model"] == "vision.pkl" and "loading" in err
    if "--plan" in args: assert found["wrote"] is None and found["folded"] == 11 and len(found["entries"]) == 11
    else: assert found["wrote"]["bytes"] == Path(found["wrote"]["path"]).stat().st_size
    if "--onnx" in args: assert found["items"] == 1 and found["times"]["models"]
    if not args: assert found["bn_before"] == 11 and found["bn_after"] == 0 and found["plan"]["folded"] == 11

def test_json_of_a_folded_export(here, capsys):
    assert call("vision.pkl") == DONE
    capsys.readouterr()
    assert call("vision_folded.pkl", "--json") == DONE
    assert json.loads(capsys.readouterr().out)["wrote"] is None

@pytest.mark.parametrize("watched", [True, False])
def test_standard_output_is_the_report_alone(here, capsys, monkeypatch, watched):
    "Bars, lines of fastai and whatever a library prints go to the error output, bars only to a terminal; the export logs as before"
    from fastai.callback.progress import ProgressCallback
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    monkeypatch.setattr(learner, "bench", partial(learner.bench, n=6))
    learn = loaded("vision.pkl")
    learn.add_cb(ProgressCallback())
    learn.logger = print
    learn.export(here/"loud.pkl")
    fold_bn = Learner.fold_bn
    def noisy(self, *args, **kwargs):
        print("a library talks")
        learner._say(self, "fastai talks")
        self.get_preds(dl=kwargs["dl"])  # with a bar
        return fold_bn(self, *args, **kwargs)
    monkeypatch.setattr(Learner, "fold_bn", noisy)
    assert call("loud.pkl", "--timeit") == DONE
    out, err = capsys.readouterr()
    assert out.startswith("11 of 11 BatchNorm layers fold") and "talks" not in out and "one item, ms" in out
    assert "a library talks" in err and "fastai talks" not in err and ("%" in err) == watched
    learn = loaded("loud_folded.pkl")
    assert learn.logger is print and hasattr(learn, "progress")

@pytest.mark.parametrize("args", [["--onnx"], ["--int8", "--max-drop", 1], ["--half"]], ids=lambda o: o[0])
def test_no_bars_where_nobody_watches(here, capsys, args):
    from fastai.callback.progress import ProgressCallback
    learn = loaded("vision.pkl")
    learn.add_cb(ProgressCallback())
    learn.export(here/"loud.pkl")
    assert call("loud.pkl", *args) == DONE
    out, err = capsys.readouterr()
    assert phases(err.splitlines()) and "loading" in err
    assert ("calibrated and compared on 1 item" in " ".join(out.split())) == (args[0] == "--int8")

def test_a_phase_takes_the_place_of_a_bar(capsys, monkeypatch):
    from fastai_bnfold.cli import say
    say("folding")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    say("folding")
    assert capsys.readouterr().err == "bnfold: folding ...\n\r\x1b[Kbnfold: folding ...\n"

@pytest.mark.parametrize("args", [["vision.pkl", "--item", "pics/cat/0.png", "--plan"], ["--help"], ["no.pkl", "--item", "a"]], ids=["plan", "help", "error"])
def test_nobody_reads(here, args):
    "As `| head -1` and `2>&1 | head -1` leave it: no traceback"
    read, written = os.pipe()
    os.close(read)
    err = written if args[0] == "no.pkl" else subprocess.PIPE
    code = "import sys; from fastai_bnfold.cli import bnfold; sys.exit(bnfold())"
    res = subprocess.run([sys.executable, "-c", code, *args], stdout=written, stderr=err)
    os.close(written)
    assert phases((res.stderr or b"").decode().splitlines())
    assert res.returncode == UNREAD or args == ["--help"]  # argparse lets it pass where nothing is buffered

def test_out_force_and_times(here, capsys, monkeypatch):
    monkeypatch.setattr(learner, "bench", partial(learner.bench, n=6))
    Path("deep").mkdir()
    assert call("vision.pkl", "--out", "deep/a.pkl", "--timeit") == DONE
    assert "one item, ms" in capsys.readouterr().out and not Path("vision_folded.pkl").exists()
    Path("deep/a.pkl").write_text("old")
    assert call("vision.pkl", "--out", "deep/a.pkl", "--force") == DONE
    assert isinstance(loaded("deep/a.pkl"), Learner) and os.listdir("deep") == ["a.pkl"]

def test_folded_already(here, capsys):
    assert call("vision.pkl") == DONE
    before = contents()
    capsys.readouterr()
    assert call("vision_folded.pkl") == DONE
    out = capsys.readouterr().out
    assert "vision_folded.pkl is already folded; nothing was written" in out and contents() == before
    assert "unfold_bn" not in out  # an export has no way back
    assert call("vision_folded.pkl", "--out", "here.pkl") == DONE and isinstance(loaded("here.pkl"), Learner)

def test_nothing_to_fold(here, capsys):
    "Never folded, and no BatchNorm in it: a script that waits for the file finds it"
    learn = loaded("vision.pkl")
    for n in bn_layers(learn.model): learn.model.set_submodule(n, torch.nn.Identity())
    learn.export(here/"without.pkl")
    assert call("without.pkl") == DONE and Path("without_folded.pkl").exists()
    assert "no BatchNorm layers: nothing to fold" in capsys.readouterr().out

@pytest.mark.parametrize("kind", ["vision", "tabular", "text"])
def test_onnx(here, kind, capsys):
    before = contents()
    assert call(f"{kind}.pkl", "--onnx", items=given[kind]) == DONE
    out, err = capsys.readouterr()
    assert f"wrote {kind}.onnx" in out and f"{kind}.onnx: verified" in out and "one item" not in out and phases(err.splitlines()) and "exporting with batch" in err
    after = contents()
    assert after.pop(f"{kind}.onnx") and after == before
    fails(capsys, contents(), USAGE, call(f"{kind}.pkl", "--onnx", items=given[kind]), f"{kind}.onnx exists", "--force")
    assert call(f"{kind}.pkl", "--onnx", "--force", "--timeit", "--out", f"{kind}.onnx", items=given[kind]) == DONE
    assert "by ONNX Runtime" in capsys.readouterr().out

def test_onnx_refused(here, capsys, monkeypatch):
    "With fastai's own encoder, which cannot be exported"
    from fastai_bnfold import deploy
    monkeypatch.setattr(deploy, "in_one_pass", lambda model: model)
    fails(capsys, contents(), REFUSED, call("text.pkl", "--onnx", items=given["text"]), "text.pkl is not exported", "0.module")

def test_onnx_is_not_installed(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    fails(capsys, contents(), REFUSED, call("vision.pkl", "--onnx"), "not installed: onnxruntime", "pip install 'fastai-bnfold[onnx]")

def test_engines(here, capsys, monkeypatch):
    from fastai_bnfold import engines as bench
    monkeypatch.setattr(bench, "ENGINES", {k: v for k, v in bench.ENGINES.items() if k != "torch.compile"})
    before = contents()
    assert call("vision.pkl", "--engines") == DONE
    out, err = capsys.readouterr()
    assert contents() == before and phases(err.splitlines())
    assert [o.split()[0] for o in out.splitlines()[1:4]] == ["unfolded", "folded", "channels-last"] and "eager" not in out
    for o in ("ONNX Runtime", "fastest: "): assert o in out
    assert "making ONNX Runtime" in err

def test_engines_of_a_folded_model(here, capsys, monkeypatch):
    from fastai_bnfold import engines as bench
    monkeypatch.setattr(bench, "ENGINES", {k: v for k, v in bench.ENGINES.items() if k == "channels-last"})
    assert call("vision.pkl") == DONE
    capsys.readouterr()
    assert call("vision_folded.pkl", "--engines") == DONE
    assert [o.split()[0] for o in capsys.readouterr().out.splitlines()[1:3]] == ["folded", "channels-last"]

@pytest.mark.parametrize("verb, args", [("fold_bn", []), ("fold_plan", ["--plan"]), ("export_onnx", ["--onnx"])])
def test_keep_is_passed_on(here, capsys, monkeypatch, verb, args):
    "As it is given, and only if it is given"
    import fastai_bnfold.deploy
    seen = []
    def f(self, *xs, **kw): seen.append(kw); raise learner.FoldError("seen")
    monkeypatch.setattr(Learner, verb, f)
    assert call("vision.pkl", *args, "--keep", "0.*", "--keep", "1.2") == REFUSED and call("vision.pkl", *args) == REFUSED
    assert seen[0]["keep"] == ["0.*", "1.2"] and "keep" not in seen[1]

@pytest.mark.parametrize("args", [[], ["--plan"], ["--onnx"], ["--engines"]], ids=lambda o: " ".join(o) or "fold")
def test_keep_that_names_nothing(here, capsys, args):
    fails(capsys, contents(), USAGE, call("vision.pkl", *args, "--keep", "0.*", "--keep", "haed"), "--keep='haed' matches no module", ": pass a path or a pattern such as '1.*'")

@pytest.mark.parametrize("args, want", [([], {}), (["--onnx"], {}), (["--int8"], dict(int8=True)), (["--half", "--onnx"], dict(half=True)),
                                        (["--int8", "--max-drop", ".02"], dict(int8=True, max_drop=.02))], ids=lambda o: " ".join(o) if isinstance(o, list) else "")
def test_smaller_files(here, monkeypatch, args, want):
    "`export_onnx` is told only what was asked for, and calibrates 8 bits on the items"
    import fastai_bnfold.deploy
    seen = []
    def f(self, path, dl=None, timeit=None, say=None, **kw): seen.append(kw); assert kw.pop("calib", dl) is dl; raise learner.FoldError("seen")
    monkeypatch.setattr(Learner, "export_onnx", f)
    assert call("vision.pkl", *args) == (REFUSED if args else DONE)
    assert seen == ([want] if args else [])

def test_version(capsys):
    import fastai_bnfold
    with pytest.raises(SystemExit) as e: bnfold(["--version"])
    assert e.value.code == 0 and capsys.readouterr().out == f"bnfold {fastai_bnfold.__version__}\n"

@pytest.mark.parametrize("args", [["m"*300 + ".pkl"], ["vision.pkl", "--out", "o"*300 + ".pkl"], ["vision.pkl", "--out", "o"*300 + "/o.pkl"]], ids=["model", "out", "folder"])
def test_names_that_are_too_long(here, capsys, args): fails(capsys, contents(), USAGE, call(args[0], *args[1:]), "File name too long", "choose another name")

def test_a_name_that_is_just_short_enough(here):
    assert call("vision.pkl", "--out", "o"*250 + ".pkl") == DONE and Path("o"*250 + ".pkl").exists()

def test_permissions(here):
    os.chmod("vision.pkl", 0o640)
    assert call("vision.pkl") == DONE and os.stat("vision_folded.pkl").st_mode & 0o777 == 0o640

def test_loads_without_this_library(here):
    "As an installed command; then in a process that cannot import fastai_bnfold"
    exe = Path(sys.executable).with_name("bnfold")
    cmd = [str(exe)] if exe.exists() else [sys.executable, "-c", "import sys; from fastai_bnfold.cli import bnfold; sys.exit(bnfold())"]
    res = subprocess.run([*cmd, "vision.pkl", "--item", "pics/cat/0.png"], capture_output=True, text=True)
    assert res.returncode == 0 and "wrote vision_folded.pkl" in res.stdout and phases(res.stderr.splitlines())
    code = ("import sys; sys.modules['fastai_bnfold'] = None\nimport warnings; warnings.filterwarnings('ignore')\n"
            "from fastai.vision.all import *\nlearn = load_learner('vision_folded.pkl')\n"
            "with learn.no_bar(), learn.no_logging(): print(*learn.predict(Path('pics/cat/0.png'))[2].tolist())")
    res = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    there = torch.tensor([float(o) for o in res.stdout.split()[-2:]])
    assert torch.allclose(there, preds("vision.pkl", [Path("pics/cat/0.png")])[0], atol=1e-5)

def test_help(capsys):
    with pytest.raises(SystemExit) as e: bnfold(["--help"])
    out = capsys.readouterr().out
    assert e.value.code == 0
    for o in ("--item", "--plan", "--out", "--force", "--timeit", "--keep", "--onnx", "--engines", "--json", "--int8", "--half", "--max-drop", "--version", "exit codes", "runs code", "column:value", "examples"): assert o in out

def test_help_is_quick():
    "Neither torch nor fastai is imported for it"
    code = "import sys\nfrom fastai_bnfold.cli import bnfold\nbnfold(['no.pkl', '--item', 'a'])\nprint([o for o in ('torch', 'fastai', 'pandas') if o in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    start = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", "from fastai_bnfold.cli import bnfold\nbnfold(['--help'])"], capture_output=True).returncode == 0
    assert time.perf_counter()-start < 1

# ---------------------------------------------------------------- errors
@pytest.mark.parametrize("args, says", [
    ([], ["MODEL.pkl", "--help"]),
    (["vision.pkl"], ["no item given", "--item cat.jpg"]),
    (["vision.pkl", "--item"], ["--item", "--help"]),
    (["vision.pkl", "--itm", "a"], ["--itm", "--help"]),
    (["no.pkl", "--item", "a"], ["no.pkl: no such file", "learn.export()"]),
    (["pics", "--item", "a"], ["pics is not a file"]),
    (["vision.pkl", "--item", "a", "--plan", "--out", "b"], ["leave out --out"]),
    (["vision.pkl", "--item", "a", "--plan", "--onnx"], ["leave out --onnx"]),
    (["vision.pkl", "--item", "a", "--engines", "--timeit"], ["leave out --timeit"]),
    (["vision.pkl", "--item", "a", "--plan", "--int8"], ["leave out --int8"]),
    (["vision.pkl", "--item", "a", "--int8", "--half"], ["leave out --half"]),
    (["vision.pkl", "--item", "a", "--max-drop", ".1"], ["--max-drop", "--int8 or --half"]),
    (["vision.pkl", "--item", "a", "--half", "--max-drop", "x"], ["--max-drop", "--help"]),
    (["vision.pkl", "--item", "a", "--out", "no/b.pkl"], ["no folder no", "--out"]),
    (["vision.pkl", "--item", "a", "--out", "pics"], ["pics is a folder"]),
    (["rows.csv", "--item", "a"], ["rows.csv does not load", "learn.export()"]),
    (["vision.pkl", "--item", "a.png"], ["item 'a.png': no such file"]),
    (["vision.pkl", "--item", "pics"], ["item 'pics' is a folder: pass files, as in `--item pics/*.png`"]),
    (["vision.pkl", "--item", "pics/cat/"], ["item 'pics/cat/' is a folder: pass files, as in `--item pics/cat/*.png`"]),
    (["vision.pkl", "pics/cat/0.png"], ["unrecognized arguments: pics/cat/0.png: put what is to be predicted after --item;"]),
    (["vision.pkl", "--item", "a", "--onnx", "--out", "h.pkl"], ["h.pkl does not end in .onnx: call it h.onnx"]),
    (["vision.pkl", "--item", "a", "--int8", "--out", "h"], ["h does not end in .onnx: call it h.onnx"]),
    (["vision.pkl", "--item", "a", "--out", "h.onnx"], ["h.onnx is the name of an ONNX file: add --onnx"]),
    (["vision.pkl", "--item", "pics/cat/0.png", "--item", "rows.csv"], ["item 'rows.csv' cannot be read", "learn.predict"]),
    (["tabular.pkl", "--item", "pics/cat/0.png"], ["cannot be read as CSV"]),
    (["tabular.pkl", "--item", "cook"], ["'cook' is neither", "column:value"]),
    (["tabular.pkl", "--item", "job:cook"], ["no column town, age, pay, size", "needs job, town, age, pay, size"]),
    (["tabular.pkl", "--item", "job:cook,town:Oslo,age:old,pay:,size:2"], ["column age has 'old'", "number"]),
    (["tabular.pkl", "--item", "job:cook,town:Oslo,age:,pay:,size:2"], ["nan values in `age`"]),
], ids=lambda o: " ".join(o) if o and "-" in " ".join(o) else "")
def test_usage_and_input(here, capsys, args, says):
    before = contents()
    fails(capsys, before, USAGE, bnfold(args), *says)

def test_not_a_learner(here, capsys):
    learn = loaded("vision.pkl")
    torch.save(learn.model.state_dict(), "weights.pkl"); torch.save(learn.dls, "dls.pkl")
    Path("empty.pkl").touch(); Path("cut.pkl").write_bytes(Path("vision.pkl").read_bytes()[:9000])
    capsys.readouterr()
    torch.save(dict(model=learn.model.state_dict(), opt=None), "saved.pkl"); torch.save(learn.model, "model.pkl")
    for f in ("dls", "empty", "cut", "model"): fails(capsys, contents(), USAGE, call(f"{f}.pkl"), f"{f}.pkl", "Learner", "learn.export()")
    for f in ("weights", "saved"): fails(capsys, contents(), USAGE, call(f"{f}.pkl"), f"{f}.pkl holds a state dict", "learn.export()")

def test_module_not_found(here, capsys, monkeypatch):
    mod = types.ModuleType("mymodel")
    exec("from torch import nn\nclass Net(nn.Linear): pass", vars(mod))
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "mymodel", mod)
        torch.save(mod.Net(1, 1), "mine.pkl")
    fails(capsys, contents(), USAGE, call("mine.pkl"), "'mymodel'", "PYTHONPATH")

def test_csv_without_rows(here, capsys):
    Path("none.csv").write_text("job,town,age,pay,size\n")
    fails(capsys, contents(), USAGE, call("tabular.pkl", items=["none.csv"]), "no row")

@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
@pytest.mark.parametrize("link", [None, "symbolic", "hard", "model"])
def test_never_its_input(here, capsys, link, force):
    model, out = "vision.pkl", "vision.pkl"
    if link == "symbolic": os.symlink("vision.pkl", out := "out.pkl")
    if link == "hard": os.link("vision.pkl", out := "out.pkl")
    if link == "model": os.symlink("vision.pkl", model := "model.pkl")
    fails(capsys, contents(), USAGE, call(model, "--out", out, *force), "is the model itself", "another --out")

def test_default_name_may_be_the_input(here, capsys):
    os.symlink("vision.pkl", "vision_folded.pkl")
    fails(capsys, contents(), USAGE, call("vision.pkl", "--force"), "is the model itself")

def test_existing_file(here, capsys):
    Path("vision_folded.pkl").write_text("mine")
    fails(capsys, contents(), USAGE, call("vision.pkl"), "vision_folded.pkl exists", "--force")
    os.symlink("nowhere", "dangling.pkl")
    fails(capsys, contents(), USAGE, call("vision.pkl", "--out", "dangling.pkl"), "exists")

def test_force_replaces_a_link_not_what_it_leads_to(here):
    Path("other").write_text("mine"); os.symlink("other", "out.pkl")
    assert call("vision.pkl", "--out", "out.pkl", "--force") == DONE
    assert Path("other").read_text() == "mine" and not Path("out.pkl").is_symlink()

def test_refused(here, capsys):
    learn = loaded("vision.pkl")
    with torch.no_grad(): next(learn.model.parameters()).view(-1)[0] = float("nan")
    learn.export(here/"bad.pkl")
    before = contents()
    fails(capsys, before, REFUSED, call("bad.pkl"), "bad.pkl is not folded", "nan")

# ---------------------------------------------------------------- faults while writing
def breaks(monkeypatch, error, at=Learner, name="export"):
    "Let `at.name` write half a file, then raise `error`"
    def f(*args, **kwargs):
        for o in args:
            if str(o).endswith(".part"): Path(o).write_bytes(b"half")
        raise error
    monkeypatch.setattr(at, name, f)

@pytest.mark.parametrize("at, name", [(Learner, "export"), (os, "replace"), (shutil, "copymode")], ids=lambda o: o if isinstance(o, str) else "")
@pytest.mark.parametrize("error, code, says", [(OSError("No space left on device"), UNWRITTEN, "No space left"), (MemoryError(), UNWRITTEN, "MemoryError"),
                                               (KeyboardInterrupt(), STOPPED, "interrupted")], ids=["disk", "memory", "interrupt"])
def test_whole_or_nothing(here, capsys, monkeypatch, at, name, error, code, says):
    Path("vision_folded.pkl").write_text("old")
    before = contents()
    breaks(monkeypatch, error, at, name)
    fails(capsys, before, code, call("vision.pkl", "--force"), says)

def test_file_that_appears_meanwhile(here, capsys, monkeypatch):
    export = Learner.export
    def f(self, fname): export(self, fname); Path("vision_folded.pkl").write_text("other's")
    monkeypatch.setattr(Learner, "export", f)
    before = contents()
    fails(capsys, {**before, "vision_folded.pkl": b"other's"}, USAGE, call("vision.pkl"), "exists")
