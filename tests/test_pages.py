"How nbdev's processed cells become pages of the documentation: links, API entries, directives, and the look at the result."
import os, sys
from pathlib import Path
import pytest
from nbformat import v4

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/"nbs"/"_tools"))
from pages import api, code, private, problems, prose, relink, site, stays, target
from sidebar import groups, notebooks, sidebar

@pytest.mark.parametrize("link, folder, want", [
    ("nbs/09_plan.ipynb", "", "plan.html"),
    ("09_plan.ipynb#reasons", "", "plan.html#reasons"),
    ("../09_plan.ipynb", "tutorials", "../plan.html"),
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
    assert relink(f"[[`bench`]({site}bench.html#bench)](../14_bench.ipynb)", "tutorials") == "[`bench`](../bench.html)"

def test_a_notebook_may_change_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"x").mkdir()
    stays(os.chdir)(tmp_path/"x")
    assert Path.cwd() == tmp_path

def test_the_sidebar_has_every_notebook_once_and_what_users_need_first():
    pages = notebooks()
    by = groups(list(pages))
    assert sorted(sum(by.values(), [])) == sorted(set(pages) - {"index"})
    assert list(by)[:2] == ["Use", "Tutorials"] and by["Use"][0] == "learner" and "trace" in by["How it works"]
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
