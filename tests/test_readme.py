"What README.md shows is what one gets: its own blocks, pasted in order into a fresh process, against the outputs that stand under them."
import json, os, re, shlex, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/"nbs"/"_tools"))

def blocks(text):
    "(code, output that is shown under it) of each Python block"
    found = re.findall(r"^```python\n([\s\S]*?)^```\n((?:\n|    .*\n)*)", text, re.MULTILINE)
    return [(code, re.sub(r"^    ", "", out, flags=re.MULTILINE).strip()) for code, out in found]

# What a console makes of each block: what it prints, then its last expression, if that is not None
PASTE = """
import ast, contextlib, io, json, sys, warnings
warnings.filterwarnings("ignore")
names, shown = {"__name__": "__main__"}, []
for code in json.load(sys.stdin):
    tree, out = ast.parse(code), io.StringIO()
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(out):
        exec(compile(tree, "README.md", "exec"), names)
        value = last and eval(compile(last, "README.md", "eval"), names)
        if value is not None: print(repr(value))
    shown.append(out.getvalue())
print("SHOWN" + json.dumps(shown))
"""

def python(code, *args, cwd, **kwargs):
    "What `code` prints in a process of its own"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]), "MPLBACKEND": "agg"}
    res = subprocess.run([sys.executable, "-c", code, *args], cwd=cwd, env=env, timeout=900, capture_output=True, text=True, **kwargs)
    assert res.returncode == 0, res.stderr[-3000:]
    return res.stdout

def pasted(codes, cwd):
    "The output of each block"
    return json.loads(python(PASTE, cwd=cwd, input=json.dumps(codes)).rpartition("SHOWN")[2])

NUMBER = re.compile(r"-?\d[\d,]*\.\d+(?:e[+-]\d+)?|\d+e-\d+")

def shape(text):
    "The words, without rounding: numbers with a fraction as `#`, how far two are apart as `diff`, spaces and rules as one"
    text = re.sub(r"equal|difference \S+", "diff", NUMBER.sub("#", text))
    return re.sub(r"-{3,}", "-", re.sub(r"\s+", " ", text)).strip()

def alike(a, b):
    "Is one number the other, as far as two machines agree on it? Errors only have to be small"
    a, b = (float(o.replace(",", "")) for o in (a, b))
    return abs(a) < 1e-3 > abs(b) or abs(a-b) <= .05*max(abs(a), abs(b))

def same(got, want):
    "Is one output the other, but for rounding?"
    numbers = [NUMBER.findall(re.sub(r"equal|difference \S+", "", o)) for o in (got, want)]
    return shape(got) == shape(want) and all(alike(a, b) for a, b in zip(*numbers))

def test_same():
    table = "accuracy  0.96935  0.96935  equal\n---------\nouts       1.9e-06  relative 1.7e-07, allowed 1e-03"
    assert same(table.replace("equal", "difference 1.5e-08").replace("1.9e-06", "2.9e-06"), table)
    for a, b in (("0.96935  equal", "0.91935  equal"), ("1.9e-06", "1.9e-02"), ("accuracy", "error")): assert not same(table.replace(a, b), table)
    assert not same("(0, 0, True)", "(5, 0, True)")

# Without the package: what an export needs is fastai alone
ELSEWHERE = """
import sys, warnings
warnings.filterwarnings("ignore")
sys.modules["fastai_bnfold"] = None
from fastai.vision.all import *
learn = load_learner(sys.argv[1])
with learn.no_bar(), learn.no_logging(): print("ANSWER", learn.predict("digits/3/13.png")[0])
"""

text = (root/"README.md").read_text(encoding="utf-8")

def test_what_is_shown_is_what_one_gets(tmp_path):
    "The quick start, through to the exports, the ONNX file and the command line"
    codes, wanted = zip(*blocks(text))
    assert len(codes) >= 10 and sum(map(bool, wanted)) >= 7
    for code, got, want in zip(codes, pasted(codes, tmp_path), wanted): assert same(got, want), f"{code}\ngives\n{got}\nshown is\n{want}"
    command = shlex.split(re.search(r"^bnfold .*", text, re.MULTILINE)[0])[1:]
    said = python("import sys; from fastai_bnfold.cli import bnfold; sys.exit(bnfold(sys.argv[1:]))", *command, cwd=tmp_path)
    assert said.startswith("5 of 5 BatchNorm layers fold, 0 kept")
    made = {o.name for o in tmp_path.iterdir()}
    assert made >= {"digits", "folded.pkl", "digits.onnx", "model.pkl", "model_folded.pkl"}
    for export in ("folded.pkl", "model_folded.pkl"): assert "ANSWER 3" in python(ELSEWHERE, export, cwd=tmp_path)

def test_it_can_be_pasted_at_the_prompt():
    from prompt import pastes
    assert not pastes("def f(): return 1\nf()") and pastes("def f(): return 1\n\nf()")
    assert not [code for code, _ in blocks(text) if not pastes(code)]

def test_lines_fit():
    "Nothing that is shown has to be scrolled"
    assert not [o for code, out in blocks(text) for o in (code+out).splitlines() if len(o) > 80]

def test_the_figures_are_the_data():
    import front
    sentences = [front.speed_line(), front.others_line(), front.engine_line(), front.int8_line(), front.coverage(), front.gpu_line()]
    assert not [o for o in sentences if o not in text], "run `make notebooks NB=nbs/index.ipynb`"
    assert (root/"nbs"/"images"/"front.svg").read_text(encoding="utf-8") == front.svg(), "run `make readme`"

def test_a_difference_is_told_apart_only_beyond_interval_and_spread():
    from fastai_bnfold.bench import Timings
    from front import less, verdict
    base = [1.]*40
    assert verdict(Timings(dict(unfolded=base, folded=[.9, .91]*20))) == "faster"
    assert verdict(Timings(dict(unfolded=base, folded=[1.1, 1.11]*20))) == "slower"
    assert verdict(Timings(dict(unfolded=base, folded=[.99, 1.01]*20))) == "not told apart"
    far = Timings(dict(unfolded=base, folded=[.75]*14 + [.95]*26))  # its interval leaves out 1, its quartiles are wider than the difference
    assert far.ratio("folded")[2] < 1 and less(far) == "not told apart"
    slow = Timings(dict(fast=[1.]*50, slow=[2.5]*14+[3.5]*22+[6.1]*14))  # spread wide, and far apart all the same
    assert (slow.verdict("slow"), slow.verdict("fast", "slow"), slow.fastest) == ("slower", "faster", ["fast"])

def test_figures_say_their_size():
    from front import svg, measured, titled, usual_px
    rows = measured()
    px, picture = usual_px(rows), svg()
    assert f"One image of {px} px" in picture
    assert not [r for r in rows if titled(r, px) not in picture]
    assert not [r for r in rows if r.px != px and f"{r.net}, {r.px} px" not in picture]
