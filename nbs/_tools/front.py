"What the README shows of the benchmarks, from the data in nbs/data: a table, two sentences, and the picture nbs/images/front.svg."
import json
from html import escape
from pathlib import Path
from fastai_bnfold.bench import Timings, human

nbs = Path(__file__).resolve().parents[1]
GREY, GREEN, INK = "#8c8c8c", "#2a9d8f", "#808080"  # as in the report; the ink reads on white and on black
LEFT = 170  # where bars and layers begin
# The article's figures and those of a second source, which measured a merge in Caffe: ms before, after, and whose they are
THEIRS = [("ResNet50", 6.17, 4.47, "the article, its GPU"), ("VGG16-BN", 2.77, 2.41, "the article, its GPU"),
          ("ResNet50", 11.03, 7.3, "a merge in Caffe, its GPU (GTX 1080Ti)"), ("ResNet50", 176.17, 161.69, "a merge in Caffe, its CPU (i7)")]

def rows(section):
    "The rows of one data file, and the machine; nothing where it was not measured"
    path = nbs/"data"/f"{section}.json"
    d = json.loads(path.read_text()) if path.exists() else dict(rows={}, machine={})
    return list(d["rows"].values() if isinstance(d["rows"], dict) else d["rows"]), d["machine"]

def measured(section="speed", threads=1):
    "(network, `Timings`) of one image, in the order of the file"
    return [(r["net"], Timings(r["times"])) for r in rows(section)[0]
            if r["batch"] == 1 and r.get("threads", threads) == threads and not r.get("graphs") and "folded" in r["times"]]

def line(*cells): return "| " + " | ".join(cells) + " |"

def ours(section, who):
    "Lines of the table for what was measured here"
    for net, t in measured(section):
        ratio, lo, hi = t.ratio("folded")
        said = f"{ratio:.3f} ({lo:.3f} to {hi:.3f})" + (", within noise" if lo <= 1 <= hi else "")
        yield line(net, f"{human(t.median('unfolded'))} → {human(t.median('folded'))}", said, who)

def table():
    "One image, before and after, by network: measured here, then what others published"
    gpu = rows("gpu")[1]
    out = [line("network", "one image, unfolded → folded", "ratio (95%)", "measured"), "|:--|:--|:--|:--|"]
    out += ours("speed", "here, CPU, one thread")
    if gpu: out += ours("gpu", f"here, {gpu.get('gpu', 'a GPU')}")
    out += [line(n, f"{b:.2f} ms → {a:.2f} ms", f"{a/b:.2f}", who) for n, b, a, who in THEIRS]
    return "\n".join(out)

def coverage():
    "How many layers of fastai's own models fold, here and with other tools"
    models = rows("zoo_fastai")[0]
    n = sum(r["layers"] for r in models)
    def left(r, tool): return r["layers"] if "fails" in r[tool] or r[tool].get("wrong") else r[tool]["left"]
    def told(tool):
        fails = sum("fails" in r[tool] for r in models)
        return f"{n-sum(left(r, tool) for r in models)}" + (f" and fails on {fails} models" if fails else "")
    return (f"Of the {n} BatchNorm layers in {len(models)} networks as fastai builds them, `fold_bn` folds {told('ours')}; "
            f"`torch.fx`'s `fuse` folds {told('fx')}, fasterai's `BN_Folder` {told('fasterai')}.")

# the picture

def text(x, y, s, size=13, color=INK, anchor="start", weight="normal"):
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">{escape(s)}</text>'

def box(x, y, w, s, color, dashed=False):
    "A layer"
    look = f'fill="none" stroke="{color}" stroke-dasharray="4 3"' if dashed else f'fill="{color}"'
    return f'<rect x="{x:g}" y="{y:g}" width="{w}" height="28" rx="4" {look}/>' + text(x+w/2, y+19, s, 13, color if dashed else "#fff", "middle")

def layers(y, label, boxes):
    "A row of layers, with lines between them"
    out, x = [text(0, y+19, label, weight="bold")], LEFT
    for i, (w, *look) in enumerate(boxes):
        if i: out.append(f'<path d="M{x-10} {y+14}h8" stroke="{INK}" stroke-width="1.5"/>')
        out.append(box(x, y, w, *look))
        x += w+12
    return out

def bars(y, net, t, full=212):
    "Two bars for one network, as long as their times"
    ratio = t.ratio("folded")[0]
    bar = lambda y, w, color: f'<rect x="{LEFT}" y="{y}" width="{w:.1f}" height="9" fill="{color}"/>'
    said = f"{human(t.median('unfolded'))} → {human(t.median('folded'))}, {abs(1-ratio):.1%} {'less' if ratio < 1 else 'more'}"
    return [text(0, y+14, net), bar(y, full, GREY), bar(y+10, full*ratio, GREEN), text(LEFT+full+8, y+14, said, 12)]

def svg():
    "Before and after: the layers, and the time of one image"
    out = layers(8, "unfolded", [(54, "Conv", GREY), (86, "BatchNorm", GREY), (54, "ReLU", GREY), (60, "Linear", GREY), (86, "BatchNorm", GREY)])
    out += layers(46, "folded", [(54, "Conv", GREEN), (86, "Identity", GREY, True), (54, "ReLU", GREY), (60, "Linear", GREEN), (86, "Identity", GREY, True)])
    out.append(text(0, 108, "One image on one thread of a CPU: the unfolded network's time, and the folded one's", weight="bold"))
    nets = measured()
    for i, (net, t) in enumerate(nets): out += bars(122+30*i, net, t)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 {122+30*len(nets)}" width="672" font-family="Helvetica, Arial, sans-serif" role="img">'
    return "\n".join([head, "<title>A network before and after the fold, and the time of one image for each of seven networks</title>", *out, "</svg>"]) + "\n"

if __name__ == "__main__": (nbs/"images"/"front.svg").write_text(svg(), encoding="utf-8")
