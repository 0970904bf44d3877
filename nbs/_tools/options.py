"The table of all options, from the signatures and their comments: nbs/tutorials/00_options.ipynb shows it."
from inspect import Parameter, signature
from fastai.basics import Learner
from fastcore.docments import docments
from fastai_bnfold.all import BNFolder, bench, engines
from fastai_bnfold.cli import parser

OWNERS = {"": Learner, "BNFolder.": BNFolder}
METHODS = {"": ["fold_plan", "fold_bn", "unfold_bn", "folded", "export_onnx"], "BNFolder.": ["plan", "fold", "unfold", "folding"]}

def verbs():
    "Name and function of each verb that is there"
    methods = {prefix+name: getattr(OWNERS[prefix], name, None) for prefix, names in METHODS.items() for name in names}
    return {k: f for k, f in methods.items() if f} | {"engines": engines, "bench": bench}

def shown(default):
    "A default as one would type it"
    if default is Parameter.empty: return ""
    return "`noop`" if callable(default) else f"`{default!r}`"

def options(f):
    "(name, default, text) of each option of `f`"
    texts = docments(f)
    for name, p in signature(f).parameters.items():
        if name == "self" or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL): continue
        yield name, shown(p.default), (texts.get(name) or "").strip()

def gathered():
    "(name, text): {default: verbs}, so that what several verbs share stands in one row"
    found = {}
    for verb, f in verbs().items():
        for name, default, text in options(f): found.setdefault((name, text), {}).setdefault(default, []).append(verb)
    return found

def row(*cells): return "| " + " | ".join(o.replace("|", "\\|") for o in cells) + " |"

def python_table():
    "Every option of every verb, sorted by name"
    out = [row("option", "default", "what it says", "taken by"), "|:--|:--|:--|:--|"]
    for (name, text), taken in sorted(gathered().items(), key=lambda o: o[0][0].lower()):
        by = ", ".join(f"`{verb}`" for same in taken.values() for verb in same)
        out.append(row(f"`{name}`", ", ".join(filter(None, taken)) or "required", text, by))
    return "\n".join(out)

def command_table():
    "Every argument of `bnfold`"
    out = [row("argument", "what it says"), "|:--|:--|"]
    for a in parser()._actions:
        name = ", ".join(a.option_strings) or str(a.metavar)
        value = f" {a.metavar}" if a.option_strings and a.metavar else ""
        out.append(row(f"`{name}{value}`", a.help))
    return "\n".join(out)
