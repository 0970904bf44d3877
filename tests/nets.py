"""Random networks out of a seed. A net is a *spec*: a literal dict with a short list of steps, built by `build`,
invented by `generate`, cut down by `shrink`. Steps are `(op, sources, options)`; sources number the values: the inputs
first, then one value a step. Options never hold input channels, so steps can be dropped and the rest still fits. Most
steps are a line of source: `code`, which makes a module, or computes with the sources `a`, `b` (all of them: `xs`)."""
import copy
import random
import re
import sys
import zlib
from contextlib import suppress
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from models import bn_layers, calibrate, randomize_bn, run


class Invalid(Exception): "The spec does not make a working net"


# ---------------------------------------------------------------- odd modules, as users write them
class FConv(nn.Module):
    "A convolution that is no `nn.Conv2d`: own names, functional call"
    def __init__(self, i, o, k, bias):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(o, i, k, k) / (i * k * k) ** 0.5)
        self.shift = nn.Parameter(torch.randn(o)) if bias else None

    def forward(self, x): return F.conv2d(x, self.kernel, self.shift)


class StdConv(nn.Conv2d):
    "Weight standardisation: the weight that is used is computed from the weight that is stored"
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class OddBN2d(nn.BatchNorm2d):
    "An unknown subclass: more inside than a BatchNorm"
    def forward(self, x): return super().forward(x) * 1.5 + 0.1


class SameBN2d(nn.BatchNorm2d):
    "An unknown subclass that happens to do the same"


class FBN(nn.Module):
    "`F.batch_norm` called by a module that is no BatchNorm class"
    def __init__(self, c):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.rand(c) + 0.5), nn.Parameter(torch.randn(c))
        self.register_buffer('m', torch.randn(c)), self.register_buffer('v', torch.rand(c) + 0.5)

    def forward(self, x): return F.batch_norm(x, self.m, self.v, self.w, self.b, False)


class Hook:
    "A forward hook of some kind; `store` lives in the net"
    def __init__(self, kind, name, store): self.kind, self.name, self.store = kind, name, store

    def __call__(self, m, args, out=None):
        x = args[0] if out is None else out
        kind = self.kind.removeprefix('pre_')
        if kind == 'read': self.store.setdefault('seen', {})[self.name] = x.detach().clone()
        elif kind == 'stash': self.store[self.name] = x
        elif kind == 'scale': return x * 0.5
        elif kind == 'shift': return x + 1.
        elif kind == 'inplace': x.mul_(0.5)


# ---------------------------------------------------------------- modules by op: make(x, **options)
CONV, CONVT = [nn.Conv1d, nn.Conv2d, nn.Conv3d], [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
BN = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
WRAP = dict(wn=parametrizations.weight_norm, sn=parametrizations.spectral_norm)


def wrapped(m, wrap): return WRAP[wrap](m) if wrap else m


def mk_conv(x, out=4, k=3, pad=0, mode='zeros', groups=1, stride=1, dil=1, bias=True, wrap=None, cls=None):
    c, nd = x.shape[1], x.dim() - 2
    if groups == 'dw': groups, out = c, c * max(out // c, 1)
    if cls == 'fconv': return FConv(c, out, k, bias)
    new = StdConv if cls and nd == 2 else CONV[nd - 1]
    kw = dict(padding=pad, padding_mode=mode, groups=groups, stride=stride, dilation=dil, bias=bias)
    return wrapped(new(c, out, k, **kw), wrap)


def mk_convt(x, out=4, k=3, pad=0, groups=1, stride=1, bias=True):
    c = x.shape[1]
    if groups == 'dw': groups, out = c, c
    return CONVT[x.dim() - 3](c, out, k, padding=pad, groups=groups, stride=stride, bias=bias)


def mk_linear(x, out=4, bias=True, wrap=None): return wrapped(nn.Linear(x.shape[-1], out, bias=bias), wrap)


def mk_bn(x, kind='plain', eps=1e-5):
    c, cls = x.shape[1], BN[x.dim()]
    options = dict(noaffine=dict(affine=False), nostats=dict(track_running_stats=False), nomom=dict(momentum=None))
    if kind in options: return cls(c, eps=eps, **options[kind])
    if kind == 'sync': return nn.SyncBatchNorm(c, eps=eps)
    if kind == 'fbn': return FBN(c)
    return cls(c, eps=eps) if x.dim() != 4 or kind == 'plain' else mk_bn2d(kind, c, eps)


def mk_bn2d(kind, c, eps):
    from timm.layers import BatchNormAct2d
    from torchvision.ops import FrozenBatchNorm2d
    return dict(frozen=FrozenBatchNorm2d, act=BatchNormAct2d, odd=OddBN2d, same=SameBN2d)[kind](c, eps=eps)


def mk_mod(x, code): return eval(code, dict(nn=nn, x=x))


def mk_seq(x, steps=()):
    "A plain `nn.Sequential` of module steps `(op, options)`"
    mods = []
    for op, kw in steps:
        mods.append(make(op, x, kw))
        x = mods[-1].double().eval()(x)
    return nn.Sequential(*mods)


def mk_list(x, steps=()): return nn.ModuleList(make(op, x, kw) for op, kw in steps)


def mk_code(x, parts, seq=False, **text):
    "A module that decides, of a class written for it"
    turned = x.transpose(1, 2) if seq else x
    own = {n: make(op, turned if op == 'bn' else x, kw) for n, (op, kw) in parts.items()}
    return program_class(source(own, **text))(**own)


MAKE = dict(conv=mk_conv, convt=mk_convt, linear=mk_linear, bn=mk_bn, mod=mk_mod, seq=mk_seq, list=mk_list,
            code=mk_code)
OUR = ('name', 'hook', 'tie', 'alias')


def make(op, x, kw): return MAKE[op](x, **{k: v for k, v in kw.items() if k not in OUR})


# ---------------------------------------------------------------- functions: a line of source each
def assembled(a, b):
    "A concatenation by hand: an empty tensor, filled part by part"
    out = a.new_zeros(a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:])
    out[:, :a.shape[1]] = a
    out[:, a.shape[1]:] = b
    return out


def stashed(net, name, a):
    "`a` and what a hook has kept"
    t = net.store.get(name)
    return a if t is None or t.shape != a.shape else a + t


@lru_cache(maxsize=None)
def function(code):
    names = dict(torch=torch, F=F, assembled=assembled, stashed=stashed)
    return eval(f'lambda net, xs, a, b: {code}', names)


def compute(net, op, xs, code):
    "What a step `f` gives; a step `write` writes into its first source, and gives that"
    out = function(code)(net, xs, xs[0], xs[-1])
    return xs[0] if op == 'write' else out


# What an affine map might travel through, or might not. `i` is an axis, `j` another, `g` a number, `nd` how many axes
# of positions there are, `rest` are these axes, `turned` are the axes after the items in another order
COPIES = ['a.clone()', 'a.contiguous()', 'a.detach()', 'a.data', 'a.to(torch.float64)', 'a.double()', '+a',
          'a.type_as(b)', 'F.dropout(a, 0.5, net.training)', 'F.dropout(a, 0., True)', 'a.view(a.shape)',
          'torch.from_numpy(a.numpy().copy())']
MOVES = ['a.permute(0, {turned})', 'a.permute(0, {turned})', 'a.transpose({i}, {j})', 'a.transpose({i}, {j})',
         'torch.swapaxes(a, {i}, {j})', 'a.movedim({i}, {j}).contiguous()', 'a.flip({i})', 'a.roll(1, {i})',
         'a.rot90(1, (-2, -1))', 'a.unfold(-1, 2, 1).flatten(-2)', 'a.transpose(0, {i})']
TAKES = ['a.narrow({i}, 0, 2)', 'a.narrow({i}, 1, 1)', 'a[:, 1:]', 'a[:, :-1]', 'a[..., ::2]', 'a.select({i}, 0)',
         'a[:, [0, 0, 1]]', 'a.index_select({i}, torch.tensor([1, 0]))', 'a[:, torch.arange(a.shape[1]) % 2 == 0]']
SHAPES = ['a.flatten(1)', 'torch.flatten(a, 1)', 'a.flatten(2)', 'a.view(len(a), -1)', 'a.reshape(len(a), -1)',
          'a.unflatten(1, ({g}, -1)).transpose(1, 2).flatten(1, 2)', 'a.reshape(len(a), a.shape[1] // {g}, -1)',
          'a.flatten(0, 1).unsqueeze(1)', 'a.unflatten(1, ({g}, -1))', 'a.reshape(len(a), -1, {g}, {g})',
          'a.unsqueeze({i})', 'a.squeeze({i})', 'a.reshape_as(b)', 'a.view_as(b)']
REPEATS = ['a.repeat(1, 2, *[1] * {nd})', 'a.repeat_interleave(2, {i})', 'a.mean({rest}, keepdim=True).expand_as(a)',
           'a.unsqueeze(2).expand(-1, -1, 2, *a.shape[2:]).flatten(1, 2)']
POOLS = ['a.mean({rest})', 'torch.mean(a, {rest}, True)', 'a.sum({rest})', 'a.amax({rest}, keepdim=True)',
         'a.mean((0, 1), True)', 'F.avg_pool{nd}d(a, 2)', 'F.avg_pool{nd}d(a, 2, padding=1)', 'F.max_pool{nd}d(a, 2)',
         'F.max_pool{nd}d(a, 2, padding=1)', 'F.adaptive_avg_pool{nd}d(a, 1)', 'F.adaptive_max_pool{nd}d(a, 2)',
         'F.interpolate(a, scale_factor=2)', "F.interpolate(a, scale_factor=2, mode='bilinear')",
         "F.interpolate(a, scale_factor=2, mode='bicubic')"]
PADS = ['F.pad(a, [1, 1] * {nd})', 'F.pad(a, [1, 0] * {nd})', 'F.pad(a, [1, 1] * {nd}, value=1.)',
        *(f"F.pad(a, [1, 1] * {{nd}}, '{mode}')" for mode in ('reflect', 'replicate', 'circular'))]
MATH = ['a + b', 'a + b', 'a - b', 'a * b', 'a * 0.5', 'a + 0.5', '-a', 'a / 0.5', 'torch.maximum(a, b)',
        'a * b.sigmoid()', 'F.relu(a)', 'a.clamp(-1, 1)', 'a.abs()', 'a.softmax(1)', 'torch.where(a > 0, a, b)',
        'torch.lerp(a, b, 0.5)', 'torch.addcmul(a, a, b)', 'F.normalize(a, dim=1)', 'a + a', 'a * a', 'a.cumsum(1)',
        'a - a.mean(1, keepdim=True)', 'F.dropout(a, 0.5, True)', 'a + torch.rand_like(a)',
        'a * a.mean((2, 3), keepdim=True).sigmoid()',
        'torch.matmul(a.flatten(1, -2), a.flatten(1, -2).transpose(1, 2))']
WRITES = ['F.relu_(a)', 'F.relu(a, inplace=True)', 'a.add_(0.5)', 'a.add_(b)', 'a.mul_(0.5)', 'a[:, :1].fill_(0.5)',
          'a.copy_(b)', 'a[:, 1:].copy_(b[:, 1:])', 'a.data.mul_(0.5)', 'a.detach().add_(0.5)',
          'torch.add(a, b, out=a)', 'a[:, 0].zero_()', 'a.masked_fill_(a > 1, 0.5)']
MODULES = ['nn.Identity()', 'nn.Dropout()', 'nn.Dropout2d()', 'nn.AlphaDropout()', 'nn.AvgPool{nd}d(2)',
           'nn.AvgPool{nd}d(3, 2, 1)', 'nn.AvgPool{nd}d(3, 2, 1, count_include_pad=False)',
           'nn.AvgPool{nd}d(3, 2, ceil_mode=True)', 'nn.MaxPool{nd}d(2)', 'nn.MaxPool{nd}d(3, 2, 1)',
           'nn.AdaptiveAvgPool{nd}d(1)', 'nn.AdaptiveMaxPool{nd}d(2)', 'nn.LPPool2d(2, 2)',
           'nn.Upsample(scale_factor=2)', "nn.Upsample(scale_factor=2, mode='bilinear', align_corners=True)",
           'nn.ZeroPad{nd}d(1)', 'nn.ReflectionPad{nd}d(1)', 'nn.ReplicationPad{nd}d(1)', 'nn.CircularPad{nd}d(1)',
           'nn.ConstantPad{nd}d(1, 0.3)', 'nn.Flatten()', 'nn.Flatten(2)', 'nn.Unflatten(1, (-1, 2))',
           'nn.PixelShuffle(2)', 'nn.PixelUnshuffle(2)', 'nn.ChannelShuffle(2)', 'nn.Unfold(2)']
ACTS = ['nn.ReLU()', 'nn.ReLU()', 'nn.ReLU(inplace=True)', 'nn.GELU()', 'nn.Sigmoid()', 'nn.LeakyReLU(inplace=True)',
        'nn.SiLU()']


# ---------------------------------------------------------------- the net
class Box(nn.Module): "A container without a forward"


class Net(nn.Module):
    "Runs its steps; a value is let go after its last use, as in hand-written code"
    def __init__(self, spec):
        super().__init__()
        self.steps, self.outs, self.struct = spec['steps'], spec['out'], spec.get('struct', 'single')
        self.store = {}
        self.n_in = len(spec['inputs'])
        last = {}
        for i, (_, src, _) in enumerate(self.steps):
            for s in src: last[s] = i
        self.free = {}
        for s, i in last.items():
            if s not in self.outs: self.free.setdefault(i, []).append(s)

    def get(self, name): return self.get_submodule(name)

    def put(self, name, m):
        "Register `m` under the dotted `name`, containers made on the way"
        *path, leaf = name.split('.')
        box = self
        for p in path:
            if p not in box._modules: box.add_module(p, Box())
            box = box._modules[p]
        box.add_module(leaf, m)

    def step(self, i, vals):
        op, src, kw = self.steps[i]
        xs = [vals[s] for s in src]
        if op in ('f', 'write'): return compute(self, op, xs, **kw)
        if op == 'sub': return self.get(kw['name'])(*xs)
        return self.get(kw['name'])(xs[0])

    def go(self, vals):
        self.store.clear()
        for i in range(len(self.steps)):
            vals[self.n_in + i] = self.step(i, vals)
            for s in self.free.get(i, ()): vals[s] = None
        return self.pack([vals[o] for o in self.outs])

    def pack(self, o):
        if self.struct == 'dict': return {f'out{i}': v for i, v in enumerate(o)}
        if self.struct == 'tuple': return tuple(o)
        if self.struct == 'list': return list(o)
        if self.struct == 'nested': return dict(first=o[0], rest=(o[1:], [o[-1]]))
        return o[0] if len(o) == 1 else tuple(o)


class Net1(Net):
    def forward(self, x): return self.go({0: x})


class Net2(Net):
    def forward(self, x, y): return self.go({0: x, 1: y})


class Net3(Net):
    def forward(self, x, y, z): return self.go({0: x, 1: y, 2: z})


def net_class(spec): return [Net1, Net2, Net3][len(spec['inputs']) - 1]


def _tie(net, m, kw):
    "Let `m` share the named module's parameters"
    attr, other = kw['tie']
    a, b = getattr(m, attr, None), getattr(net.get(other), attr, None)
    if a is None or b is None or a.shape != b.shape or type(b) is not nn.Parameter: return
    setattr(m, attr, b)


def _create(net, op, xs, kw):
    "The module a step wants, made at its first use"
    name = kw['name']
    m = net_of(kw['spec'], xs) if op == 'sub' else make(op, xs[0], kw)
    m = m.double().eval()
    net.put(name, m)
    if 'alias' in kw: net.put(kw['alias'], m)
    if 'tie' in kw: _tie(net, m, kw)
    hook = kw.get('hook')
    if hook and hook.startswith('pre_'): m.register_forward_pre_hook(Hook(hook, name, net.store))
    elif hook: m.register_forward_hook(Hook(hook, name, net.store))


def has(net, name):
    try: return net.get_submodule(name) is not None
    except AttributeError: return False


def _advance(net, i, vals):
    "Make what step `i` needs, run it on the live `vals`"
    op, src, kw = net.steps[i]
    if 'name' in kw and not has(net, kw['name']): _create(net, op, [vals[s] for s in src], kw)
    return net.step(i, vals)


def net_of(spec, xs):
    "The net of `spec`, its modules fitted to the inputs `xs`"
    net = net_class(spec)(spec)
    vals = dict(enumerate(xs))
    for i in range(len(net.steps)): vals[net.n_in + i] = _advance(net, i, vals)
    if not all(isinstance(vals[o], torch.Tensor) for o in spec['out']): raise Invalid('an output is no tensor')
    return net.get(net.steps[0][2]['name']) if spec.get('bare') else _reorder(net, spec.get('order'))


def _reorder(net, order):
    "Shuffle the order of registration, in every container"
    if order is None: return net
    rng = random.Random(order)
    for m in net.modules():
        if isinstance(m, (Net, Box)):
            items = list(m._modules.items())
            rng.shuffle(items)
            m._modules.clear()
            m._modules.update(items)
    return net


def inputs_of(spec, n=None, seed=0):
    g = torch.Generator().manual_seed(spec.get('seed', 0) + seed)
    return [torch.randn((n or s[0],) + tuple(s[1:]), generator=g, dtype=torch.float64) for s in spec['inputs']]


def looks(spec):
    "(label, inputs) that may take other ways than the example: the same negated or scaled, one item, other sizes"
    xb, g = inputs_of(spec), torch.Generator().manual_seed(spec.get('seed', 0) + 3)

    def sized(f):
        shapes = [[max(n, 1) for n in f(list(s))] for s in spec['inputs']]
        return [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    yield 'negated', [-x for x in xb]
    yield 'scaled', [6 * x for x in xb]
    yield 'faint', [0.05 * x for x in xb]
    yield 'shifted', [x + 1 for x in xb]
    yield 'one item', sized(lambda s: [1] + s[1:])
    yield 'seven items', sized(lambda s: [7] + s[1:])
    if any(len(s) > 2 for s in spec['inputs']):
        for label, k in (('larger', 3), ('one more', 1), ('smaller', -1), ('far smaller', -3)):
            yield label, sized(lambda s: s[:2] + [n + k for n in s[2:]])
    if any(len(s) == 3 for s in spec['inputs']):
        for label, k in (('longer', 3), ('shorter', -1)): yield label, sized(lambda s: [s[0], s[1] + k] + s[2:])


def doors(spec, n=0):
    "Positional inputs that enter by another door: a keyword, another kind of input"
    x = inputs_of(spec, None if n == 0 else n, 6 + n)[0]
    return [eval(f'({d},)', {}, dict(x=x)) for d in spec.get('doors', ())]


def way(model, xb):
    "What identifies the way that a forward takes: the modules it calls, the lines of programs it runs"
    names, seen, old = {m: n for n, m in model.named_modules()}, [], sys.gettrace()

    def local(frame, event, arg):
        seen.append(frame.f_lineno)
        return local

    def called(frame, event, arg):
        return local(frame, event, arg) if frame.f_code.co_filename.startswith(FILE) else None
    hook = nn.modules.module.register_module_forward_pre_hook(lambda m, args: seen.append(names.get(m)))
    sys.settrace(called)
    try: run(model, xb)
    finally:
        sys.settrace(old)
        hook.remove()
    return tuple(seen)


def ways(model, spec):
    "The ways that the example and the other inputs take"
    found = set()
    for xb in [inputs_of(spec), *(xb for _, xb in looks(spec))]:
        with suppress(Exception): found.add(way(model, xb))
    return found


def tiny(net, seed):
    "Some scales next to nothing: their inverse loses all digits"
    g = torch.Generator().manual_seed(seed)
    for m in bn_layers(net).values():
        if type(getattr(m, 'weight', None)) is not nn.Parameter: continue
        k = torch.rand(len(m.weight), generator=g) < 0.3
        m.weight[k] *= 10 ** -(3 + 9 * torch.rand(int(k.sum()), generator=g, dtype=torch.float64))


def usable(outs): return all(torch.isfinite(o).all() and (o.numel() == 0 or o.abs().max() < 1e6) for o in outs)


def build(spec):
    "Net, example batch, fresh batch of another size; `Invalid` if they do not work"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.get('seed', 0))
            net = net_of(spec, inputs_of(spec)).eval()
            randomize_bn(net, spec.get('seed', 0), spec.get('neg', 0.2), spec.get('zero', 0.05))
            calibrate(net, inputs_of(spec, 8, 1), spec.get('seed', 0))
            if spec.get('tiny'): tiny(net, spec['seed'])
            xb, fresh = inputs_of(spec), inputs_of(spec, spec.get('fresh', 5), 2)
            if not usable(run(net, xb) + run(net, fresh)): raise Invalid('out of range')
    except Invalid: raise
    except Exception as e: raise Invalid(f'{type(e).__name__}: {e}') from e
    if isinstance(net, Net): net.store.clear()
    return net, xb, fresh


# ---------------------------------------------------------------- modules whose Python decides, as users write them
def pick(a, b, first):
    "A helper that branches"
    return a if first else b


def check(ok):
    "A helper that raises"
    if not ok: raise ValueError('no')


def positive(t): return bool(t.mean() > 0.01)
def indented(lines): return ['    ' + i if i else i for i in lines]


FILE = '<program '
NAMES = dict(torch=torch, np=np, nn=nn, F=F, random=random, pick=pick, check=check, positive=positive)


def source(parts, lines=(), args='x', methods=(), **_):
    "The class that a program stands for, as text"
    built = [f'def __init__(self{"".join(", " + p for p in parts)}):', '    super().__init__()',
             *indented([f'self.{p} = {p}' for p in parts]), '']
    run = [f'def forward(self, {args}):', *indented(lines)]
    return '\n'.join(['class Block(nn.Module):', *indented([*built, *methods, *run]), ''])


@lru_cache(maxsize=300)
def program_class(text):
    "The class in `text`"
    made = dict(NAMES, __name__='program')
    exec(compile(text, f'{FILE}{zlib.crc32(text.encode())}>', 'exec'), made)
    return made['Block']


class Coder:
    """Writes one forward for inputs of `shape`, as a literal dict: `parts` (name -> step that makes it), `lines`,
    `args`, `methods`. Every layer keeps the shape of what it gets, so that each line works on each way. Ways are taken
    by what a tensor holds, or by an argument that the fold is told of; with `seq` the channels are the last axis"""
    KINDS = dict(layer=2, norm=3, pair=4, math=3, split=4, choice=3, flag=2, exit=2, loop=2, pad=1, list=2, seq=1,
                 sub=3, try_=1, keep=2, chain=2, if_=4, raise_=1, draw=1)
    NESTING = 'if_', 'loop', 'sub', 'try_', 'split', 'draw'

    def __init__(self, rng, shape, seq=False, depth=0):
        self.rng, self.shape, self.seq, self.depth = rng, tuple(shape), seq, depth
        self.c, self.parts, self.flags, self.n, self.nest = shape[-1] if seq else shape[1], {}, [], 0, 0

    def p(self, prob): return self.rng.random() < prob
    def one(self, *xs): return self.rng.choice(xs)

    # -- layers
    def add(self, stem, op, **kw):
        self.n += 1
        self.parts[f'{stem}{self.n}'] = (op, kw)
        return f'{stem}{self.n}'

    def layer_step(self):
        if self.seq or len(self.shape) == 2: return 'linear', dict(out=self.c, bias=self.p(0.5))
        kw = self.one(dict(k=1), dict(k=1), dict(k=3, pad=1), dict(k=3, pad=1, groups='dw'))
        return 'conv', dict(kw, out=self.c, bias=self.p(0.5))

    def old(self, *ops):
        "A layer that is there already, now and then"
        ok = [n for n, (op, _) in self.parts.items() if op in ops]
        return self.rng.choice(ok) if ok and self.p(0.12) else None

    def layer(self):
        op, kw = self.layer_step()
        return self.old('conv', 'linear') or self.add('a', op, **kw)

    def norm(self): return self.old('bn') or self.add('b', 'bn')

    def use(self, name, v='h'):
        "The call of a part, its channels brought to the second axis where it wants them there"
        if self.seq and self.parts[name][0] == 'bn': return f'self.{name}({v}.transpose(1, 2)).transpose(1, 2)'
        return f'self.{name}({v})'

    def pair(self):
        a, b = self.layer(), self.norm()
        return (a, b) if self.p(0.7) else (b, a)

    # -- questions
    def cond(self):
        c = self.one(*self.flags) if self.flags and self.p(0.35) else self.value()
        return f'not {c}' if self.p(0.1) else c

    def value(self):
        v, t = self.one('h', 'x', 'x', 'g'), self.one(0.011, 0.011, -0.021, 0.13, 0.41)
        far = round(t + 2, 2)
        return self.one(
            f'({v}.mean() > {t})', f'({v}.sum().item() > {t})', f'bool(({v} > {far}).any())', f'({v} > {t}).all()',
            f'(float({v}.flatten()[0]) > {t})', f'({v}.flatten().tolist()[0] > {t})', f'({v}.abs().max() > {far})',
            f'(int({v}.flatten()[0] * 9.7) % 2 == 1)', f'positive({v})', f'({v}.detach().numpy().mean() > {t})',
            f'(max({v}.flatten().tolist()) > {far})', f'(np.asarray({v}.detach()).max() > {far})')

    def count(self): return self.one('int(h.mean() > 0.011) + 1', 'int(x.abs().max() * 0.97) % 3')

    # -- statements: each gives lines
    def block(self, most=2):
        self.nest += 1
        lines = [i for _ in range(self.rng.randint(1, most)) for i in self.statement()]
        self.nest -= 1
        return indented(lines)

    def statement(self):
        kinds = [k for k in self.KINDS if not (self.nest > 1 and k in self.NESTING)]
        return getattr(self, 's_' + self.rng.choices(kinds, [self.KINDS[k] for k in kinds])[0])()

    def s_layer(self): return [f'h = {self.use(self.layer())}']
    def s_norm(self): return [f'h = {self.use(self.norm())}']
    def s_pair(self): return [f'h = {self.use(n)}' for n in self.pair()]

    def s_math(self):
        return [self.one('h = F.relu(h)', 'h = h + g', 'h = h * 0.7', 'g = h', 'h = torch.tanh(g) + h', 'h, g = g, h',
                         'h = h * (1 + (x.float() > 0.013).to(h.dtype))', 'h = h.mul_(0.7)', 'h += g')]

    def s_if_(self):
        lines = [f'if {self.cond()}:', *self.block()]
        return lines + ['else:', *self.block()] if self.p(0.4) else lines

    def s_split(self):
        "A layer, and its neighbour on one way only"
        a, b = self.pair()
        lines = [f'h = {self.use(a)}', f'if {self.cond()}:', f'    h = {self.use(b)}']
        return lines if self.p(0.7) else lines + ['else:', f'    h = {self.one(self.use(self.layer()), "F.relu(h)")}']

    def s_keep(self):
        "What a layer gives is held, and read on one way only"
        a, b = self.pair()
        hold, read = self.one(('held = {"h": [h]}', 'held["h"][0]'), ('held = (lambda t: lambda: t)(h)', 'held()'))
        return [f'h = {self.use(a)}', hold, f'h = {self.use(b)}', f'if {self.cond()}: h = h + {read}']

    def s_draw(self):
        "A draw that training only would need"
        return [self.one('if random.random() < 1. or not self.training:', 'if not self.training:'), *self.block(1)]

    def s_choice(self):
        "One of two without an `if`"
        a, b = self.pair()
        u, c, s = self.use(b), self.cond(), self.layer()
        how = self.one(f'{u} if {c} else h', f'pick({u}, h, {c})', f'[h, {u}][int({c})]',
                       f'(self.{s} if {c} else F.relu)(h)', f'torch.stack([h, {u}])[int({c})]')
        return [f'h = {self.use(a)}', f'h = {how}']

    def s_flag(self):
        "A question asked early"
        if self.nest: return self.s_layer()
        self.flags.append('f')
        return [f'f = {self.cond()}' if self.p(0.8) else f'f = None if {self.value()} else 1']

    def s_exit(self): return [f'if {self.cond()}:', *self.block(1), f'    return {self.result}']

    def s_loop(self):
        if self.p(0.7): return [f'for _ in range({self.count()}):', *self.block(1)]
        n, value = f'n{self.nest}', self.value()
        return [f'{n} = 0', f'while ({n} := {n} + 1) < 4 and {value}:', *self.block(1), '    h = h * 0.5']

    def s_raise_(self):
        "The other way only raises"
        return [self.one('assert not torch.isnan(h).any()', 'if h.abs().max() > 1e6: raise ValueError("too large")',
                         f'if h.dim() != {len(self.shape)}: raise ValueError("shape")', 'check(len(x) > 0)')]

    def s_try_(self):
        a, b = self.pair()
        tried = [f'check({self.cond()})', f'h = {self.use(b)}']
        return [f'h = {self.use(a)}', 'try:', *indented(tried), 'except ValueError:', *self.block(1)]

    def s_pad(self):
        "Padded to a multiple, and cut off again"
        if len(self.shape) == 2 or self.seq: return self.s_pair()
        a, b = (f'h = {self.use(n)}' for n in self.pair())
        pad = f'h = F.pad(h, (0, -h.shape[-1] % {self.one(2, 4)}))'
        return [*self.one([a, pad, b], [pad, a, b], [a, b, pad]), 'h = h[..., :x.shape[-1]]']

    def s_seq(self):
        "A child that is also taken apart, always in the same way"
        if self.seq: return self.s_list()
        s = 'self.' + self.add('s', 'seq', steps=[self.layer_step(), ('bn', {})][::self.one(1, -1)])
        return self.one([f'for m in {s}: h = m(h)'], [f'h = {s}(h)'], [f'h = {s}(h)', f'h = h + {s}[0].weight.mean()'])

    def s_list(self):
        "A loop over a ModuleList"
        layer, other, bn = self.layer_step(), self.layer_step(), ('bn', {})
        steps = [layer, other] if self.seq else self.one([layer, bn], [layer, bn, other], [bn, layer])
        m, c = 'self.' + self.add('m', 'list', steps=steps), self.cond()
        return self.one([f'for m in {m}: h = m(h)'], [f'for m in {m}:', '    h = m(h)', f'    if {c}: break'],
                        [f'for i, m in enumerate({m}): h = m(h) if i == 0 or {c} else h'],
                        [f'for i in range({self.count()}): h = {m}[i % {len(steps)}](h)'])

    def s_sub(self):
        "A child that decides too: its answer comes back, or it is told"
        if self.depth > 1: return self.s_if_()
        sub, how = Coder(self.rng, self.shape, self.seq, self.depth + 1), self.one('call', 'back', 'told')
        prog = sub.program(self.rng.randint(1, 3), pair=how == 'back', args='x, f=None' if how == 'told' else 'x')
        s = 'self.' + self.add('c', 'code', **prog)
        if how == 'call': return [f'h = {s}(h)']
        if how == 'told': return [f'h = {s}(h, {self.cond()})']
        return [f'h, f = {s}(h)', f'if f{self.one("", " is None", " is not None")}:', *self.block(1)]

    def s_chain(self):
        "A child that decides between two layers of a Sequential"
        if self.seq or self.depth > 1: return self.s_split()
        between = ('code', Coder(self.rng, self.shape, False, self.depth + 1).program(self.rng.randint(1, 2)))
        a, b = [self.layer_step(), ('bn', {})][::self.one(1, 1, -1)]
        return [f'h = self.{self.add("q", "seq", steps=[a, between, b])}(h)']

    # -- the whole
    def program(self, size, pair=False, args='x', doors=()):
        "Options of a step `code` with `size` statements"
        if pair or 'f=' in args: self.flags.append('f')
        self.flags += doors
        self.result = '(h, f)' if pair else 'h'
        lines = [i for _ in range(size) for i in self.statement()]
        if pair: lines.append(f'f = {self.one(self.cond(), f"None if {self.cond()} else 1")}')
        first = ['h = g = x'] + (['f = None'] if 'f=' not in args and re.search(r'\bf\b', ' '.join(lines)) else [])
        return tidy(dict(parts=self.parts, lines=[*first, *lines, f'return {self.result}'], args=args, seq=self.seq))


def bare(rng, shape, seq):
    "A whole model: options of its step, and its other doors as source of positional inputs, `x` an ordinary input"
    c, door = Coder(rng, shape, seq), rng.choice(['', '', 'fast', 'embed', 'kind'])
    if door == 'fast': return c.program(rng.randint(2, 5), args='x, fast=False', doors=['fast']), ['x, True']
    prog = c.program(rng.randint(2, 5))
    a, b = c.pair()
    first, second = f'x = {c.use(a, "x")}', f'x = {c.use(b, "x")}'
    if door == 'embed':  # a method does the first layers, unless what they give is handed in
        embed = ['def embed(self, x):', *indented([first, second]), '    return x', '']
        start = ['x = self.embed(x) if y is None else y']
        more = dict(parts=c.parts, args='x, y=None', methods=embed, lines=start + prog['lines'])
        return tidy(prog | more), ['None, x']
    if door == 'kind':  # an input of other axes is taken too, one layer passed by
        flat = len(shape) == 2
        ask, shaped = ('x.dim() > 2', 'x.flatten(1)') if flat else (f'x.dim() < {len(shape)}', 'x[None]')
        start = [f'if {ask}:', f'    x = {shaped}', f'    {first}', 'else:', f'    {first}', f'    {second}']
        return tidy(dict(prog, parts=c.parts, lines=start + prog['lines'])), ['x[:, None, :]' if flat else 'x[0]']
    return prog, []


def tidy(kw):
    "A program with only the parts that are named in it"
    text = '\n'.join([*kw['lines'], *kw.get('methods', ())])
    return dict(kw, parts={n: p for n, p in kw['parts'].items() if re.search(rf'\b{n}\b', text)})


def simpler_program(kw):
    "Smaller programs: a line, a block, the head of a block, a part's own lines less"
    def depth(line): return len(line) - len(line.lstrip())
    lines = kw['lines']
    for i, line in enumerate(lines):
        end = i + 1
        while end < len(lines) and depth(lines[end]) > depth(line): end += 1
        yield tidy(dict(kw, lines=lines[:i] + lines[end:]))
        if end > i + 1: yield tidy(dict(kw, lines=lines[:i] + [s[4:] for s in lines[i + 1:end]] + lines[end:]))
    for n, (op, opts) in kw['parts'].items():
        smaller = simpler_program(opts) if op == 'code' else fewer_steps(opts) if op == 'seq' else ()
        for s in smaller: yield dict(kw, parts={**kw['parts'], n: (op, s)})


def fewer_steps(kw):
    steps = kw['steps']
    for i in range(len(steps) if len(steps) > 1 else 0): yield dict(kw, steps=steps[:i] + steps[i + 1:])


# ---------------------------------------------------------------- inventing nets
class Gen:
    "Adds steps that work, one by one, on live values"
    def __init__(self, seed, inputs=None, depth=0, xs=None):
        self.rng, self.depth, self.n = random.Random(seed), depth, 0
        self.spec = dict(seed=seed % 100000, inputs=inputs or self.some_inputs(), steps=[], out=[])
        self.net = net_class(self.spec)(self.spec)
        self.vals = dict(enumerate(xs or inputs_of(self.spec)))

    # -- draws
    def p(self, prob): return self.rng.random() < prob
    def one(self, *xs): return self.rng.choice(xs)

    def some_inputs(self):
        self.batch, c, s = self.one(1, 2, 2, 3, 4), self.one(2, 3, 4, 6, 8), self.one(4, 5, 6, 8)
        nd = self.rng.choices([0, 1, 2, 3], [2, 2, 6, 1])[0]
        shape = (self.batch, c) + ((s,) * nd if nd < 3 else (4, 4, 4))
        more = [(self.batch, self.one(2, 4, 6)) + shape[2:]] if self.p(0.25) else []
        return [shape, *more, *([(self.batch, 4)] if self.p(0.08) else [])]

    def value(self, pred=lambda t: True, late=0.7):
        "A live tensor, mostly one of the last"
        ok = [i for i, t in self.vals.items() if isinstance(t, torch.Tensor) and pred(t)]
        if not ok: return None
        return self.rng.choice(ok[-3:] if self.p(late) else ok)

    def img(self): return self.value(lambda t: t.dim() > 2 and t.shape[1] > 0)

    def like(self, i):
        "Another value of the same shape, or the same"
        s = self.vals[i].shape
        ok = [j for j, t in self.vals.items() if isinstance(t, torch.Tensor) and j != i and t.shape == s]
        return self.rng.choice(ok) if ok else i

    # -- adding steps
    def name(self, stem):
        self.n += 1
        return self.one('', '', '', 'enc.', 'enc.', 'dec.', 'dec.inner.') + f'{stem}{self.n}'

    def emit(self, op, *src, **kw):
        "The new value's number, or None if the step does not work on these values"
        if any(s is None for s in src): return None
        if op not in ('f', 'write'):
            kw.setdefault('name', self.name(op))
            hooks = 'read', 'scale', 'shift', 'inplace', 'stash', 'pre_read', 'pre_scale'
            if self.p(0.012): kw.setdefault('hook', self.one(*hooks))
        before = {i: self.vals[i].clone() for i in src} if op == 'write' else {}
        self.net.steps.append((op, tuple(src), kw))
        last = len(self.net.steps) - 1
        k = self.net.n_in + last
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]): self.vals[k] = _advance(self.net, last, self.vals)
            self.fits(self.vals[k])
        except Exception:
            self.net.steps.pop()
            self.vals.pop(k, None)
            self.vals.update(before)
            return None
        return k

    def fits(self, t):
        if isinstance(t, (tuple, list)): return
        if not 0 < t.numel() <= 20000 or not torch.isfinite(t).all() or t.abs().max() > 1e4: raise Invalid('too large')

    def f(self, code, *src): return self.emit('f', *src, code=code)

    def mod(self, i, *codes):
        if i is not None: return self.emit('mod', i, code=self.filled(self.one(*codes), i))

    def filled(self, code, i):
        "A row of a table with axes and numbers put in for value `i`"
        d = self.vals[i].dim()
        turned = self.rng.sample(range(1, d), d - 1)
        some = dict(i=self.rng.randrange(1, d), j=self.rng.randrange(1, d), g=self.one(2, 2, 3, 4), nd=d - 2)
        return code.format(**some, rest=tuple(range(2, d)), turned=', '.join(map(str, turned)))

    # -- layers
    def conv(self, i, **kw):
        if i is None or self.vals[i].dim() < 2: return None
        c = self.vals[i].shape[1]
        kw = dict(out=self.one(2, 4, 6, 8, c), k=self.one(1, 1, 3, 3, 2), bias=self.p(0.5)) | kw
        if kw['k'] == 3 and self.p(0.6): kw.setdefault('pad', 1)
        if kw.get('pad') and self.p(0.4): kw['mode'] = self.one('reflect', 'replicate', 'circular')
        if self.p(0.05): kw['pad'] = 'same'
        if self.p(0.2): kw['groups'] = self.one('dw', 2)
        if self.p(0.1): kw['stride'] = 2
        if self.p(0.05): kw['dil'] = 2
        if self.p(0.04): kw['wrap'] = self.one('wn', 'sn')
        elif self.p(0.04): kw['cls'] = self.one('fconv', 'std')
        return self.emit('conv', i, **kw) or self.emit('conv', i, out=4, k=1)

    def convt(self, i):
        kw = dict(out=self.one(2, 4, 6), k=self.one(1, 2, 3), bias=self.p(0.5), stride=self.one(1, 2))
        if self.p(0.3): kw['groups'] = self.one('dw', 2)
        if self.p(0.3): kw['pad'] = 1
        return self.emit('convt', i, **kw)

    def linear(self, i): return self.emit('linear', i, out=self.one(2, 4, 6, 8), bias=self.p(0.5))

    def layer(self, i):
        "A convolution or linear layer that fits"
        if i is None or self.vals[i].dim() < 2: return None
        if self.vals[i].dim() == 2 or self.p(0.12): return self.linear(i)
        return self.convt(i) if self.p(0.15) else self.conv(i)

    def bn(self, i, **kw):
        kinds = 'noaffine', 'nostats', 'nomom', 'sync', 'frozen', 'act', 'odd', 'same', 'fbn'
        if self.p(0.1): kw.setdefault('kind', self.one(*kinds))
        if self.p(0.1): kw['eps'] = self.one(1e-3, 0.1)
        return self.emit('bn', i, **kw)

    def act(self, i): return self.mod(i, *ACTS)

    def carrier(self, i):
        "Something an affine map might travel through, or might not"
        if i is None: return None
        if self.p(0.4): return self.mod(i, *MODULES)
        code = self.one(*self.one(COPIES, COPIES, MOVES, TAKES, SHAPES, REPEATS, POOLS, POOLS, PADS))
        return self.f(self.filled(code, i), *([i, self.value()] if 'b)' in code else [i]))

    def carriers(self, i, most=2):
        for _ in range(self.rng.randrange(most + 1)): i = self.carrier(i) or i
        return i

    def math(self, i): return None if i is None else self.f(self.one(*MATH), i, self.like(i))
    def join(self, a, b): return self.f(self.one('torch.cat(xs, 1)', 'a + b', 'a * b', 'a - b'), a, b)

    # -- patterns
    def m_layer_bn(self):
        i = self.bn(self.carriers(self.layer(self.value()), 1))
        return self.act(i) if self.p(0.6) else i

    def m_bn_layer(self):
        i = self.value()
        if self.p(0.6): i = self.act(i) or i
        return self.layer(self.carriers(self.bn(i), 2))

    def m_far(self): return self.bn(self.carriers(self.layer(self.value()), 3))
    def m_bn_bn(self): return self.bn(self.carriers(self.bn(self.value()), 1))

    def m_head(self):
        i = self.img()
        a, b = self.mod(i, 'nn.AdaptiveAvgPool{nd}d(1)'), self.mod(i, 'nn.AdaptiveMaxPool{nd}d(1)')
        i = self.bn(self.f('a.flatten(1)', self.f('torch.cat(xs, 1)', b, a) if self.p(0.6) else a))
        if self.p(0.5): i = self.mod(i, 'nn.Dropout()')
        i = self.emit('linear', i, out=6)
        return self.emit('linear', self.bn(self.act(i)), out=3)

    def m_residual(self):
        i = self.img()
        c = self.vals[i].shape[1]
        j = self.act(self.bn(self.conv(i, out=c, k=1)))
        j = self.bn(self.emit('conv', j, out=c, k=1, bias=False))
        return self.emit('write', j, i, code='a.add_(b)') if self.p(0.3) else self.f('a + b', j, i)

    def m_cat(self):
        i = self.img()
        parts = [self.branchlet(i) for _ in range(self.one(2, 2, 3))]
        if self.p(0.08): return self.layer(self.bn(self.f('assembled(a, b)', parts[0], parts[-1])))
        how = 'torch.cat(xs, 1)', 'torch.cat(xs, 1)', 'torch.cat(xs, 0)', 'torch.cat(xs, -1)', 'torch.stack(xs, 1)'
        k = self.f(self.one(*how), *parts)
        k = self.bn(k) if self.p(0.7) else k
        return self.layer(self.act(k) if self.p(0.4) else k)

    def branchlet(self, i):
        if i is None or self.p(0.15): return i
        j = self.emit('conv', i, out=self.one(2, 4), k=1, bias=self.p(0.5)) if self.p(0.7) else i
        if self.p(0.5): j = self.bn(j)
        return self.act(j) if self.p(0.3) else self.carriers(j, 1)

    def m_chunk(self):
        i = self.layer(self.value()) if self.p(0.6) else self.value()
        if self.p(0.4): i = self.bn(i)
        how = 'a.chunk(2, 1)', 'a.split(a.shape[1] // 2, 1)', 'a.tensor_split(2, 1)', 'a.chunk(2, -1)', 'a.unbind(1)'
        t = self.f(self.one(*how), i)
        a, b = self.f('a[0]', t), self.f('a[1]', t)
        if self.p(0.3): a = self.emit('write', a, code=self.one('a.add_(0.5)', 'a.mul_(0.5)', 'F.relu_(a)')) or a
        a = (self.bn(a) if self.p(0.5) else self.layer(a)) or a
        b = (self.bn(b) if self.p(0.3) else b) or b
        k = self.f('torch.cat(xs, 1)', *self.one([a, b], [b, a])) or self.join(a, b)
        return self.bn(k) if self.p(0.4) else k

    def m_shared(self):
        "The same layer, or layer and BatchNorm, called twice"
        i, n1, n2, both = self.value(), self.name('sh'), self.name('shbn'), self.p(0.6)
        op, kw = ('conv', dict(out=4, k=1)) if self.vals[i].dim() > 2 else ('linear', dict(out=4))
        m1, m2 = (n if both or self.p(0.5) else self.name('own') for n in (n1, n2))
        a = self.emit('bn', self.emit(op, i, name=n1, **kw), name=n2)
        b = self.emit('bn', self.emit(op, self.like(i), name=m1, **kw), name=m2)
        if self.p(0.3): b = self.emit('bn', self.math(b), name=n2)
        return self.join(a, b)

    def m_fan_out(self):
        "One layer, several readers"
        i = self.bn(self.act(self.value())) if self.p(0.6) else self.layer(self.value())
        readers = self.layer, self.layer, self.bn, self.math
        parts = [self.one(*readers)(self.carriers(i, 1)) for _ in range(self.one(2, 3))]
        if self.p(0.2): parts.append(i)
        return self.f('torch.cat(xs, 1)', *parts) or self.join(*parts[:2])

    def m_unet(self):
        i = self.img()
        d = self.act(self.bn(self.conv(self.f(self.filled('F.max_pool{nd}d(a, 2)', i), i))))
        u = self.mod(d, 'nn.Upsample(scale_factor=2)') if self.p(0.5) else self.emit('convt', d, out=4, k=2, stride=2)
        return self.layer(self.f('torch.cat(xs, 1)', u, self.bn(i) if self.p(0.6) else i))

    def m_seq(self):
        mods = dict(relu='nn.ReLU(inplace=True)', drop='nn.Dropout()', pool='nn.AvgPool2d(2)')
        one = {name: ('mod', dict(code=code)) for name, code in mods.items()}
        one |= dict(conv=('conv', dict(out=4, k=self.one(1, 3), bias=self.p(0.5))), bn=('bn', {}))
        words = 'conv bn', 'bn conv', 'conv relu bn', 'conv drop bn', 'pool bn conv', 'bn bn', 'conv bn conv bn'
        return self.emit('seq', self.img(), steps=[copy.deepcopy(one[w]) for w in self.one(*words).split()])

    def m_sub(self):
        "A net in the net, sometimes called twice"
        if self.depth > 1: return None
        i, j = self.value(), self.value(late=0.3)
        src = [i] if self.p(0.6) else [i, j]
        xs = [self.vals[s].clone() for s in src]
        inner = Gen(self.rng.randrange(10**6), [tuple(x.shape) for x in xs], self.depth + 1, xs)
        spec = inner.grow(self.one(1, 2, 3), 1)
        if spec is None: return None
        name = self.name('blk')
        k = self.emit('sub', *src, name=name, spec=spec)
        if k is None or self.p(0.7): return k
        return self.f('a + b', k, self.emit('sub', *map(self.like, src), name=name, spec=spec))

    def m_stash(self):
        "A hook keeps what a layer gives, and it is added further on"
        i, op, name = self.value(), self.one('conv', 'bn'), self.name('st')
        k = self.emit(op, i, name=name, hook='stash', **(dict(out=4, k=1) if op == 'conv' else {}))
        return self.f(f'stashed(net, {name!r}, a)', self.carriers(self.bn(k) if op == 'conv' else self.act(k), 1))

    def m_tie(self):
        "Two layers with one weight"
        i, op, n1 = self.value(), self.one('conv', 'bn', 'linear'), self.name('ti')
        kw = dict(conv=dict(out=4, k=1), linear=dict(out=4), bn={})[op]
        a = self.emit(op, i, name=n1, **kw)
        b = self.emit(op, self.like(i), name=self.name('tied'), tie=(self.one('weight', 'weight', 'bias'), n1), **kw)
        return self.join(self.bn(a) if self.p(0.8) else a, self.bn(b) if self.p(0.6) else b)

    def m_weight(self):
        "A weight or buffer with a second reader, or used by hand; a layer called once more"
        i, op, name = self.value(), self.one('conv', 'bn'), self.name('wr')
        d = self.vals[i].dim()
        a = self.emit(op, i, name=name, **(dict(out=self.vals[i].shape[1], k=1) if op == 'conv' else {}))
        b, m = self.bn(a) if op == 'conv' else self.layer(a), f'net.get({name!r})'
        by_hand = f'F.conv{d - 2}d(a, {m}.weight, {m}.bias)'
        if op == 'bn': by_hand = f'F.batch_norm(a, {m}.running_mean, {m}.running_var)'
        attr = self.one('weight', 'bias', *(['running_mean', 'running_var'] if op == 'bn' else []))
        if self.p(0.4): return self.f(f'a * (1 + {m}.{attr}.mean())', b)
        return self.f(by_hand, i) if self.p(0.5) else self.f(f'{m}(a)', self.like(i))

    def m_sum(self):
        "A sum of terms of one shape: convolutions of the same value, the value itself, BatchNorms of it, some twice"
        i = self.value()
        c = self.vals[i].shape[1]
        k = self.summand(i, c)
        for _ in range(self.one(1, 2, 3)):
            j = self.summand(i, c) if self.p(0.8) else k
            if self.p(0.1): k = self.emit('write', k, j, code='a.add_(b)')
            else: k = self.f(self.one('a + b', 'a + b', 'a - b'), k, j)
        return self.bn(k) if self.p(0.5) else self.act(k)

    def summand(self, i, c):
        if self.p(0.15): return i
        if self.p(0.3): return self.bn(i)
        three = dict(k=3, pad=1)
        kinds = three, dict(k=1), dict(three, groups='dw'), dict(three, mode='reflect'), dict(k=3, dil=2, pad=2)
        if self.vals[i].dim() == 2 or self.p(0.1): k = self.emit('linear', i, out=self.vals[i].shape[-1])
        else: k = self.emit('conv', i, out=c, bias=self.p(0.5), **self.one(*kinds))
        return self.bn(k) if self.p(0.4) else k

    def m_write(self):
        i = self.value() if self.p(0.5) else self.layer(self.value())
        view = self.f(self.filled(self.one(*TAKES), i), i) if self.p(0.25) else i
        self.emit('write', view, self.like(view), code=self.one(*WRITES))
        return self.bn(i) if self.p(0.6) else self.layer(i)

    def m_seq3d(self):
        "Linear on the last axis, BatchNorm on the second: they differ unless transposed"
        i = self.value(lambda t: t.dim() == 3) or self.f('a.flatten(2)', self.img())
        k = self.linear(i)
        return self.bn(self.f('a.transpose(1, 2)', k) if self.p(0.5) else k)

    def m_alias(self):
        "A module registered under two names"
        a, b = self.name('al'), self.name('albn')
        k = self.emit('conv', self.img(), name=a, out=4, k=1, **(dict(alias='also.' + a) if self.p(0.5) else {}))
        return self.layer(self.emit('bn', k, name=b, **(dict(alias='again.' + b) if self.p(0.6) else {})))

    def m_math(self): return self.math(self.value())
    def m_carrier(self): return self.carrier(self.value())
    def m_act(self): return self.act(self.value())

    MOTIFS = dict(layer_bn=8, bn_layer=8, far=8, bn_bn=2, head=4, residual=4, cat=6, chunk=4, shared=3, fan_out=4,
                  unet=3, seq=3, sub=3, stash=1, tie=1, weight=2, write=3, seq3d=2, math=3, carrier=4, act=2,
                  alias=1, sum=5)

    def grow(self, motifs, outs=None):
        "Some patterns, then the outputs; None if nothing came of it"
        for _ in range(motifs):
            m = self.rng.choices(list(self.MOTIFS), list(self.MOTIFS.values()))[0]
            # the value at hand has too few axes, or there is none
            with suppress(IndexError, AttributeError, ValueError, KeyError): getattr(self, 'm_' + m)()
        steps = self.net.steps
        if not steps: return None
        used = {s for _, src, _ in steps for s in src}
        made = range(self.net.n_in, self.net.n_in + len(steps))
        tensors = [i for i in made if isinstance(self.vals[i], torch.Tensor)]
        ends = [i for i in tensors if i not in used]
        if not ends: return None
        out = ends[-outs:] if outs else [self.ending(i) for i in ends[-6:]]
        if not outs and self.p(0.15): out.append(self.rng.choice(tensors))
        self.spec.update(out=out)
        return self.finish(outs)

    def ending(self, i):
        "An output made of value `i`: mostly not a BatchNorm's own"
        if self.p(0.25): return i
        j = self.layer(i) if self.p(0.3) else self.f(self.one('F.relu(a)', 'F.relu(a)', 'a * a', 'a.softmax(1)'), i)
        return i if j is None else j

    def finish(self, inner):
        if self.p(0.5): self.spec['order'] = self.rng.randrange(1000)
        if not inner:
            self.spec['struct'] = self.one('single', 'single', 'tuple', 'dict', 'list', 'nested')
            self.spec['fresh'] = self.one(*[n for n in (2, 4, 5) if n != self.batch])
            if self.p(0.2): self.spec['neg'] = 0.
            if self.p(0.4): self.spec['zero'] = 0.
            if self.p(0.15): self.spec['train'] = True
            if self.p(0.1): self.spec['tiny'] = True
        return self.spec


class WayGen(Gen):
    "Modules that decide among the others"
    def m_code(self):
        i = self.value(lambda t: t.dim() > 1)
        if i is None: return None
        if self.p(0.4): i = (self.bn(i) if self.p(0.5) else self.layer(i)) or i
        c = Coder(self.rng, self.vals[i].shape, seq=self.vals[i].dim() == 3 and self.p(0.3))
        pair = self.p(0.1)
        k = self.emit('code', i, **c.program(self.one(1, 2, 3, 4), pair=pair))
        if pair: k = self.f('a[0]', k)
        return (self.bn(k) if self.p(0.5) else self.layer(k)) if self.p(0.4) else k

    MOTIFS = Gen.MOTIFS | dict(code=60)


def grown(seed, gen=Gen):
    g = gen(seed)
    return g.grow(g.one(2, 3, 4, 5, 6))


def whole(seed):
    "A model that is one program"
    rng = random.Random(seed)
    n, c = rng.choice([1, 2, 2, 3, 4]), rng.choice([2, 3, 4, 6])
    nd = rng.choices([0, 1, 2, 3], [2, 3, 6, 1])[0]
    seq, s = nd == 1 and rng.random() < 0.8, rng.choice([4, 5, 6, 8])
    shape = (n, s, c) if seq else (n, c) + ((s,) * nd if nd < 3 else (4, 4, 4))
    prog, others = bare(rng, shape, seq)
    fresh = rng.choice([k for k in (2, 4, 5) if k != n])
    spec = dict(seed=seed % 100000, inputs=[shape], out=[1], fresh=fresh, bare=True, zero=0.)
    return spec | (dict(doors=others) if others else {}) | dict(steps=[('code', (0,), dict(name='net', **prog))])


KINDS = (grown, lambda seed: grown(seed, WayGen), whole)


def generate(seed):
    "The spec of net number `seed`; a function of `seed` alone. One in three has no programs in it, one is nothing else"
    kind = seed % len(KINDS)
    for k in range(50):
        spec = KINDS[kind](seed * 100 + k)
        if spec is None or not count_bn(spec): continue
        try: model, _, _ = build(spec)
        except Invalid: continue
        if kind == 0 or spec.get('doors') or len(ways(model, spec)) > 1: return spec
    raise Invalid(f'nothing came of seed {seed}')


def count_bn(spec):
    "How many BatchNorm modules of known and unknown classes the steps ask for"
    n = set()
    for op, _, kw in spec['steps']:
        if op == 'bn': n.add(kw['name'])
        if op == 'sub': n |= set(range(count_bn(kw['spec'])))
        if op in ('seq', 'code'): n |= {f"{kw['name']}.{i}" for i in range(parts_bn(op, kw))}
    return len(n)


def parts_bn(op, kw):
    "How many BatchNorm modules are in what a step makes of steps"
    inner = kw['parts'].values() if op == 'code' else kw.get('steps', ())
    return (op == 'bn') + sum(parts_bn(*s) for s in inner)


# ---------------------------------------------------------------- cutting down
def drop_step(spec, i):
    "`spec` without step `i`, its readers reading its first source instead"
    n_in = len(spec['inputs'])
    v, repl = n_in + i, spec['steps'][i][1][0]

    def to(s):
        s = repl if s == v else s
        return s - 1 if s > v else s
    steps = [(op, tuple(to(s) for s in src), kw) for k, (op, src, kw) in enumerate(spec['steps']) if k != i]
    return dict(spec, steps=steps, out=list(dict.fromkeys(to(o) for o in spec['out'])))


def pruned(spec, out):
    "`spec` with the outputs `out`, and only the steps they need"
    n_in, want = len(spec['inputs']), set(out)
    for i in reversed(range(len(spec['steps']))):
        if n_in + i in want: want |= set(spec['steps'][i][1])
    keep = [i for i in range(len(spec['steps'])) if n_in + i in want]
    new = {**{k: k for k in range(n_in)}, **{n_in + i: n_in + k for k, i in enumerate(keep)}}
    steps = [(op, tuple(new[s] for s in src), kw) for op, src, kw in (spec['steps'][i] for i in keep)]
    return dict(spec, steps=steps, out=[new[o] for o in out])


def simpler(spec):
    "Smaller specs, boldest first"
    n, n_in = len(spec['steps']), len(spec['inputs'])
    ends = [pruned(spec, [n_in + k]) for k in range(n)] + [pruned(spec, spec['out'])]
    yield from (s for s in ends if len(s['steps']) < n)
    for i in reversed(range(n)): yield drop_step(spec, i)
    if len(spec['out']) > 1:
        for o in spec['out']: yield dict(spec, out=[x for x in spec['out'] if x != o])
    for k in ('order', 'struct', 'neg', 'zero', 'train', 'tiny', 'doors'):
        if k in spec: yield {a: b for a, b in spec.items() if a != k}
    for i, (op, src, kw) in enumerate(spec['steps']):
        if op == 'sub':
            for s in simpler(kw['spec']): yield _with(spec, i, (op, src, dict(kw, spec=s)))
        smaller = simpler_program(kw) if op == 'code' else fewer_steps(kw) if op == 'seq' else ()
        for s in smaller: yield _with(spec, i, (op, src, s))
        for k in kw:
            if k not in ('name', 'spec', 'steps', 'code', 'tie', 'seq', 'parts', 'lines', 'args', 'methods'):
                yield _with(spec, i, (op, src, {a: b for a, b in kw.items() if a != k}))


def _with(spec, i, step): return dict(spec, steps=spec['steps'][:i] + [step] + spec['steps'][i + 1:])


def shrink(spec, fails, budget=800):
    "The smallest spec found for which `fails(spec)` still holds; what failed to do is tried again once all else was"
    start, better = 0, False
    while True:
        for n, s in enumerate(simpler(spec)):
            if n < start: continue
            budget -= 1
            if budget <= 0: return spec
            if _fails(fails, s): spec, start, better = s, n, True; break
        else:
            if not better: return spec
            start, better = 0, False


def _fails(fails, s):
    try: build(s)
    except Invalid: return False
    return fails(s)


def literal(spec):
    "`spec` as Python source to keep"
    steps = ''.join(f'\n        {s!r},' for s in spec['steps'])
    rest = ', '.join(f'{k}={v!r}' for k, v in spec.items() if k != 'steps')
    return f'dict({rest},\n    steps=[{steps}])'
