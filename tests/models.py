"Helpers of the tests: real BatchNorm statistics, calibration, comparison of nested outputs, peers to compare with."
import copy
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

TOL = 1e-8  # float64, relative to the largest value of an output: rounding stays under 1e-12, a wrong fold is 1e-2 and up


def is_frozen(m): return 'FrozenBatchNorm' in type(m).__name__


def is_bn(m):
    "A BatchNorm layer of any class, unknown subclasses too"
    return isinstance(m, _BatchNorm) or is_frozen(m)


def bn_layers(model):
    "Every BatchNorm layer of `model` once, by its first path"
    return {n: m for n, m in model.named_modules() if is_bn(m)}


def _rand(shape, g, lo, hi, like):
    return (lo + (hi - lo) * torch.rand(shape, generator=g, dtype=torch.float64)).to(like)


def random_gamma(n, g, neg=0.2, zero=0.05, like=torch.tensor(1.)):
    "Scales of both signs between 0.4 and 1.6, some exactly zero"
    w, u = _rand((n,), g, 0.4, 1.6, like), torch.rand(n, generator=g)
    w[u < neg] *= -1
    w[u > 1 - zero] = 0
    return w


@torch.no_grad()
def randomize_bn(model, seed=0, neg=0.2, zero=0.05):
    "Real statistics for every BatchNorm: gamma negative and zero too, beta, mean, variance"
    g = torch.Generator().manual_seed(seed)
    for m in bn_layers(model).values():
        if isinstance(getattr(m, 'weight', None), nn.UninitializedParameter): continue
        w = getattr(m, 'weight', None)
        if w is not None:
            w.copy_(random_gamma(len(w), g, neg, zero, w))
            m.bias.copy_(_rand(w.shape, g, -0.5, 0.5, w))
        if m.running_mean is None: continue
        m.running_mean.copy_(_rand(m.running_mean.shape, g, -0.5, 0.5, m.running_mean))
        m.running_var.copy_(_rand(m.running_var.shape, g, 0.3, 2., m.running_var))
    return model


def _moments(x):
    d = [i for i in range(x.dim()) if i != 1]
    return x.mean(d), x.var(d, unbiased=False)


def _fit(m, x, g):
    "Give `m` the statistics of `x`, some way off, with no channel's variance far below the others'"
    mean, var = _moments(x.detach().double())
    floor = var.mean() * 0.05 + 1e-4
    var = var.clamp(min=floor)
    mean = mean + var.sqrt() * _rand(mean.shape, g, -0.3, 0.3, mean)
    m.running_mean.copy_(mean)
    m.running_var.copy_(var * _rand(var.shape, g, 0.6, 1.6, var))


@contextmanager
def evaluating(model):
    "`model` in eval mode, every module's own mode restored after"
    was = {m: m.training for m in model.modules()}
    model.eval()
    try: yield model
    finally:
        for m, t in was.items(): m.training = t


@torch.no_grad()
def calibrate(model, xb, seed=0):
    "Set running statistics near those of `xb` in one forward pass, each layer before it is called first"
    g, done, hooks = torch.Generator().manual_seed(seed), set(), []

    def pre(m, args, kw):
        if m in done or m.running_mean is None: return
        done.add(m)
        _fit(m, args[0] if args else kw['input'], g)
    for m in bn_layers(model).values():
        if not isinstance(m, torch.jit.ScriptModule): hooks.append(m.register_forward_pre_hook(pre, with_kwargs=True))
    try:
        with evaluating(model): run(model, xb)
    finally:
        for h in hooks: h.remove()
    return model


def real(model, xb=None, seed=0, neg=0.2, zero=0.05):
    "`model` in float64 and eval mode, with real statistics, calibrated on `xb` if given"
    torch.manual_seed(seed)
    model = randomize_bn(model.double().eval(), seed, neg, zero)
    return model if xb is None else calibrate(model, xb, seed)


class Fn(nn.Module):
    "A module out of a forward function `f(self, x)` and its layers"
    def __init__(self, f, **layers):
        super().__init__()
        self.f = f
        for name, m in layers.items(): setattr(self, name, m)

    def forward(self, *args, **kwargs): return self.f(self, *args, **kwargs)


# ---------------------------------------------------------------- inputs and outputs
def tree_map(f, o):
    "`f` of every tensor in the nested lists, tuples, dicts of `o`"
    if isinstance(o, torch.Tensor): return f(o)
    if isinstance(o, dict): return type(o)({k: tree_map(f, v) for k, v in o.items()})
    if hasattr(o, '_fields'): return type(o)(*(tree_map(f, v) for v in o))
    if isinstance(o, (list, tuple)): return type(o)(tree_map(f, v) for v in o)
    return o


def leaves(o):
    "The tensors in `o`, in order; numbers become tensors"
    if isinstance(o, torch.Tensor): return [o]
    if isinstance(o, (bool, int, float)): return [torch.tensor(o)]
    if isinstance(o, dict): return [t for v in o.values() for t in leaves(v)]
    if isinstance(o, (list, tuple)): return [t for v in o for t in leaves(v)]
    if hasattr(o, '__dict__'): return leaves(vars(o))
    return []


@torch.no_grad()
def run(model, xb, seed=7):
    "Outputs of `model` on copies of `xb` as a flat list of copies, random calls seeded"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [t.detach().clone() for t in leaves(model(*tree_map(torch.clone, list(xb))))]


def rel_err(a, b):
    "Largest difference of two lists of tensors, relative to the largest value of each tensor of `a`; inf if they differ in kind"
    if len(a) != len(b): return float('inf')
    return max((_rel(x, y) for x, y in zip(a, b)), default=0.)


def _rel(x, y):
    if x.shape != y.shape or x.dtype != y.dtype: return float('inf')
    if x.numel() == 0: return 0.
    if not x.dtype.is_floating_point and not x.dtype.is_complex: return 0. if torch.equal(x, y) else float('inf')
    bad = ~torch.isfinite(x)
    if not torch.equal(bad, ~torch.isfinite(y)): return float('inf')
    x, y = x.masked_fill(bad, 0), y.masked_fill(bad, 0)
    return ((x - y).abs().max() / x.abs().max().clamp(min=1e-12)).item()


def other_batch(xb, n=3, seed=1):
    "Fresh inputs like `xb` with another batch size: noise for floats, draws between the extremes for integers"
    g = torch.Generator().manual_seed(seed)

    def fresh(t):
        s = (n,) + tuple(t.shape[1:]) if t.dim() else ()
        if t.dtype.is_floating_point: return torch.randn(s, generator=g, dtype=torch.float64).to(t) * 1.1 + 0.1
        lo, hi = int(t.min()), int(t.max())
        return torch.randint(lo, hi + 1, s, generator=g).to(t)
    return [tree_map(fresh, x) for x in xb]


# ---------------------------------------------------------------- the state of a model, bit for bit
def bits(t):
    "A key equal only for tensors equal bit for bit, NaN payloads and signed zeros too"
    if not isinstance(t, torch.Tensor) or isinstance(t, nn.UninitializedParameter): return repr(t)
    t = t.detach().cpu().contiguous()
    return tuple(t.shape), str(t.dtype), t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b''


def snapshot(model):
    "All that must be as it was: tensors, identities, modes, hooks, gradients wanted, RNG"
    return dict(
        state=[(k, bits(v)) for k, v in model.state_dict().items()],
        params=[(n, id(p), p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)],
        modules=[(n, id(m), type(m), m.training) for n, m in model.named_modules(remove_duplicate=False)],
        hooks=[(n, list(m._forward_hooks), list(m._forward_pre_hooks)) for n, m in model.named_modules()],
        rng=bits(torch.get_rng_state()))


def changed(a, b):
    "The keys in which two snapshots differ"
    return [k for k in a if a[k] != b[k]]


def engine():
    "`BNFolder`, `FoldError` as users import them"
    from fastai_bnfold.all import BNFolder, FoldError
    return BNFolder, FoldError


# ---------------------------------------------------------------- the peers, with one face
def fx_fuse(model):
    "`torch.fx`'s fusion of a copy"
    from torch.fx.experimental.optimization import fuse
    return fuse(copy.deepcopy(model).eval())


def fasterai_fold(model):
    "fasterai's `BN_Folder` on a copy"
    from fasterai.misc.bn_folding import BN_Folder
    return BN_Folder().fold(copy.deepcopy(model).eval())


def drop_all(model):
    "A wrong folder, which must be caught: takes every BatchNorm away"
    model = copy.deepcopy(model)
    for p in list(model.modules()):
        for n, c in list(p._modules.items()):
            if is_bn(c): p._modules[n] = nn.Identity()
    return model


def keep_all(model): return copy.deepcopy(model)


PEERS = dict(fx=fx_fuse, fasterai=fasterai_fold, keep=keep_all, drop=drop_all)
