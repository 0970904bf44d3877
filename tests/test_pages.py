"How nbdev's processed cells become pages of the documentation: links, API entries, directives, and the look at the result."
import sys
from pathlib import Path
import pytest
from nbformat import v4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/"nbs"/"_tools"))
from pages import api, code, problems, prose, relink, site, target

@pytest.mark.parametrize("link, folder, want", [
    ("nbs/05_plan.ipynb", "", "plan.html"),
    ("05_plan.ipynb#reasons", "", "plan.html#reasons"),
    ("../05_plan.ipynb", "tutorials", "../plan.html"),
    ("01_heads.ipynb", "tutorials", "heads.html"),
    (site + "learner.html#learner.fold_bn", "", "learner.html#learner.fold_bn"),
    (site + "learner.html#learner.fold_bn", "tutorials", "../learner.html#learner.fold_bn"),
    ("CHANGELOG.md", "", "changelog.html"),
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

def test_prose():
    assert prose("<!-- WARNING -->", "") == ""
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
    assert set(problems(tmp_path)) == {"a.html: broken link b.html#z", "a.html: broken link c.html",
                                       "b.html: shows #| export", "b.html: shows ::: {.note}", "b.html: shows |---|"}
