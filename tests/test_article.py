"The article's reproduction: its data, its refusals, its figures, and a run of it in small."
import io, os, subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from fastai_bnfold import article
from fastai_bnfold.all import BNFolder
from fastai_bnfold.article import ARTICLE, NETS, InputError, check_folder, find_data, get_dls, main, new_learner, write_digits

torch.set_num_threads(1)

def picture(path, k, size=24, mode="RGB"):
    "A noisy image whose colour depends on `k`"
    path.parent.mkdir(parents=True, exist_ok=True)
    a = np.random.default_rng(k).integers(0, 100, (size, size + k % 5, 3), dtype=np.uint8)
    a[..., k % 3] += 120
    Image.fromarray(a).convert(mode).save(path)

def folder(path, train=("a", "b"), val=None, n=4, ext="png"):
    "A small folder in Imagenette's layout"
    for part, classes in (("train", train), ("val", train if val is None else val)):
        for i, c in enumerate(classes):
            for j in range(n): picture(path/part/c/f"{j}.{ext}", i)
    return path

def tiny_net(num_classes):
    conv = lambda i, o, **kw: [nn.Conv2d(i, o, 3, stride=2, padding=1, **kw), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*conv(3, 8), *conv(8, 16, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))

def never(num_classes): raise AssertionError("training started")

def run(*args, net=tiny_net):
    "Exit code, standard output and standard error of `main`"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): code = main([str(a) for a in args], nets=dict(tiny=net), rounds=6)
    return code, out.getvalue(), err.getvalue()

def refused(says, *args):
    "One line on standard error with `says` in it, exit code 2, nothing else, and no network was made"
    code, out, err = run(*args, net=never)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.endswith("\n")
    for o in [says] if isinstance(says, str) else says: assert o in err


# ------------------------------------------------------------------ what cannot be run
def test_no_folder(tmp_path): refused(["no folder", "nowhere", "give digits, imagenette or a folder in Imagenette's layout"], "--nets", "tiny", "--data", tmp_path/"nowhere", "--out", tmp_path)

def test_a_file(tmp_path):
    picture(tmp_path/"x.png", 0)
    refused(["x.png is a file", "give digits"], "--nets", "tiny", "--data", tmp_path/"x.png", "--out", tmp_path)

@pytest.mark.parametrize("part", ["train", "val"])
def test_wrong_layout(tmp_path, part):
    (folder(tmp_path/"d")/part).rename(tmp_path/"d/other")
    refused([f"no folder {part}/ in", "train/<class>/*, val/<class>/*"], "--nets", "tiny", "--data", tmp_path/"d", "--out", tmp_path)

def test_no_images(tmp_path):
    for part in ("train", "val"): (tmp_path/"d"/part/"a").mkdir(parents=True)
    refused(["no images in", "train"], "--nets", "tiny", "--data", tmp_path/"d", "--out", tmp_path)

def test_one_class(tmp_path):
    refused(["has 1 class, 'a'", "give 2 or more"], "--nets", "tiny", "--data", folder(tmp_path/"d", ["a"]), "--out", tmp_path)

def test_validation_class_without_training_images(tmp_path):
    refused(["class 'z' is in", "not in train/"], "--nets", "tiny", "--data", folder(tmp_path/"d", "ab", "az"), "--out", tmp_path)

def test_image_outside_a_class(tmp_path):
    picture(folder(tmp_path/"d")/"val/x.png", 0)
    refused(["x.png lies in no class folder"], "--nets", "tiny", "--data", tmp_path/"d", "--out", tmp_path)

def test_truncated_image(tmp_path):
    f = folder(tmp_path/"d", ext="jpg")/"train/b/2.jpg"
    f.write_bytes(f.read_bytes()[:-100])
    refused(["2.jpg cannot be read as an image", "remove or replace it"], "--nets", "tiny", "--data", tmp_path/"d", "--out", tmp_path)

def test_unknown_network(tmp_path): refused("no network 'vgg19' in the article; choose from tiny", "--nets", "tiny", "vgg19", "--out", tmp_path)

@pytest.mark.parametrize("n", [0, -3])
def test_no_epochs(tmp_path, n): refused(f"{n} epochs train nothing; give 1 or more", "--nets", "tiny", "--epochs", n, "--out", tmp_path)

def test_nowhere_to_write(tmp_path):
    (tmp_path/"file").write_text("")
    refused(["cannot write to", "give another folder with --out"], "--nets", "tiny", "--out", tmp_path/"file")

def test_download_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path))
    monkeypatch.setattr(article, "fastai_path", lambda o: tmp_path/o)
    def fail(*a, **kw): raise OSError("no route to host")
    monkeypatch.setattr(article, "urlopen", fail)
    refused(["cannot fetch Imagenette from https://", "(no route to host)", "connect to the network, or give digits"], "--nets", "tiny", "--data", "imagenette", "--out", tmp_path)

def test_download_breaks_off(tmp_path, monkeypatch):
    "What `untar_data` raises is said in one line too"
    monkeypatch.setattr(article, "fastai_path", lambda o: tmp_path)
    def fail(url): raise Exception("Downloaded file is corrupt or not latest version")
    monkeypatch.setattr(article, "untar_data", fail)
    (tmp_path/"imagenette2-160").mkdir()
    refused("(Downloaded file is corrupt or not latest version)", "--nets", "tiny", "--data", "imagenette", "--out", tmp_path)

def shell(*args, **env):
    "The command as a user runs it"
    cmd = [sys.executable, "-m", "fastai_bnfold.article", *map(str, args)]
    return subprocess.run(cmd, capture_output=True, text=True, env=os.environ | {k: str(v) for k, v in env.items()}, timeout=300)

def test_command_refuses_in_one_line(tmp_path):
    p = shell("--data", tmp_path/"nowhere", "--out", tmp_path)
    assert (p.returncode, p.stdout, p.stderr.count("\n")) == (2, "", 1), p.stderr
    assert p.stderr.startswith("python -m fastai_bnfold.article: no folder")

def test_command_without_a_network(tmp_path):
    "Every connection goes to a closed port"
    closed = "http://127.0.0.1:9"
    p = shell("--data", "imagenette", "--out", tmp_path, FASTAI_HOME=tmp_path/"home", http_proxy=closed, https_proxy=closed, HTTPS_PROXY=closed, no_proxy="")
    assert (p.returncode, p.stdout, p.stderr.count("\n")) == (2, "", 1), p.stderr
    assert "cannot fetch Imagenette" in p.stderr


# ------------------------------------------------------------------ the data
def test_digits_are_split_once_and_for_all(tmp_path):
    a, b = (write_digits(tmp_path/o) for o in "ab")
    names = lambda p, part: sorted(str(f.relative_to(p)) for f in (p/part).rglob("*.png"))
    assert (len(names(a, "train")), len(names(a, "val"))) == (1437, 360)
    assert names(a, "train") == names(b, "train")
    assert check_folder(a) == [str(i) for i in range(10)]
    counts = [len(list((a/"val"/str(i)).iterdir())) for i in range(10)]
    assert min(counts) >= 34 and max(counts) <= 38

def test_digits_cut_short_are_written_again(tmp_path):
    p = write_digits(tmp_path/"d", n=60)
    for f in (p/"train/3").iterdir(): f.unlink()
    assert len(list(write_digits(p, n=60).rglob("*.png"))) == 60

def test_what_the_networks_see(tmp_path):
    src = find_data("digits", tmp_path, n=60)
    dls = get_dls(src)
    xb, yb = dls.train.one_batch()
    assert xb.shape[1:] == (3, 32, 32) and len(xb) == 48 and dls.c == 10 and len(dls.valid_ds) == 12
    assert src.about.startswith("scikit-learn's handwritten digits")

def test_same_seed_same_batches_and_weights(tmp_path):
    src = find_data("digits", tmp_path, n=60)
    a, b = (new_learner(get_dls(src), tiny_net) for _ in range(2))
    assert torch.equal(a.dls.train.one_batch()[0], b.dls.train.one_batch()[0])
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters()))

def test_images_of_any_size_and_mode(tmp_path):
    d = folder(tmp_path/"d", ["a", "b", "c"])
    picture(d/"train/a/big.jpg", 4, size=300)
    picture(d/"train/b/grey.png", 1, mode="L")
    picture(d/"val/c/clear.png", 2, mode="RGBA")
    dls = get_dls(find_data(str(d)))
    assert dls.c == 3 and dls.train.one_batch()[0].shape[1:] == (3, 160, 160)


# ------------------------------------------------------------------ the run
def test_whole_run_on_a_folder(tmp_path):
    code, out, err = run("--nets", "tiny", "--data", folder(tmp_path/"d", ["a", "b", "c"]), "--epochs", 1, "--out", tmp_path/"out")
    assert code == 0, err
    assert out.startswith(f"Data: the images in {tmp_path/'d'}") and "3 classes, so parameters differ" in out.splitlines()[0]
    for o in ("one image, 160 px", "one image, 224 px", "one image, 224 px, ONNX Runtime", "one image, 224 px, ONNX Runtime int8", "accuracy, int8", "valid_loss", "accuracy", "removed"): assert o in out
    assert Image.open(tmp_path/"out/times.png").width > 500

def test_first_line_says_which_data(tmp_path):
    code, out, err = run("--nets", "tiny", "--epochs", 1, "--out", tmp_path)
    assert code == 0 and "scikit-learn's handwritten digits (1,797 images, 10 classes)" in out.splitlines()[0]

def test_figures_of_a_run(tmp_path):
    "Loss and accuracy are those of the Learner, and the same before and after"
    dls = get_dls(find_data("digits", tmp_path, n=100), bs=16)
    with redirect_stdout(io.StringIO()): r = article.run_net("tiny", tiny_net, dls, 32, epochs=2, rounds=6)
    (_, l0, l1), (_, a0, a1) = r.report.valid
    assert a0 == a1 and abs(l1/l0 - 1) <= 1e-5 and (r.report.bn_before, r.report.bn_after) == (2, 0)
    assert r.report.params_before - r.report.params_after == 2*8 + 16
    assert list(r.times) == [32, 224] and all(t.names == ["unfolded", "folded", "ONNX Runtime", "ONNX Runtime int8"] for t in r.times.values())

def test_8_bits_are_measured(tmp_path):
    "On the whole validation data, beside the figures before the fold; calibrated on training images alone"
    dls = get_dls(find_data("digits", tmp_path, n=300), bs=16)
    with redirect_stdout(io.StringIO()): r = article.run_net("tiny", tiny_net, dls, 32, epochs=4, rounds=6)
    rows = {o[0]: o for o in r.rows()}
    made, _ = article.in_onnx(new_learner(dls, tiny_net).model.eval(), dls, 32)
    assert rows["accuracy, int8"][1] == rows["accuracy"][1] and rows["accuracy, int8"][2] == f"{r.int8.values['accuracy']:.7g}"
    assert abs(r.int8.values["accuracy"] - r.report.valid[1][1]) < .05 and r.int8.values["valid_loss"] != r.report.valid[0][1]
    assert made["ONNX Runtime int8"].size < made["ONNX Runtime"].size
    train, got = torch.cat([x for x, in article.to_calibrate(dls, 32, 999)]), torch.cat([x for x, in article.to_calibrate(dls, 32, 5)])
    assert len(got) == 5 and all((train == x).flatten(1).all(1).any() for x in got) and len(train) == len(dls.train_ds)

def test_the_article_stands_beside(tmp_path):
    dls = get_dls(find_data("digits", tmp_path, n=100), bs=16)
    with redirect_stdout(io.StringIO()): r = article.run_net("resnet50", tiny_net, dls, 32, epochs=1, rounds=6)
    text, page = repr(r), r._repr_html_()
    for o in ("23,528,522 → 23,501,962", "6.17 → 4.47 ms", "0.79313 → 0.7931296", "0.740892 → 0.7409"): assert o in text and o in page
    r.name = "tiny"
    assert "the article's" not in repr(r)


# ------------------------------------------------------------------ the article's networks
def stir(model, seed=0):
    "BatchNorms as after training: negative and zero weights, their own means and variances"
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if not isinstance(m, nn.BatchNorm2d): continue
        n = m.num_features
        m.weight.data = torch.rand(n, generator=g) + .5
        m.weight.data[:2] = torch.tensor([-.7, 0.])
        m.bias.data, m.running_mean.data, m.running_var.data = torch.randn(n, generator=g)*.2, torch.randn(n, generator=g)*.2, torch.rand(n, generator=g) + .5
    return model.eval()

def calibrate(model, x):
    "Running statistics from the data, so that values stay of one size through all layers"
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.train(); m.momentum = None
    with torch.no_grad(): model(x)
    return model.eval()

@pytest.mark.parametrize("name", list(NETS))
def test_articles_networks_fold_exactly(name):
    "Parameters to the digit; outputs in float64; dropping the BatchNorms instead is noticed"
    torch.manual_seed(0)
    model, x = stir(NETS[name](num_classes=10)).double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    calibrate(model, torch.randn(8, 3, 64, 64, dtype=torch.float64))
    state = {k: v.clone() for k, v in model.state_dict().items()} if name == "resnet50" else None
    with torch.no_grad(): before = model(x)
    folder = BNFolder(model)
    r = folder.fold(x)
    assert (r.params_before, r.params_after) == ARTICLE[name]["params"] and r.bn_after == 0
    with torch.no_grad(): after = model(x)
    assert (after - before).abs().max() <= 1e-10*before.abs().max()
    if state is None: return
    folder.unfold()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    for k, m in list(model.named_modules()):
        if isinstance(m, nn.BatchNorm2d): model.set_submodule(k, nn.Identity())
    with torch.no_grad(): assert (model(x) - before).abs().max() > 1e-2*before.abs().max()
