"""Builds the documentation as HTML in _docs/, without Quarto: nbdev prepares the notebooks (hidden cells out, API entries
and links in), this turns them into pages that Sphinx renders, and looks at the result."""
import functools, os, posixpath, re, shutil, sys, warnings
from html.parser import HTMLParser
from pathlib import Path
import yaml
import nbdev.serve_drv
from nbdev.config import get_config, nbpath2html
from nbdev.serve import proc_nbs
from nbformat import read, write, v4
from sphinx.cmd.build import main as sphinx
from sidebar import groups

here = Path(__file__).resolve().parent
root = here.parents[1]
repo, site = "https://github.com/fastai-bnfold/fastai-bnfold/blob/main/", "https://fastai-bnfold.github.io/fastai-bnfold/"
texts = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}

def stays(f):
    "Let `f` leave the working folder as it is: a notebook may change into one that is gone when its process ends"
    @functools.wraps(f)
    def _f(*args):
        home = os.getcwd()
        try: return f(*args)
        finally: os.chdir(home)
    return _f

# In every worker, since each imports this file:
nbdev.serve_drv.main = stays(nbdev.serve_drv.main)
warnings.filterwarnings("ignore", message="Found cells containing imports")  # hidden ones, which nbdev runs as they are

# links

def page(path):
    "The page, with its folder, that the notebook or text at `path` becomes; None for a file that is not on the site"
    if path in texts: return texts[path] + ".html"
    return nbpath2html(path).as_posix() if path.endswith(".ipynb") else None

def target(link, folder):
    "Where `link`, in a page of `folder`, leads on the site"
    if link.startswith(site): link = posixpath.relpath(link[len(site):] or "index.html", folder or ".")
    path, hash, part = link.partition("#")
    if not path or re.match(r"\w+:", path) or path.endswith(".html"): return link
    path = path.removeprefix("nbs/")  # index.ipynb lies above the others
    if path.endswith((".svg", ".png")): return path
    return (page(path) or repo + posixpath.normpath(posixpath.join("nbs" if folder else "", folder, path))) + hash + part

def private(name):
    "Is `name`, such as `BNFolder._commit`, no part of the interface?"
    return any(o.startswith("_") for o in name.split("."))

def unlinked(text):
    "`text` without what nbdev makes a link of though it is one already, or has no entry to lead to"
    text = re.sub(r"\[\[(`[^`]*`)\]\([^)\s]*\)\]", r"[\1]", text)
    return re.sub(r"\[(`[^`]*`)\]\(" + re.escape(site) + r"[^)\s#]*#([^)\s]*)\)", lambda m: m[1] if private(m[2]) else m[0], text)

def relink(text, folder): return re.sub(r"\]\(([^)\s]+)\)", lambda m: f"]({target(m[1], folder)})", unlinked(text))

# cells

def anchor(name):
    "What nbdev's links ask for, where Sphinx would spell it otherwise"
    return f'<span id="{name.lower()}"></span>\n\n' if re.search(r"[._]", name) else ""

def api(text):
    "An entry of the API as nbdev writes it for Quarto, for Sphinx: the heading first, then the link to the source"
    src = re.search(r'\[source\]\(([^)]*?)(#LNone)?\)\{[^}]*\}', text)
    head = re.search(r"^#+ (.*)$", text, re.MULTILINE)
    if private(head[1]): return ""
    link = f'<a class="source" href="{src[1]}">source</a>\n\n' if src else ""
    return f"{anchor(head[1])}### `{head[1]}`\n\n{link}" + text[head.end():].strip().replace("__main__.", "")

def fences(text):
    "Quarto's callouts as notes, its other fences gone"
    kept = []
    for line in text.splitlines():
        m = re.match(r"(:{3,}) *(.*)$", line)
        if not m: yield line
        elif m[2]:
            name = re.search(r"callout-(\w+)", m[2])
            kept.append(name)
            if name: yield f"{m[1]}{{{name[1]}}}"
        elif kept and kept.pop(): yield line

def prose(text, folder):
    "Markdown without comments, badges and Quarto's fences, its links final"
    text = re.sub(r"^\[!\[.*\n?", "", text, flags=re.MULTILINE)
    return relink("\n".join(fences(re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))), folder).strip()

def directives(source): return dict(re.findall(r"^#\| *([\w-]+):? *(.*)$", source, re.MULTILINE))

def markdown(out): return "".join(out.get("data", {}).get("text/markdown", ""))

def code(cell, folder):
    "A code cell as the page shows it: directives acted on and gone"
    d = directives(cell.source)
    if d.get("include") == "false": return
    if re.search(r"^show_doc\(", cell.source, re.MULTILINE):
        entry = relink(api("".join(map(markdown, cell.outputs))), folder) if cell.outputs else ""
        return v4.new_markdown_cell(entry) if entry else None
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE).strip()
    tags = [t for k, v, t in [("echo", "false", "remove-input"), ("output", "false", "remove-output"), ("code-fold", "show", "hide-input")]
            if d.get(k) == v]
    cell.metadata = {"tags": tags}
    for o in cell.outputs:
        if markdown(o): o.data["text/markdown"] = relink(markdown(o), folder)
    return cell if cell.source else None

def convert(cell, folder):
    if cell.cell_type == "code": return code(cell, folder)
    text = prose(cell.source, folder) if cell.cell_type == "markdown" else ""
    return v4.new_markdown_cell(text) if text else None

# pages

def front(nb):
    "Title and description, as nbdev left them"
    d = yaml.safe_load(nb.cells[0].source.strip().strip("-"))
    about = d.get("description", "")
    return v4.new_markdown_cell(f"# {d['title']}" + (f"\n\n*{about}*" if about else ""))

def toc(caption, names): return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```\n\n"

def stage(proc, out):
    "Write every page below `out`; the index gets the navigation"
    pages = {}
    for src in sorted(proc.rglob("*.ipynb")):
        path = src.relative_to(proc)
        folder = "" if path.parent == Path(".") else path.parent.as_posix()
        nb = read(src, as_version=4)
        nb.cells = [front(nb), *filter(None, [convert(o, folder) for o in nb.cells])]
        nb.metadata = {"kernelspec": {"name": "python3", "display_name": "python3"}, "language_info": {"name": "python"}}
        pages[nbpath2html(path).with_suffix("").as_posix()] = nb
    nav = "".join(toc(*o) for o in groups(list(pages)).items()) + toc("Project", texts.values())
    pages["index"].cells.append(v4.new_markdown_cell(nav))
    for name, nb in pages.items():
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        write(nb, out/f"{name}.ipynb")

def build(out):
    "Everything into `out`, by way of _proc, build/site and build/html"
    work, html = root/"build"/"site", root/"build"/"html"
    for o in (work, html, out): shutil.rmtree(o, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.copytree(root/"nbs"/"images", work/"images")
    stage(proc_nbs(force=True, n_workers=2), work)
    for o, name in texts.items(): (work/f"{name}.md").write_text(relink((root/o).read_text(encoding="utf-8"), ""), encoding="utf-8")
    res = sphinx(["-q", "-W", "--keep-going", "-c", str(here), "-b", "html", "-d", str(root/"build"/"doctrees"), str(work), str(html)])
    shutil.move(html, out)
    return res

# the check

class Page(HTMLParser):
    "Names, links and visible text of one page; that in running text once more, without code"
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.text, self.prose, self.stack = set(), [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.ids |= {d.get("id"), d.get("name")}
        self.links += filter(None, [d.get("href"), d.get("src")])
        if tag in ("script", "style", "pre", "code"): self.stack.append(tag)
    def handle_endtag(self, tag):
        if tag in self.stack: self.stack.remove(tag)
    def handle_data(self, data):
        if not {"script", "style"} & set(self.stack): self.text.append(data)
        if not self.stack: self.prose.append(data)
        elif self.stack[-1] == "code": self.prose.append("…")

def broken(path, pages):
    "The links of the page at `path` that lead nowhere"
    for o in pages[path].links:
        if re.match(r"\w+:|//", o): continue
        file, _, part = o.partition("#")
        dest = (path.parent/file.partition("?")[0]).resolve() if file else path
        if not dest.exists() or (part and dest in pages and part not in pages[dest].ids): yield o

def problems(out):
    "One line for every broken link, and for every directive, table or Markdown link that a reader would see as it was written"
    pages = {o.resolve(): Page(o) for o in out.rglob("*.html")}
    for path, p in pages.items():
        for o in broken(path, pages): yield f"{path.name}: broken link {o}"
        for o in re.findall(r"^ *#\|.*|^ *:{3,}.*|\{target=.*|^show_doc.*|\|:?[-–—]+:?\|.*", "".join(p.text), re.MULTILINE): yield f"{path.name}: shows {o}"
        for o in re.findall(r"\[[^\]\n]*\]\([^)\s]+\)", "".join(p.prose)): yield f"{path.name}: shows {o}"

def main():
    out = get_config(root).doc_path
    res = build(out)
    bad = list(problems(out))
    for o in bad: print(o, file=sys.stderr)
    if not (res or bad): print(f"{len(list(out.rglob('*.html')))} pages: open {out.relative_to(root)/'index.html'}")
    return res or len(bad) > 0

if __name__ == "__main__": sys.exit(main())
