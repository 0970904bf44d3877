"What README.md shows is what one gets: its own Python blocks, pasted in order into a fresh process, against the outputs that stand under them."
import json, os, re, subprocess, sys
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

def pasted(codes, cwd):
    "The output of each block, from a process of its own"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]), "MPLBACKEND": "agg"}
    res = subprocess.run([sys.executable, "-c", PASTE], input=json.dumps(codes), cwd=cwd, env=env, timeout=600, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr[-3000:]
    return json.loads(res.stdout.rpartition("SHOWN")[2])

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

def test_what_is_shown_is_what_one_gets(tmp_path):
    codes, wanted = zip(*blocks((root/"README.md").read_text(encoding="utf-8")))
    assert len(codes) >= 7 and sum(map(bool, wanted)) >= 5
    for code, got, want in zip(codes, pasted(codes, tmp_path), wanted): assert same(got, want), f"{code}\ngives\n{got}\nshown is\n{want}"

def test_lines_fit():
    "Nothing that is shown has to be scrolled"
    assert not [o for code, out in blocks((root/"README.md").read_text(encoding="utf-8")) for o in (code+out).splitlines() if len(o) > 80]

def test_the_figures_are_the_data():
    import front
    text = (root/"README.md").read_text(encoding="utf-8")
    assert front.table() in text and front.coverage() in text and (root/"nbs"/"images"/"front.svg").read_text(encoding="utf-8") == front.svg(), "run `make readme`"
