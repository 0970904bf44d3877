"Writes nbs/sidebar.yml: lessons first, what was measured, the pages of the verbs, then how it works; a new notebook of the library joins the last."
from pathlib import Path
from nbdev.config import get_config, nbpath2html

nbs = Path(__file__).resolve().parents[1]
VERBS, RESULTS = ["learner", "report", "cli", "fold", "deploy", "engines", "bench", "article"], ["benchmarks", "zoo"]

def groups(
    names:list, # Pages without suffix, such as `learner` and `tutorials/heads`, in the order of their notebooks
)->dict: # Caption: names
    "The pages but `index`, as the sidebar shows them"
    lessons = [o for o in names if "/" in o]
    pick = lambda wanted: [o for o in wanted if o in names]
    rest = [o for o in names if o not in (*VERBS, *RESULTS, *lessons, "index")]
    return {"Tutorials": lessons, "Results": pick(RESULTS), "Reference": pick(VERBS), "How it works": rest}

def notebooks(
    folder:Path=nbs, # Of the notebooks
)->dict: # Name of each page: path of its notebook
    "What becomes a page"
    paths = sorted(o.relative_to(folder) for o in folder.rglob("*.ipynb"))
    return {nbpath2html(o).with_suffix("").as_posix(): o.as_posix() for o in paths if not any(p[0] in "._" for p in o.parts)}

def sidebar(
    paths:dict, # Name of each page: path of its notebook
)->str:
    "The text of sidebar.yml"
    lines = ["website:", "  sidebar:", "    contents:", "      - index.ipynb"]
    for caption, names in groups(list(paths)).items():
        lines += [f"      - section: {caption}", "        contents:", *(f"          - {paths[o]}" for o in names)]
    return "\n".join(lines) + "\n"

if __name__ == "__main__":
    get_config(nbs.parent)
    (nbs/"sidebar.yml").write_text(sidebar(notebooks()), encoding="utf-8")
