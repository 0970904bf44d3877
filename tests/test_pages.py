"How nbdev's processed cells become pages of the documentation: links, API entries, directives, and the look at the result."
import ast, importlib, json, os, re, sys
from pathlib import Path
import pytest
from nbformat import v4

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/"nbs"/"_tools"))
from prompt import pastes, spaced, visible
from pages import api, code, private, problems, prose, relink, site, stays, target
from sidebar import groups, notebooks, sidebar

@pytest.mark.parametrize("link, folder, want", [
    ("nbs/11_plan.ipynb", "", "plan.html"),
    ("11_plan.ipynb#reasons", "", "plan.html#reasons"),
    ("../11_plan.ipynb", "tutorials", "../plan.html"),
    ("01_heads.ipynb", "tutorials", "heads.html"),
    (site + "learner.html#learner.fold_bn", "", "learner.html#learner.fold_bn"),
    (site + "learner.html#learner.fold_bn", "tutorials", "../learner.html#learner.fold_bn"),
    ("CHANGELOG.md", "", "changelog.html"),
    ("nbs/images/front.svg", "", "images/front.svg"),
    ("LICENSE", "", "https://github.com/fastai-bnfold/fastai-bnfold/blob/main/LICENSE"),
    ("https://arxiv.org/abs/1502.03167", "tutorials", "https://arxiv.org/abs/1502.03167"),
    ("#credits", "", "#credits"),
])
def test_target(link, folder, want):
    assert target(link, folder) == want
    assert relink(f"see [it]({link}).", folder) == f"see [it]({want})."

def test_api_entry():
    text = '---\n\n[source](https://x.org/a.py#L3){target="_blank" style="float:right"}\n\n### Learner.fold_bn\n\n```python\ndef fold_bn()->__main__.Report\n```\n'
    assert 'href="https://x.org/a.py"' in api(text.replace("L3", "LNone"))
    assert api(text) == ('<span id="learner.fold_bn"></span>\n\n### `Learner.fold_bn`\n\n<a class="source" href="https://x.org/a.py#L3">source</a>\n\n'
                         '```python\ndef fold_bn()->Report\n```')

def test_private_names_have_no_entry_and_no_link():
    assert [private(o) for o in ("fold", "BNFolder.fold", "_below", "BNFolder._commit", "FoldPlan.__repr__")] == [False, False, True, True, True]
    assert code(cell("show_doc(_below)", **{"text/markdown": "### _below\n\nIt helps."}), "") is None
    assert relink(f"see [`_below`]({site}trace.html#_below) and [`trace`]({site}trace.html#trace)", "") == "see `_below` and [`trace`](trace.html#trace)"

def test_a_link_in_a_link_is_one():
    assert relink(f"[[`bench`]({site}bench.html#bench)](../19_bench.ipynb)", "tutorials") == "[`bench`](../bench.html)"

def test_a_notebook_may_change_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"x").mkdir()
    stays(os.chdir)(tmp_path/"x")
    assert Path.cwd() == tmp_path

def test_the_sidebar_has_every_notebook_once_and_what_users_need_first():
    pages = notebooks()
    by = groups(list(pages))
    assert sorted(sum(by.values(), [])) == sorted(set(pages) - {"index"})
    assert list(by)[0] == "Tutorials" and by["Tutorials"][0] == "tutorials/options"
    assert by["Reference"][0] == "learner" and "trace" in by["How it works"]
    assert (root/"nbs"/"sidebar.yml").read_text() == sidebar(pages), "run `make export`"

def test_prose():
    assert prose("<!-- WARNING -->", "") == prose("[![docs](https://x.org/badge.svg)](https://x.org)", "") == ""
    assert prose("::: {.callout-note}\nRead.\n:::", "") == ":::{note}\nRead.\n:::"
    assert prose("::: {.border}\n::: {.callout-tip}\nRead.\n:::\n:::", "") == ":::{tip}\nRead.\n:::"
    assert prose(":::", "") == prose("::: {.py-2 .border}", "") == ""

def cell(source, **data): return v4.new_code_cell(source, outputs=[v4.new_output("execute_result", data)] if data else [])

def test_directives_are_acted_on():
    assert code(cell("#| include: false\n1"), "") is None
    shown = code(cell("#| echo: false\n#| hide_line\n1+1"), "")
    assert (shown.source, shown.metadata.tags) == ("1+1", ["remove-input"])
    assert code(cell("show_doc(f)", **{"text/markdown": "### f\n\nIt folds."}), "").source == "### `f`\n\nIt folds."

def test_problems_are_seen(tmp_path):
    (tmp_path/"a.html").write_text('<p id="x">fine</p><a href="b.html#y">b</a><a href="#x">x</a><a href="b.html#z">z</a><a href="c.html">c</a>')
    (tmp_path/"b.html").write_text('<p id="y">\n#| export\n</p><p>\n::: {.note}\n</p><p>| a |\n|---|</p><script>\n#| hidden\n</script>')
    (tmp_path/"d.html").write_text('<p>see [<code>bench</code>](../bench.html)</p><pre>f[0](x)</pre><code>[a](b)</code>')
    assert set(problems(tmp_path)) == {"a.html: broken link b.html#z", "a.html: broken link c.html",
                                       "b.html: shows #| export", "b.html: shows ::: {.note}", "b.html: shows |---|",
                                       "d.html: shows […](../bench.html)"}


def test_contributing_names_every_notebook_of_the_library():
    rows = re.findall(r"^\| (`.*?) \|", (root/"CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {re.sub(r"^[^_]*_", "", o.stem) for o in (root/"nbs").glob("[0-9]*.ipynb")} <= named

# ---------------------------------------------------------------- what the tutorials show

lessons = sorted((root/"nbs"/"tutorials").glob("*.ipynb"))

def code_cells(path): return [o for o in json.loads(path.read_text(encoding="utf-8"))["cells"] if o["cell_type"] == "code"]

def starred(module):
    "What `from module import *` brings"
    m = importlib.import_module(module)
    return set(getattr(m, "__all__", None) or [o for o in vars(m) if o[0] != "_"])

def bound(code):
    "The names that `code` defines, imports or assigns"
    out = set()
    for n in ast.walk(ast.parse(code)):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store): out.add(n.id)
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): out.add(n.name)
        if isinstance(n, ast.Import): out |= {(a.asname or a.name).split(".")[0] for a in n.names}
        if isinstance(n, ast.ImportFrom): out |= set().union(*(starred(n.module) if a.name == "*" else {a.asname or a.name} for a in n.names))
    return out

def used(code): return {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}

def hidden_names(cells):
    "What the code of a page uses and only a hidden cell defines"
    shown = [visible(o) for o in cells]
    hidden = ["".join(o["source"]) for o, s in zip(cells, shown) if not s]
    known, unseen = (set().union(*map(bound, filter(None, o))) for o in (shown, hidden))
    return (set().union(*map(used, shown)) & unseen) - known

def test_hidden_names_are_found():
    cells = [cell("#| hide\ntmp = 1\nimport os"), cell("x = tmp\nassert os #| hide_line")]
    assert hidden_names(cells) == {"tmp"} and hidden_names([*cells, cell("tmp = 2")]) == set()

@pytest.mark.parametrize("path", lessons, ids=lambda o: o.stem)
def test_code_that_a_page_shows_runs_when_copied(path):
    assert not hidden_names(code_cells(path)), "define these in a cell that the page shows"

@pytest.mark.parametrize("path", lessons, ids=lambda o: o.stem)
def test_code_can_be_pasted_at_the_prompt(path):
    assert not [o for o in map(visible, code_cells(path)) if o and not pastes(o)], "run `python nbs/_tools/prompt.py` on it"

def test_spaced():
    assert spaced("def f():\n    a = 1\n\n    return a\nf()\nfor i in x: i\n# so\nx") == "def f():\n    a = 1\n    return a\n\nf()\nfor i in x: i\n\n# so\nx"
    text = "if x:\n    s = '''a\n\nb'''\ny"
    assert spaced(text) == text.replace("\ny", "\n\ny") and spaced(spaced(text)) == spaced(text)

FROM = "git+https://github.com/fastai-bnfold/fastai-bnfold"
BROUGHT = {"fastai", "fastai_bnfold", "fastcore", "torch", "torchvision", "sklearn", "matplotlib", "numpy", "pandas", "PIL", "IPython"}  # by fastai, or by Colab

def imported(cells):
    "The packages that the code of a notebook imports, and fasterai's and timm's that fastai loads by name"
    names = set()
    for n in (n for c in cells for n in ast.walk(ast.parse("".join(c["source"])))):
        if isinstance(n, ast.Import): names |= {a.name.split(".")[0] for a in n.names}
        if isinstance(n, ast.ImportFrom): names.add(n.module.split(".")[0])
        if isinstance(n, ast.Constant) and n.value in ("regnetx_002", "resnet10t"): names.add("timm")
    return names - set(sys.stdlib_module_names) - BROUGHT - {o.stem for o in (root/"nbs"/"_tools").glob("*.py")}

@pytest.mark.parametrize("path", [o for o in lessons if "options" not in o.stem], ids=lambda o: o.stem)
def test_colab_installs_what_the_page_imports(path):
    line = re.search(r"\'pip\', (\"|\')install -q (.*)\1\)", "\n".join("".join(o["source"]) for o in code_cells(path)))[2]
    assert FROM in line
    brought = set(re.findall(r"[\w-]+", line)) | ({"onnx", "onnxruntime"} if "[onnx]" in line else set())
    assert imported(code_cells(path)) <= brought

def test_one_install_line():
    "Where something is to be installed, it is from the same address"
    texts = [root/"README.md", root/"CONTRIBUTING.md", *lessons]
    lines = [o for p in texts for o in re.findall(r"pip install[^`\n]*fastai.bnfold[^`\n]*", p.read_text(encoding="utf-8"))]
    assert lines and not [o for o in lines if FROM not in o]

def test_the_options_are_those_of_the_signatures():
    from options import command_table, options, python_table, verbs
    cells = json.loads((root/"nbs"/"tutorials"/"00_options.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = ["".join(o["data"].get("text/markdown", "")) for c in cells for o in c.get("outputs", []) if "data" in o]
    assert [python_table(), command_table()] == shown, "run `make notebooks NB=nbs/tutorials/00_options.ipynb`"
    assert not [(verb, name) for verb, f in verbs().items() for name, _, text in options(f) if not text]

def private_or_mock(code):
    "Does `code` use a private name, or replace a part by a mock? No page for users should"
    for n in ast.walk(ast.parse(code)):
        name = n.id if isinstance(n, ast.Name) else n.attr if isinstance(n, ast.Attribute) else ""
        if name == "mock" or re.match(r"_[a-z]", name) and not name.endswith("_repr"): return True
        if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("unittest"): return True
    return False

@pytest.mark.parametrize("path", [*lessons, root/"index.ipynb"], ids=lambda o: o.stem)
def test_lessons_use_public_names_only(path):
    assert private_or_mock("f._go()") and private_or_mock("with mock.patch(x): pass") and not private_or_mock("_ = f(x)")
    assert not [o for o in map(visible, code_cells(path)) if private_or_mock(o)]
