"Take progress bars out of the recorded outputs of notebooks: python bars.py NOTEBOOK..."
import json
import sys
from pathlib import Path


def without_bars(output):
    "`output` without the lines that a progress bar drew over; None where nothing is left of it"
    if output["output_type"] != "stream": return output
    lines = [line for line in output["text"] if "\r" not in line]
    return {**output, "text": lines} if "".join(lines).strip() else None


for path in map(Path, sys.argv[1:]):
    nb = json.loads(path.read_text())
    for cell in nb["cells"]:
        if cell["cell_type"] == "code": cell["outputs"] = [o for o in map(without_bars, cell["outputs"]) if o]
    path.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
