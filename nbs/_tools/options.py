"The table of all options, from the signatures and their comments: nbs/tutorials/00_options.ipynb shows it."
from inspect import Parameter, signature
from fastai.basics import Learner
from fastcore.docments import docments
from fastai_bnfold.all import BNFolder, bench, engines
from fastai_bnfold.cli import parser

OWNERS = {"learn.": Learner, "folder.": BNFolder}
METHODS = {"learn.": ["fold_plan", "fold_bn", "unfold_bn", "folded", "export_onnx"], "folder.": ["plan", "fold", "unfold", "folding"]}

def verbs():
    "Name and function of each verb that is there"
    methods = {prefix+name: getattr(OWNERS[prefix], name, None) for prefix, names in METHODS.items() for name in names}
    return {k: f for k, f in methods.items() if f} | {"engines()": engines, "bench()": bench}

def shown(name, default):
    "An option as one would type it, with its default"
    if default is Parameter.empty: return f"`{name}`, required"
    return f"`{name}={'noop' if callable(default) else repr(default)}`"

def options(f):
    "(name, how it is written, text) of each option of `f`"
    texts = docments(f)
    for name, p in signature(f).parameters.items():
        if name == "self" or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL): continue
        yield name, shown(name, p.default), (texts.get(name) or "").strip()

def gathered():
    "(name, text): {how it is written: verbs}, so that what several verbs share stands in one row"
    found = {}
    for verb, f in verbs().items():
        for name, written, text in options(f): found.setdefault((name, text), {}).setdefault(written, []).append(verb)
    return found

def row(*cells): return "| " + " | ".join(o.replace("|", "\\|") for o in cells) + " |"

def python_table():
    "Every option of every verb, sorted by name"
    out = [row("option", "what it says", "taken by"), "|:--|:--|:--|"]
    for (_, text), taken in sorted(gathered().items(), key=lambda o: o[0][0].lower()):
        by = ", ".join(f"`{verb}`" for same in taken.values() for verb in same)
        out.append(row(" or ".join(taken), text, by))
    return "\n".join(out)

def command_table():
    "Every argument of `bnfold`"
    out = [row("argument", "what it says"), "|:--|:--|"]
    for a in parser()._actions:
        name = ", ".join(a.option_strings) or str(a.metavar)
        value = f" {a.metavar}" if a.option_strings and a.metavar else ""
        out.append(row(f"`{name}{value}`", a.help))
    return "\n".join(out)
