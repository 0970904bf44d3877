"""The benchmarks: `make bench`, or `make bench ARGS="--only speed --quick --out /some/folder"`.

Each section writes one data file, row by row, and a later run goes on where an earlier one stopped; nbs/benchmarks.ipynb
reads the files and draws them. Timings want a machine with nothing else to do: the load at the start of each row is
written down with it."""
import argparse, copy, ctypes, gc, json, os, subprocess, sys, tempfile, time, warnings
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path

import torch, torchvision
from fastai_bnfold.bench import _cores, _threads, bench, machine
from fastai_bnfold.variants import variants
from fastai_bnfold.fold import BNFolder
from models import fasterai_fold, real

HERE = Path(__file__).resolve().parent
ALL = _cores()


@dataclass
class Settings:
    "How much to measure; `quick` is a trial of the machinery, not a measurement"
    n:int=200 # rounds at most
    least:int=30 # rounds at least, on one image; a fifth of them on a batch
    seconds:float=30 # of one row, where the least allows it
    minutes:float=60
    reps:int=9
    seeds:int=3
    nets:int=99
    px:int=999
    epochs:int=10 # of training for 8 bits; half of them for the article's networks, as it has it
    device:str='cpu'


QUICK = dict(n=6, least=6, seconds=1, minutes=5, reps=2, seeds=1, nets=2, px=64, epochs=1)


# ---------------------------------------------------------------- the networks
def tv(name, **kw): return lambda: getattr(torchvision.models, name)(weights=None, **kw)

def vision_model():
    from fastai.vision.all import create_vision_model, resnet34
    return create_vision_model(resnet34, 10, pretrained=False)

def unet():
    from fastai.vision.all import create_unet_model, resnet34
    return create_unet_model(resnet34, 10, (128, 128), pretrained=False)

NETS = {  # name: what makes it, pixels of its input: one size, but for the U-Net, which is used on smaller ones
    'ResNet18': (tv('resnet18'), 224), 'ResNet50': (tv('resnet50'), 224), 'VGG16-BN': (tv('vgg16_bn'), 224),
    'MobileNetV3-large': (tv('mobilenet_v3_large'), 224), 'EfficientNet-B0': (tv('efficientnet_b0'), 224),
    'vision_learner (ResNet34)': (vision_model, 224), 'U-Net (ResNet34)': (unet, 128)}
def timm_net(name):
    def make(num_classes=1000):
        import timm
        return timm.create_model(name, num_classes=num_classes)
    return make

GROWING = {f'ResNet{d}': (tv(f'resnet{d}'), 224) for d in (18, 34, 50, 101, 152)} | {f'EfficientNet-B{i}': (tv(f'efficientnet_b{i}'), 224) for i in range(8)} | {
    'MobileNetV3-large': (tv('mobilenet_v3_large'), 224), 'EfficientNetV2-B0': (timm_net('tf_efficientnetv2_b0'), 224), 'LeViT-128': (timm_net('levit_128'), 224)}
TEN = {k: (tv(f), 64) for k,f in {
    'ResNet18': 'resnet18', 'ResNet50': 'resnet50', 'VGG11-BN': 'vgg11_bn', 'VGG16-BN': 'vgg16_bn', 'MobileNetV2': 'mobilenet_v2',
    'MobileNetV3-large': 'mobilenet_v3_large', 'EfficientNet-B0': 'efficientnet_b0', 'RegNetY-400MF': 'regnet_y_400mf',
    'MNASNet 1.0': 'mnasnet1_0', 'ShuffleNetV2': 'shufflenet_v2_x1_0'}.items()}
ARTICLE = {k: (tv(f, num_classes=10), 224) for k,f in {'ResNet50': 'resnet50', 'VGG16-BN': 'vgg16_bn'}.items()}


@lru_cache(maxsize=1)
def network(nets, name, px=999, seed=0):
    "The network with the statistics of a trained one, in float32 and eval mode, and the pixels of its input"
    make, size = globals()[nets][name]
    torch.manual_seed(seed)
    px = min(size, px)
    return real(make(), (torch.randn(4, 3, px, px, dtype=torch.float64),), seed).float(), px


@torch.no_grad()
def error(model, x, ref):
    "Largest difference from `ref`, relative to its largest value"
    return ((model(x).double() - ref.double()).abs().max()/ref.abs().max()).item()


@torch.no_grad()
def only_right(vs, x, left, but=('no BatchNorm',), tol=1e-3):
    "`vs` without the models whose answers are wrong; `left` is told"
    ref, out = vs['unfolded'](x), {}
    for k,m in vs.items():
        e = 0. if k in but else error(m, x, ref)
        if e < tol: out[k] = m
        else: left.append(f'{k} left out: wrong answers, relative error {e:.1g}')
    return out


def add_fasterai(vs, left):
    "fasterai's folder beside the others"
    try: vs['fasterai BN_Folder'] = fasterai_fold(vs['unfolded'])
    except Exception as e: left.append(f'fasterai BN_Folder left out: {type(e).__name__}: {e}'.splitlines()[0])
    return vs


def rounds(models, x, q, **kw):
    "How many rounds the seconds allow, and enough of them"
    trial = bench(models, x, **{**kw, 'n': 2})
    least = q.least if len(x) == 1 else max(6, q.least//5)
    return min(q.n, max(least, int(q.seconds/sum(map(trial.median, trial.names)))))

def timed(models, x, q, **kw):
    "Row of a data file: the times in turns"
    r = bench(models, x, n=rounds(models, x, q, **kw), **kw)
    return dict(times={k: [float(f'{t:.5g}') for t in v] for k,v in r.times.items()}, copy=[float(f'{t:.5g}') for t in r.copy])


# ---------------------------------------------------------------- speed of the result
def keep_memory():
    "Keep what is freed for the next forward (glibc; elsewhere False): a big batch's memory, fetched page by page from the system each time, costs more than its BatchNorms, and another amount in each process"
    try: libc = ctypes.CDLL(None); return bool(libc.mallopt(-4, 0) and libc.mallopt(-1, 2**31-1))  # M_MMAP_MAX, M_TRIM_THRESHOLD
    except (OSError, AttributeError): return False

def speed_row(name, batch, threads, q):
    kept, (model, px) = batch > 1 and keep_memory(), network('NETS', name, q.px)
    x, left = torch.randn(batch, 3, px, px), []
    vs = add_fasterai(variants(model, x[:2], say=left.append), left)
    vs['no BatchNorm'] = vs.pop('no BatchNorm')
    row = timed(only_right(vs, x, left), x, q, threads=threads, warmup=5 if batch == 1 else 2)
    return dict(net=name, px=px, batch=batch, threads=threads, memory_kept=kept, left_out=left, **row)

def speed(q):
    "Unfolded, folded by us and by others, and without BatchNorm"
    for batch in (1, 16):
        for name in list(NETS)[:q.nets]:
            for threads in sorted({1, ALL}): yield f'{name}, batch {batch}, threads {threads}', partial(speed_row, name, batch, threads, q)


# ---------------------------------------------------------------- after folding
def channels_last(model, x):
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return lambda x: model(x.contiguous(memory_format=torch.channels_last))

def compiled(model, x): return torch.compile(copy.deepcopy(model))

@torch.no_grad()
def frozen(model, x):
    import torch._inductor.config as cfg
    f = torch.compile(copy.deepcopy(model), options=dict(freezing=True))  # an option of its own: code compiled without it would be taken again
    with cfg.patch(freezing=True): f(x)  # tracing reads the setting too
    return f

def onnxruntime(model, x):
    import onnxruntime as ort
    opt = ort.SessionOptions()
    opt.intra_op_num_threads, opt.log_severity_level = torch.get_num_threads(), 3
    opt.add_session_config_entry('session.intra_op.allow_spinning', '0')
    with tempfile.TemporaryDirectory() as d:
        torch.onnx.export(model, (x,), f'{d}/m.onnx', dynamo=True, external_data=False, verbose=False)
        s = ort.InferenceSession(f'{d}/m.onnx', opt, providers=['CPUExecutionProvider'])
    return lambda x: torch.from_numpy(s.run(None, {s.get_inputs()[0].name: x.numpy()})[0])

ENGINES = {'eager': lambda m, x: m, 'channels-last': channels_last, 'torch.compile': compiled, 'torch.compile, freezing': frozen, 'ONNX Runtime': onnxruntime}

def after_row(name, q):
    "On one thread: those of one engine still spin when the next one starts, and disturb it"
    torch._dynamo.reset()
    model, px = network('NETS', name, q.px)
    x, left = torch.randn(1, 3, px, px), []
    both, vs = variants(model, x, kinds=['folded'], say=left.append), {}
    for engine, make in ENGINES.items():
        for state, m in both.items():
            try: vs[f'{state}, {engine}'] = make(m, x)
            except Exception as e: left.append(f'{state}, {engine} left out: {type(e).__name__}: {e}'.splitlines()[0])
    vs = only_right(dict(unfolded=vs['unfolded, eager'], **vs), x, left)
    del vs['unfolded']
    return dict(net=name, px=px, batch=1, threads=1, left_out=left, **timed(vs, x, q, warmup=8))

def on_one_thread(row, *args):
    with _threads(1): return row(*args)

def after(q):
    "What else one can do to a model, on the folded and on the unfolded one"
    for name in list(NETS)[:min(q.nets, 6)]: yield name, partial(on_one_thread, after_row, name, q)


# ---------------------------------------------------------------- 8 bits
TRAINED = {  # name: what makes it for a number of classes, pixels of the digits that it is trained on, learning rate
    'ResNet50': (torchvision.models.resnet50, 32, 1e-3), 'VGG16-BN': (torchvision.models.vgg16_bn, 32, 1e-3),
    'MobileNetV3-large': (torchvision.models.mobilenet_v3_large, 64, 2e-3), 'EfficientNet-B0': (torchvision.models.efficientnet_b0, 64, 2e-3),
    'MobileNetV3-large (timm)': (timm_net('mobilenetv3_large_100'), 64, 2e-3), 'EfficientNet-B0 (timm)': (timm_net('efficientnet_b0'), 64, 2e-3),
    'MobileNetV2': (torchvision.models.mobilenet_v2, 64, 2e-3)}

def trained_on_digits(name, folder, epochs):
    "A Learner of the article, on scikit-learn's digits; BatchNorms average over the last ten batches, or few epochs would not do"
    from fastai_bnfold.article import find_data, get_dls, new_learner
    make, px, lr = TRAINED[name]
    learn = new_learner(get_dls(find_data('digits', Path(folder))._replace(size=px), bs=64 if px == 32 else 32), make)
    for m in learn.model.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.momentum = .1
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return learn

def int8_row(name, q):
    "Accuracy by PyTorch, in float32 and in 8 bits; sizes; one image of 224 pixels, in turns, on one thread"
    from fastai_bnfold.article import in_onnx, one_image
    from fastai_bnfold.deploy import ExportError
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as d:
            epochs = q.epochs if name not in ARTICLE else -(-q.epochs//2)
            learn, row = trained_on_digits(name, d, epochs), dict(net=name, px=min(224, q.px), batch=1, threads=1)
            with learn.no_bar(), learn.no_logging():
                try: r = learn.export_onnx(Path(d)/'m.onnx', int8=True, timeit=False)
                except ExportError as e: return dict(row, refused=str(e))
            measures = {k: m.values for k,m in r.reduced.measures.items()}
            row.update(measures=measures, how=r.reduced.how, tried=r.reduced.tried, left=list(r.reduced.left), size=r.size, float_size=r.reduced.float_size, same=r.top1)
            x, unfolded = one_image(learn.dls, row['px']), learn.model.eval()
            folded = copy.deepcopy(unfolded)
            BNFolder(folded).fold(x)
            made, left = in_onnx(folded, learn.dls, row['px'])
            return dict(row, left_out=left, **timed(dict(unfolded=unfolded, folded=folded, **{k: o.run for k,o in made.items()}), x, q, warmup=8))
    finally: torch.set_num_threads(threads)

def int8(q):
    "What 8 bits cost and bring, on networks that were trained"
    for name in list(TRAINED)[:q.nets]: yield name, partial(int8_row, name, q)


# ---------------------------------------------------------------- cost of folding
def fold_tool(model, x, **kw):
    "Fold in place; what undoes it"
    box = []
    def act():
        box[:] = [BNFolder(model)]
        return box[0].fold(x, **kw)
    return act, lambda: box.pop().unfold()

def fx_tool(model, x):
    from torch.fx.experimental.optimization import fuse
    return lambda: fuse(model), lambda: None

def fasterai_tool(model, x):
    from fasterai.misc.bn_folding import BN_Folder
    return lambda: BN_Folder().fold(model), lambda: None

TOOLS = {'folded': fold_tool, 'folded, no check': partial(fold_tool, check=False), 'torch.fx fuse': fx_tool, 'fasterai BN_Folder': fasterai_tool,
         'forward': lambda model, x: (lambda: model(x), lambda: None)}

def clock(f):
    start = time.perf_counter(); f()
    return time.perf_counter()-start

def tensor_bytes(f):
    "Most bytes of tensors alive at once while `f` runs, above what was there, and those it leaves: every allocation counted"
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p: out = f()
    live = peak = 0
    for e in sorted((e for e in p.profiler.kineto_results.events() if e.name() == '[memory]'), key=lambda e: e.start_ns()):
        live += e.nbytes()
        peak = max(peak, live)
    return peak, live

def process_bytes(f):
    "Peak of the process's resident memory while `f` runs, above what it was (Linux; elsewhere None)"
    status = lambda k: 1024*int(next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(k)).split()[1])
    gc.collect()
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: big tensors go back to the system when freed
        libc.malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # sets the peak back to what is resident now
    except (OSError, AttributeError): return None
    before, out = status('VmRSS:'), f()
    return status('VmHWM:')-before

def cost_one(name, tool, px, reps):
    "One tool on one network, in a process of its own: seconds in turns with a forward, then memory"
    model, px = network('GROWING', name, px)
    x, nbytes = torch.randn(1, 3, px, px), lambda ts: sum(t.nbytes for t in ts)
    act, undo = TOOLS[tool](model, x)
    with torch.no_grad():
        act(); undo(); model(x)
        seconds, forward = [], []
        for _ in range(reps):
            forward.append(clock(lambda: model(x))); gc.collect(); seconds.append(clock(act)); undo()
        process = process_bytes(act); undo(); gc.collect()
        peak, held = tensor_bytes(act); undo()
    into = {i for e in BNFolder(model).plan(x) for i in e.into}
    layers = nbytes(p for i in into for p in model.get_submodule(i).parameters(recurse=False))
    return dict(net=name, tool=tool, px=px, bn=sum('BatchNorm' in type(m).__name__ for m in model.modules()), model_bytes=nbytes([*model.parameters(), *model.buffers()]),
                folded_layers_bytes=layers, seconds=seconds, forward_seconds=forward, peak_bytes=peak, held_bytes=held, peak_process_bytes=process)

def cost_row(name, tool, q):
    "In a process of its own, so that nothing another tool left counts"
    cmd = [sys.executable, '-W', 'ignore', __file__, '--one', name, tool, str(q.px), str(q.reps)]
    p = subprocess.run(cmd, capture_output=True, text=True, timeout=900)
    if p.returncode: raise RuntimeError(p.stderr.strip().splitlines()[-1] if p.stderr.strip() else f'exit status {p.returncode}')
    return json.loads(p.stdout.splitlines()[-1])

def cost(q):
    "Seconds and memory of folding itself, as the model grows"
    for name in list(GROWING)[:q.nets]:
        for tool in TOOLS: yield f'{name}, {tool}', partial(cost_row, name, tool, q)


# ---------------------------------------------------------------- rounding
@torch.no_grad()
def rounding_error(model, x, ref):
    "Error of all outputs together, relative to all outputs together"
    return ((model(x).double()-ref).norm()/ref.norm()).item()

def rounding_row(name, dtype, late, q):
    "Every tool against the same network computed in float64; converted to `dtype` first, or `late`: after the fold"
    errors, left, d = {}, [], getattr(torch, dtype)
    for seed in range(q.seeds):
        model = copy.deepcopy(network('TEN', name, q.px, seed)[0])
        if not late: model.to(d)
        px = min(TEN[name][1], q.px)
        x = torch.randn(4, 3, px, px).to(d)  # little: float16 convolutions are slow on a CPU
        with torch.no_grad(): ref = copy.deepcopy(model).double()(x.double())
        mine, folded = x.to(next(model.parameters()).dtype), copy.deepcopy(model)
        BNFolder(folded).fold(mine, check=False)  # its error is what is measured here
        for k,m in add_fasterai(dict(variants(model, mine, kinds=['torch.fx fuse'], say=left.append), folded=folded), left).items():
            errors.setdefault(k, []).append(rounding_error(copy.deepcopy(m).to(d), x, ref))
    return dict(net=name, dtype=dtype, late=late, errors=errors, left_out=sorted(set(left)))

def rounding(q):
    "Error against float64, unfolded and folded"
    for name in list(TEN)[:q.nets]:
        for dtype in ('float32', 'bfloat16', 'float16'):
            for late in (False, True)[:1 if dtype == 'float32' else 2]:
                yield f"{name}, {dtype}{', converted after the fold' if late else ''}", partial(rounding_row, name, dtype, late, q)


# ---------------------------------------------------------------- GPU
@torch.no_grad()
def graphed(model, x):
    "`model` as a CUDA graph: recorded once, replayed without Python"
    static, side = x.clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3): model(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph): y = model(static)
    def replay(x):
        static.copy_(x); graph.replay()
        return y
    return replay

def gpu_row(name, batch, graphs, q):
    model, px = network('ARTICLE', name, q.px)
    model, x, left = copy.deepcopy(model).to(q.device), torch.randn(batch, 3, px, px), []
    xd = x.to(q.device)
    vs = only_right(variants(model, xd[:2], say=left.append), xd, left, tol=1e-2)  # TF32 convolutions round to 10 bits
    if graphs: vs = {k: graphed(m, xd) for k,m in vs.items()}
    return dict(net=name, px=px, batch=batch, graphs=graphs, left_out=left, **timed(vs, x if q.device != 'cpu' else xd, q, warmup=20, device=q.device))

def gpu(q):
    "The article's networks on a GPU, over batch sizes, eager and as CUDA graphs"
    for name in list(ARTICLE)[:q.nets]:
        for batch in (1, 2, 4, 8, 16, 32, 64):
            for graphs in (False, True): yield f"{name}, batch {batch}, {'graphs' if graphs else 'eager'}", partial(gpu_row, name, batch, graphs, q)


# ---------------------------------------------------------------- files
SECTIONS = dict(speed=speed, after=after, int8=int8, cost=cost, rounding=rounding, gpu=gpu)
SAME = ('cpu', 'cores', 'torch', 'gpu')

class Store:
    "The rows of one section in its file, written whole after each"
    def __init__(self, path, here, fresh=False):
        self.path, self.machine, self.rows = Path(path), here, {}
        if fresh or not self.path.exists(): return
        old = json.loads(self.path.read_text())
        other = [k for k in SAME if old['machine'].get(k) != here.get(k)]
        what = ', '.join(f"{k}: {old['machine'].get(k)!r}, here {here.get(k)!r}" for k in other)
        if other: raise SystemExit(f"{self.path} is of another machine ({what}); start over with --fresh, or keep it and write elsewhere with --out")
        self.rows = old['rows']

    def put(self, key, row):
        self.rows[key] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix('.part')
        rows = ',\n'.join(f'{json.dumps(k)}: {json.dumps(v)}' for k,v in self.rows.items())
        part.write_text(f'{{"machine": {json.dumps(self.machine)},\n"rows": {{\n{rows}\n}}}}\n')
        part.replace(self.path)


def run_section(name, q, store):
    "Rows that are missing, until the time is up; how many failed"
    start, failed, todo = time.monotonic(), 0, [(k, f) for k,f in SECTIONS[name](q) if k not in store.rows]
    for i,(key, row) in enumerate(todo):
        if time.monotonic()-start > 60*q.minutes:
            print(f'{name}: {len(todo)-i} rows left after {q.minutes:g} minutes; run it again to go on', flush=True)
            break
        print(f'{name}: {key}', end=' ', flush=True)
        load, t = os.getloadavg()[0], time.monotonic()
        try: store.put(key, dict(row(), date=date.today().isoformat(), load=round(load, 2)))
        except Exception as e: failed, note = failed+1, f'failed: {type(e).__name__}: {e}'.splitlines()[0]
        else: note = f'{time.monotonic()-t:.0f} s'
        print(note, flush=True)
    return failed


def parser():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--only', nargs='+', choices=list(SECTIONS), metavar='SECTION', help=f"sections to run, of {', '.join(SECTIONS)} (default: all; gpu where there is one)")
    p.add_argument('--out', type=Path, default=HERE.parent/'nbs'/'data', help='folder of the data files (default: nbs/data)')
    p.add_argument('--quick', action='store_true', help='a trial of the machinery on little networks: no measurement, so name another --out')
    p.add_argument('--fresh', action='store_true', help='start over instead of going on')
    p.add_argument('--minutes', type=float, help='bound of each section (default: 60)')
    p.add_argument('--one', nargs=4, help=argparse.SUPPRESS)
    return p


def main(argv=None):
    a = parser().parse_args(argv)
    warnings.filterwarnings('ignore')
    if a.one: return print(json.dumps(cost_one(a.one[0], a.one[1], int(a.one[2]), int(a.one[3]))))
    default = HERE.parent/'nbs'/'data'
    if a.quick and a.out.resolve() == default: raise SystemExit('--quick measures nothing worth keeping: name another folder with --out')
    q = Settings(**(QUICK if a.quick else {}), device='cuda' if torch.cuda.is_available() else 'cpu')
    if a.minutes: q.minutes = a.minutes
    if os.getloadavg()[0] > .3*ALL: print(f'This machine is busy (load {os.getloadavg()[0]:.1f} on {ALL} cores): times will be noisy', flush=True)
    failed = 0
    for name in a.only or [s for s in SECTIONS if s != 'gpu' or torch.cuda.is_available()]:
        if name == 'gpu' and q.device == 'cpu':
            print('gpu: no GPU here, left out'); continue
        failed += run_section(name, q, Store(a.out/f'{name}.json', machine(q.device if name == 'gpu' else 'cpu'), a.fresh))
    return sys.exit(1 if failed else 0)


if __name__ == '__main__': main()
