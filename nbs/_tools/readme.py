"Writes README.md from index.ipynb, and the picture in it: markdown by nbconvert, without hidden cells and directives, the same on every run."
import re
from pathlib import Path
from nbconvert import MarkdownExporter
from nbformat import read
from traitlets.config import Config

root = Path(__file__).resolve().parents[2]
note = "<!-- Made from index.ipynb by `make readme`: edit that, not this. -->\n\n"
hidden = [r"\s*#\|\s*(hide|default_exp)\b", r"\s*$"]
directive = re.compile(r"^#\|.*\n?", re.MULTILINE)
silent = re.compile(r"^#\| *echo: *false", re.MULTILINE)

def exporter():
    "Text outputs only: GitHub shows no styles, and a picture would be a file of its own"
    c = Config()
    c.RegexRemovePreprocessor.patterns = hidden
    c.MarkdownExporter.preprocessors = ["nbconvert.preprocessors.RegexRemovePreprocessor"]
    c.NbConvertBase.display_data_priority = ["text/markdown", "text/plain"]
    return MarkdownExporter(config=c)

def readme(path):
    "The text of README.md for the notebook at `path`"
    nb = read(path, as_version=4)
    nb.metadata["language_info"] = {"name": "python"}
    for o in nb.cells:
        if o.cell_type != "code" or any(re.match(p, o.source) for p in hidden): continue
        if silent.search(o.source): o.metadata["transient"] = {"remove_source": True}
        o.source = directive.sub("", o.source)
    text, _ = exporter().from_notebook_node(nb)
    text = "\n".join(o.rstrip() for o in text.splitlines())
    return note + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

if __name__ == "__main__":
    import front
    (root/"nbs"/"images"/"front.svg").write_text(front.svg(), encoding="utf-8")
    (root/"README.md").write_text(readme(root/"index.ipynb"), encoding="utf-8")
