"""Lets the code of the tutorials be pasted at Python's own prompt, which wants an empty line after each `def` or `with`,
and none inside: python prompt.py NOTEBOOK..."""
import ast, json, re, sys
from codeop import compile_command
from pathlib import Path

def pastes(code):
    "Does Python's prompt take `code` line by line?"
    held = []
    for line in [*code.splitlines(), ""]:
        held.append(line)
        try: done = compile_command("\n".join(held), "<prompt>", "single")
        except SyntaxError: return False
        if done is not None or not "".join(held).strip(): held = []
    return not held

def in_strings(tree):
    "The lines that a string of several lines goes on in"
    texts = [n for n in ast.walk(tree) if isinstance(n, (ast.Constant, ast.JoinedStr)) and n.end_lineno > n.lineno]
    return {i for n in texts for i in range(n.lineno, n.end_lineno)}

def spaced(code):
    "`code` with an empty line after each compound statement, and none inside"
    tree, lines = ast.parse(code), code.splitlines()
    kept, drop, after = in_strings(tree), set(), set()
    for node, following in zip(tree.body, [*tree.body[1:], None]):
        if not hasattr(node, "body"): continue
        drop |= {i for i in range(node.lineno, node.end_lineno) if not lines[i].strip() and i not in kept}
        if following and lines[node.end_lineno].strip(): after.add(node.end_lineno)
    out = []
    for i, line in enumerate(lines):
        if i in after: out.append("")
        if i not in drop: out.append(line)
    return "\n".join(out)

HIDDEN = re.compile(r"^#\| *(hide|export|default_exp)\b|^#\| *(echo|include): *false", re.MULTILINE)

def visible(cell):
    "The code of a cell as its page shows it; nothing where it does not"
    source = "".join(cell["source"])
    if cell["cell_type"] != "code" or HIDDEN.search(source): return ""
    shown = [o for o in source.splitlines() if not re.search(r"#\| *hide_line", o)]
    return "\n".join(o for o in shown if not o.startswith("#|"))

def main(paths):
    for path in map(Path, paths):
        nb = json.loads(path.read_text(encoding="utf-8"))
        for cell in nb["cells"]:
            if visible(cell): cell["source"] = spaced("".join(cell["source"])).splitlines(True)
        path.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")

if __name__ == "__main__": main(sys.argv[1:])
