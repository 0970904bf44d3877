"What the README shows of the benchmarks, from the data in nbs/data: a few sentences, and the picture nbs/images/front.svg."
import json
from collections import Counter
from html import escape
from pathlib import Path
from typing import NamedTuple
from fastai_bnfold.article import ARTICLE
from fastai_bnfold.bench import Timings, human

nbs = Path(__file__).resolve().parents[1]
GREY, GREEN, PALE, INK = "#8c8c8c", "#2a9d8f", "#a9cfca", "#808080"  # the ink reads on white and on black
ARTICLE_AT = "https://nathanhubens.github.io/posts/deep%20learning/2020/04/20/BN.html"
CAFFE_AT = "https://blog.csdn.net/kangdi7547/article/details/81348254"
CAFFE = {"GTX 1080 Ti": (11.03, 7.3), "i7": (176.17, 161.69)}  # ResNet50, ms before and after

def section(name):
    "The rows of one data file, and the machine; nothing where it was not measured"
    path = nbs/"data"/f"{name}.json"
    d = json.loads(path.read_text()) if path.exists() else dict(rows={}, machine={})
    return list(d["rows"].values() if isinstance(d["rows"], dict) else d["rows"]), d["machine"]

class Row(NamedTuple):
    "One network of the picture"
    net:str
    px:int  # Of the sides of its image
    times:Timings

def measured(name="speed", threads=1):
    "The networks that were timed on one image, in the order of the file"
    return [Row(r["net"], r["px"], Timings(r["times"])) for r in section(name)[0]
            if r["batch"] == 1 and r.get("threads", threads) == threads and not r.get("graphs") and "folded" in r["times"]]

def usual_px(rows):
    "The size that most of `rows` were measured at"
    return Counter(r.px for r in rows).most_common(1)[0][0]

def titled(row, px):
    "The name of a network, with the size of its image where that is not `px`"
    return row.net if row.px == px else f"{row.net}, {row.px} px"

# verdicts

def verdict(t, name="folded", base=None):
    "'faster', 'slower' or 'not told apart', as `Timings` says"
    return t.verdict(name, base)

def less(t):
    "How much less time the folded network takes, with its interval, or that the two cannot be told apart"
    if verdict(t) == "not told apart": return "not told apart"
    ratio, lo, hi = t.ratio("folded")
    if ratio > 1: return f"{ratio-1:.1%} more ({lo-1:.1%} to {hi-1:.1%})"
    return f"{1-ratio:.1%} less ({1-hi:.1%} to {1-lo:.1%})"

# sentences

def span(xs, form):
    "The smallest and the largest of `xs`"
    lo, hi = form(min(xs)), form(max(xs))
    return lo if lo == hi else f"{lo} to {hi}"

def machine_name(m): return m.get("gpu") or m.get("cpu", "a CPU")

def speed_line():
    "What the picture says, in words"
    rows, m = measured(), section("speed")[1]
    said = Counter(verdict(r.times) for r in rows)
    gains = [1-r.times.ratio("folded")[0] for r in rows if verdict(r.times) == "faster"]
    gain = f"One image on one thread of an {machine_name(m)} takes {span(gains, '{:.0%}'.format)} less time on {said['faster']} of {len(rows)} networks."
    apart = f" On {said['not told apart']} the two cannot be told apart." if said["not told apart"] else ""
    slower = f" On {said['slower']} it takes more." if said["slower"] else ""
    return gain + apart + slower

def gpu_line():
    "The same on a GPU; nothing where none was measured"
    rows, m = measured("gpu"), section("gpu")[1]
    return f"On an {machine_name(m)}: " + ", ".join(f"{r.net} {less(r.times)}" for r in rows) + "." if rows else ""

def engine_line(engine="ONNX Runtime"):
    "What folding and `engine` bring together, over the unfolded network in PyTorch"
    rows = [(r["net"], r["px"], r["threads"], Timings(r["times"])) for r in section("after")[0] if f"folded, {engine}" in r["times"]]
    name, base = f"folded, {engine}", "unfolded, eager"
    ratios = [t.ratio(name, base)[0] for *_, t in rows]
    net, px, threads, best = next((r for r in rows if r[0] == "ResNet50"), rows[0])
    same = sum(verdict(t, name, f"unfolded, {engine}") == "not told apart" for *_, t in rows)
    own = f" Nearly all of that is {engine}'s own: on {same} of them, folding first could not be told apart from not folding." if same else ""
    return (f"{engine} takes {span(ratios, '{:.2f}'.format)} of the time of PyTorch on {len(rows)} networks: a {net} at {px} px goes from "
            f"{human(best.median(base))} to {human(best.median(name))} (one image, {threads} thread{'s' if threads > 1 else ''}).{own}")

def int8_line():
    "What a file in 8 bits brings a ResNet50, and what it costs"
    r = next((r for r in section("int8")[0] if r["net"] == "ResNet50" and "times" in r), None)
    if r is None: return ""
    ratio = Timings(r["times"]).ratio("ONNX Runtime int8", "unfolded")[0]
    before, now = (r["measures"][k]["accuracy"] for k in ("PyTorch", "int8"))
    threads = f"{r['threads']} thread{'s' if r['threads'] > 1 else ''}"
    return (f"In 8 bits ResNet50 takes {ratio:.2f} of the time (one image of {r['px']} px, {threads}), in a file {r['size']/r['float_size']:.2f} times as large; "
            f"trained on the digits, its accuracy goes from {before:.4f} to {now:.4f}.")

def others_line():
    "The ratios that others published, for the same networks"
    def ratio(ms): return f"{ms[1]/ms[0]:.2f}"
    a = {k: ratio(v["ms"]) for k, v in ARTICLE.items()}
    c = {k: ratio(v) for k, v in CAFFE.items()}
    return (f"On its author's GPU, [the article]({ARTICLE_AT}) measured a ratio of {a['resnet50']} for ResNet50 and of {a['vgg16_bn']} for VGG16-BN. "
            f"[A merge in Caffe]({CAFFE_AT}) brought ResNet50 to {c['GTX 1080 Ti']} on a GTX 1080 Ti and to {c['i7']} on an i7.")

def coverage():
    "How many layers of fastai's own models fold, here and with other tools"
    models = section("zoo_fastai")[0]
    n = sum(r["layers"] for r in models)
    def left(r, tool): return r["layers"] if "fails" in r[tool] or r[tool].get("wrong") else r[tool]["left"]
    def told(tool):
        fails = sum("fails" in r[tool] for r in models)
        return f"{n-sum(left(r, tool) for r in models)}" + (f" and fails on {fails} models" if fails else "")
    return (f"Of the {n} BatchNorm layers in {len(models)} networks as fastai builds them, `fold_bn` folds {told('ours')}. "
            f"`torch.fx`'s `fuse` folds {told('fx')}, fasterai's `BN_Folder` {told('fasterai')}.")

# the picture

WIDE = 400

def text(x, y, s, size=12, anchor="start", weight="normal", color=INK):
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">{escape(s)}</text>'

def box(x, y, w, s, color, dashed=False):
    "A layer"
    look = f'fill="none" stroke="{color}" stroke-dasharray="4 3"' if dashed else f'fill="{color}"'
    return f'<rect x="{x:g}" y="{y:g}" width="{w}" height="26" rx="4" {look}/>' + text(x+w/2, y+17, s, anchor="middle", color=color if dashed else "#fff")

def layers(y, label, boxes, x=66):
    "A row of layers, with lines between them"
    out = [text(0, y+17, label, weight="bold")]
    for i, (w, *look) in enumerate(boxes):
        if i: out.append(f'<path d="M{x-8} {y+13}h6" stroke="{INK}" stroke-width="1.5"/>')
        out.append(box(x, y, w, *look))
        x += w+10
    return out

def bars(y, name, t):
    "Name and figures of one network, and under them two bars as long as its times"
    def bar(y, w, color): return f'<rect x="0" y="{y:g}" width="{w:.1f}" height="6" fill="{color}"/>'
    said = f"{human(t.median('unfolded'))}, {less(t)}"
    pale = verdict(t) == "not told apart"
    return [text(0, y, name), text(WIDE, y, said, anchor="end"), bar(y+4, WIDE, GREY), bar(y+11, WIDE*t.ratio("folded")[0], PALE if pale else GREEN)]

def svg():
    "Before and after: the layers, and the time of one image"
    out = layers(2, "unfolded", [(42, "Conv", GREY), (76, "BatchNorm", GREY), (42, "ReLU", GREY), (52, "Linear", GREY), (76, "BatchNorm", GREY)])
    out += layers(36, "folded", [(42, "Conv", GREEN), (76, "Identity", GREY, True), (42, "ReLU", GREY), (52, "Linear", GREEN), (76, "Identity", GREY, True)])
    rows = measured()
    px = usual_px(rows)
    out.append(text(0, 88, f"One image of {px} px, one CPU thread: unfolded (grey, ms), folded (green)", size=11, weight="bold"))
    for i, r in enumerate(rows): out += bars(112+36*i, titled(r, px), r.times)
    title = f"A network before and after the fold, and the time of one image on several networks"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {100+36*len(rows)}" width="560" font-family="Helvetica, Arial, sans-serif" role="img">'
    return "\n".join([head, f"<title>{title}</title>", *out, "</svg>"]) + "\n"

if __name__ == "__main__": (nbs/"images"/"front.svg").write_text(svg(), encoding="utf-8")
