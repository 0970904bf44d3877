"""Random networks out of a seed. A net is a *spec*: a literal dict with a short list of steps, built by `build`,
invented by `generate`, cut down by `shrink`. Steps are `(op, sources, options)`; sources number the values: the inputs
first, then one value a step. Options never hold input channels, so steps can be dropped and the rest still fits."""
import copy
import random
import sys
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import programs
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


class NoBiasConv(nn.Conv2d):
    "Ignores its bias: a bias given to it later is lost"
    def forward(self, x): return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


class StdConv(nn.Conv2d):
    "Weight standardisation: the weight that is used is computed from the weight that is stored"
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class GainConv(nn.Conv2d):
    "Reads its weight twice: for the convolution, and for a gain"
    def forward(self, x): return super().forward(x) * self.weight.abs().mean()


class PadConv(nn.Conv2d):
    "Pads by hand with zeros, then convolves without padding (timm's `Conv2dSame` does)"
    def forward(self, x): return F.conv2d(F.pad(x, (1, 0, 1, 0)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class OddBN2d(nn.BatchNorm2d):
    "An unknown subclass: more inside than a BatchNorm"
    def forward(self, x): return super().forward(x) * 1.5 + 0.1


class SameBN2d(nn.BatchNorm2d):
    "An unknown subclass that happens to do the same"


class CheckedBN(nn.modules.batchnorm._BatchNorm):
    "One with a check of its own, by way of `super()`"
    def _check_input_dim(self, x):
        if x.dim() < 2: raise ValueError('too few axes')

    def forward(self, x): return super().forward(x)


class DoubledBN2d(nn.BatchNorm2d):
    "One that normalizes with other numbers than it holds"
    def forward(self, x): return F.batch_norm(x, self.running_mean, self.running_var, self.weight * 2, self.bias, False, 0., self.eps)


class OtherEpsBN2d(nn.BatchNorm2d):
    "One with an epsilon of its own"
    def forward(self, x): return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0., 0.5)


class NarrowBN2d(nn.BatchNorm2d):
    "One that does not normalize images of one width"
    def forward(self, x): return super().forward(x) if x.shape[-1] != 14 else x


class WritesBN2d(nn.BatchNorm2d):
    "One that doubles its input in place"
    def forward(self, x): return super().forward(x.mul_(2))


class FBN(nn.Module):
    "`F.batch_norm` called by a module that is no BatchNorm class"
    def __init__(self, c):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.rand(c) + 0.5), nn.Parameter(torch.randn(c))
        self.register_buffer('m', torch.randn(c)), self.register_buffer('v', torch.rand(c) + 0.5)

    def forward(self, x): return F.batch_norm(x, self.m, self.v, self.w, self.b, False)


class Twice(nn.Module):
    "Parametrization: a weight computed from the stored one"
    def forward(self, w): return w * 2


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
LAZY = {2: nn.LazyBatchNorm1d, 3: nn.LazyBatchNorm1d, 4: nn.LazyBatchNorm2d, 5: nn.LazyBatchNorm3d}
ACTS = dict(relu=nn.ReLU, gelu=nn.GELU, sigmoid=nn.Sigmoid, leaky=nn.LeakyReLU, tanh=nn.Tanh, silu=nn.SiLU, prelu=nn.PReLU)
WRAP = dict(wn=parametrizations.weight_norm, sn=parametrizations.spectral_norm,
            twice=lambda m: parametrize.register_parametrization(m, 'weight', Twice()) and m,
            tbias=lambda m: parametrize.register_parametrization(m, 'bias', Twice()) and m)


def _wrap(m, wrap): return m if wrap is None or (wrap == 'tbias' and m.bias is None) else WRAP[wrap](m)


def mk_conv(x, out=4, k=3, pad=0, mode='zeros', groups=1, stride=1, dil=1, bias=True, wrap=None, cls=None):
    c, nd = x.shape[1], x.dim() - 2
    if groups == 'dw': groups, out = c, c * max(out // c, 1)
    if cls == 'fconv': return FConv(c, out, k, bias)
    kinds = dict(nobias=NoBiasConv, std=StdConv, gain=GainConv, pad=PadConv)
    m = kinds[cls] if cls and nd == 2 else CONV[nd - 1]
    return _wrap(m(c, out, k, padding=pad, padding_mode=mode, groups=groups, stride=stride, dilation=dil, bias=bias), wrap)


def mk_convt(x, out=4, k=3, pad=0, groups=1, stride=1, opad=0, bias=True):
    c, nd = x.shape[1], x.dim() - 2
    if groups == 'dw': groups, out = c, c
    return CONVT[nd - 1](c, out, k, padding=pad, groups=groups, stride=stride, output_padding=opad, bias=bias)


def mk_linear(x, out=4, bias=True, wrap=None): return _wrap(nn.Linear(x.shape[-1], out, bias=bias), wrap)


def mk_bn(x, kind='plain', eps=1e-5):
    c, cls = x.shape[1], BN[x.dim()]
    if kind == 'noaffine': return cls(c, eps=eps, affine=False)
    if kind == 'nostats': return cls(c, eps=eps, track_running_stats=False)
    if kind == 'nomom': return cls(c, eps=eps, momentum=None)
    if kind == 'sync': return nn.SyncBatchNorm(c, eps=eps)
    if kind == 'fbn': return FBN(c)
    if kind == 'lazy': return LAZY[x.dim()](eps=eps)
    if x.dim() != 4 or kind == 'plain': return cls(c, eps=eps)
    return _bn2d(kind, c, eps)


def _bn2d(kind, c, eps):
    if kind == 'frozen':
        from torchvision.ops import FrozenBatchNorm2d
        return FrozenBatchNorm2d(c, eps=eps)
    if kind == 'act':
        from timm.layers import BatchNormAct2d
        return BatchNormAct2d(c, eps=eps)
    return dict(odd=OddBN2d, same=SameBN2d)[kind](c, eps=eps)


def mk_act(x, kind='relu', inplace=False):
    return ACTS[kind](inplace=True) if inplace and kind in ('relu', 'leaky', 'silu') else ACTS[kind]()


def mk_drop(x, p=0.5, kind='', inplace=False):
    cls = getattr(nn, f'{kind}Dropout') if kind in ('Alpha', 'FeatureAlpha') else getattr(nn, f'Dropout{kind}')
    return cls(p, inplace=inplace)


def mk_pool(x, kind='Avg', k=2, s=None, pad=0, ceil=False, count=True, out=1):
    nd = x.dim() - 2
    cls = getattr(nn, f'{kind}Pool{nd}d')
    if kind.startswith('Adaptive'): return cls(out)
    if kind == 'Max': return cls(k, s, pad, ceil_mode=ceil)
    if kind == 'LP': return nn.LPPool2d(2, k)
    return cls(k, s, pad, ceil_mode=ceil, count_include_pad=count)


def mk_up(x, scale=2, mode='nearest', align=None): return nn.Upsample(scale_factor=scale, mode=mode, align_corners=align)


def mk_padm(x, kind='Zero', pad=1, value=0.):
    cls = getattr(nn, f'{kind}Pad{x.dim() - 2}d')
    return cls(pad, value) if kind == 'Constant' else cls(pad)


def mk_shape(x, kind='flatten', arg=1):
    return dict(flatten=lambda: nn.Flatten(arg), unflatten=lambda: nn.Unflatten(1, (-1, arg)), pixel=lambda: nn.PixelShuffle(arg),
                unpixel=lambda: nn.PixelUnshuffle(arg), cshuffle=lambda: nn.ChannelShuffle(arg), identity=nn.Identity,
                fold=lambda: nn.Unfold(arg))[kind]()


def mk_norm(x, kind='layer'): return nn.LayerNorm(x.shape[-1]) if kind == 'layer' else nn.GroupNorm(1, x.shape[1])


def mk_seq(x, steps=()):
    "A plain `nn.Sequential` of module steps `(op, options)`"
    mods = []
    for op, kw in steps:
        mods.append(make(op, x, kw))
        x = mods[-1].double().eval()(x)
    return nn.Sequential(*mods)


def mk_list(x, steps=()): return nn.ModuleList(make(op, x, kw) for op, kw in steps)


def mk_code(x, parts, seq=False, **text):
    "A module that decides, by a class written for it (`programs`)"
    turned = x.transpose(1, 2) if seq else x
    own = {n: make(op, turned if op == 'bn' else x, kw) for n, (op, kw) in parts.items()}
    return programs.program_class(programs.source(own, **text))(**own)


MAKE = dict(conv=mk_conv, convt=mk_convt, linear=mk_linear, bn=mk_bn, act=mk_act, drop=mk_drop, pool=mk_pool, up=mk_up,
            padm=mk_padm, shape=mk_shape, norm=mk_norm, seq=mk_seq, list=mk_list, code=mk_code)
OUR = ('name', 'hook', 'tie', 'alias')


def make(op, x, kw): return MAKE[op](x, **{k: v for k, v in kw.items() if k not in OUR})


# ---------------------------------------------------------------- functions by op: f(net, xs, d, **options), d the axes of the first source (known when built)
def _slice(s): return tuple(slice(*p) if isinstance(p, (tuple, list)) else (... if p == '...' else p) for p in s)


def fn_cut(net, xs, d, how='chunk', n=2, dim=1, sizes=None):
    x = xs[0]
    if how == 'chunk': return x.chunk(n, dim)
    if how == 'split': return torch.split(x, sizes or max(x.shape[dim] // n, 1), dim)
    if how == 'tsplit': return x.tensor_split(n, dim)
    return x.unbind(dim)


def fn_take(net, xs, d, how='slice', s=((None,),), dim=1, start=0, n=1, idx=(0,)):
    x = xs[0]
    if how == 'slice': return x[_slice(s)]
    if how == 'narrow': return x.narrow(dim, start, n)
    if how == 'select': return x.select(dim, start)
    if how == 'index': return x.index_select(dim, torch.tensor(idx))
    if how == 'gather': return x[:, list(idx)]
    return x[:, torch.arange(x.shape[1]) % 2 == 0] if how == 'mask' else x.take_along_dim(torch.argsort(x, dim), dim)


def fn_perm(net, xs, d, how='permute', dims=None, a=1, b=-1):
    x = xs[0]
    if how == 'permute': return x.permute(dims)
    if how == 'T': return x.transpose(a, b)
    if how == 'swap': return torch.swapaxes(x, a, b)
    if how == 'move': return x.movedim(a, b).contiguous()
    if how == 'einsum': return torch.einsum('abcdefg'[:d] + '->' + ''.join('abcdefg'[k] for k in dims), x)
    if how == 'unfold': return x.unfold(-1, 2, 1).flatten(-2)
    if how == 'strided': return torch.as_strided(x.contiguous(), x.shape, x.contiguous().stride())
    return x.flip(a) if how == 'flip' else x.roll(1, a) if how == 'roll' else x.rot90(1, (-2, -1))


def fn_shape(net, xs, d, how='flat', g=2, dim=-1):
    x = xs[0]
    n, c, s = x.shape[0], x.shape[1], [x.shape[k] for k in range(2, d)]
    if how == 'flat': return x.flatten(1)
    if how == 'tflat': return torch.flatten(x, 1)
    if how == 'flat2': return x.flatten(2)
    if how == 'view': return x.view(n, -1)
    if how == 'reshape': return x.reshape(n, -1)
    if how == 'shuffle': return x.view(n, g, c // g, *s).transpose(1, 2).reshape(n, c, *s)
    if how == 'regroup': return x.reshape(n, c // g, -1)
    if how == 'batch': return x.reshape(n * c, 1, *s)
    if how == 'unflat': return x.unflatten(1, (g, c // g))
    if how == 'image': return x.reshape(n, -1, g, g)
    if how == 'as': return x.reshape_as(xs[1])
    if how == 'viewas': return x.view_as(xs[1])
    return x.unsqueeze(dim) if how == 'unsq' else x.squeeze(dim)


def fn_copy(net, xs, d, how='expand', g=2, dim=1):
    x = xs[0]
    if how == 'repeat': return x.repeat(1, g, *[1] * (d - 2))
    if how == 'inter': return x.repeat_interleave(g, dim)
    if how == 'expand': return x.unsqueeze(2).expand(x.shape[0], x.shape[1], g, *[x.shape[k] for k in range(2, d)]).flatten(1, 2)
    if how == 'expand_as': return x.mean(tuple(range(2, d)), keepdim=True).expand_as(x)
    return torch.tile(x, (1, g) + (1,) * (d - 2))


def fn_none(net, xs, d, how='clone'):
    x = xs[0]
    return dict(clone=lambda: x.clone(), contig=lambda: x.contiguous(), detach=lambda: x.detach(), data=lambda: x.data,
                cast=lambda: x.to(torch.float64), double=lambda: x.double(), as_=lambda: x.type_as(xs[-1]), pos=lambda: +x,
                fdrop=lambda: F.dropout(x, 0.5, training=net.training), drop0=lambda: F.dropout(x, 0., True),
                last=lambda: x.to(memory_format=torch.channels_last) if d == 4 else x.contiguous(),
                alias=lambda: x.view(x.shape), numpy=lambda: torch.from_numpy(x.detach().numpy().copy()),
                list_=lambda: torch.tensor(x.tolist(), dtype=x.dtype))[how]()


def fn_mean(net, xs, d, how='mean', keep=False, dims=None):
    x = xs[0]
    d = dims or tuple(range(2, d))
    if how == 'mean': return x.mean(d, keepdim=keep)
    if how == 'tmean': return torch.mean(x, d, keep)
    if how == 'sum': return x.sum(d, keepdim=keep)
    return x.amax(d, keepdim=keep)


def fn_pool(net, xs, d, how='avg', k=2, pad=0, out=1, count=True):
    x, nd = xs[0], d - 2
    if how == 'aavg': return getattr(F, f'adaptive_avg_pool{nd}d')(x, out)
    if how == 'amax': return getattr(F, f'adaptive_max_pool{nd}d')(x, out)
    if how == 'max': return getattr(F, f'max_pool{nd}d')(x, k, padding=pad)
    return getattr(F, f'avg_pool{nd}d')(x, k, padding=pad, count_include_pad=count)


def fn_fpad(net, xs, d, mode='constant', pad=1, value=0., both=True):
    p = [pad, pad if both else 0] * (d - 2)
    return F.pad(xs[0], p, mode, value) if mode == 'constant' else F.pad(xs[0], p, mode)


def fn_interp(net, xs, d, mode='nearest', scale=2, align=None, size=None):
    return F.interpolate(xs[0], size, None if size else scale, mode, align)


def fn_math(net, xs, d, how='add', c=0.5):
    a, b = xs[0], xs[-1]
    return dict(add=lambda: a + b, sub=lambda: a - b, mul=lambda: a * b, scale=lambda: a * c, shift=lambda: a + c, neg=lambda: -a,
                div=lambda: a / c, max=lambda: torch.maximum(a, b), gate=lambda: a * b.sigmoid(), relu=lambda: F.relu(a),
                clamp=lambda: a.clamp(-1, 1), abs=lambda: a.abs(), softmax=lambda: a.softmax(1), where=lambda: torch.where(a > 0, a, b),
                lerp=lambda: torch.lerp(a, b, c), addcmul=lambda: torch.addcmul(a, a, b), norm=lambda: F.normalize(a, dim=1),
                self=lambda: a + a, square=lambda: a * a, cumsum=lambda: a.cumsum(1), att=lambda: a * a.mean((2, 3), keepdim=True).sigmoid(),
                matmul=lambda: torch.matmul(a.flatten(1, -2), a.flatten(1, -2).transpose(1, 2)), std=lambda: a - a.mean(1, keepdim=True),
                rand=lambda: F.dropout(a, 0.5, True), noise=lambda: a + torch.rand_like(a))[how]()


def fn_inplace(net, xs, d, how='relu', c=0.5, s=((None,),)):
    "Writes into its first source; the value that results is the same tensor"
    a, b = xs[0], xs[-1]
    if how == 'relu': F.relu_(a)
    elif how == 'frelu': F.relu(a, inplace=True)
    elif how == 'add': a.add_(c)
    elif how == 'iadd': a += b
    elif how == 'imul': a *= c
    elif how == 'set': a[_slice(s)] = c
    elif how == 'setv': a[_slice(s)] = b[_slice(s)]
    elif how == 'copy': a.copy_(b)
    elif how == 'data': a.data.mul_(c)
    elif how == 'detach': a.detach().add_(c)
    elif how == 'out': torch.add(a, b, out=a)
    elif how == 'zero': a[:, 0].zero_()
    elif how == 'mask': a.masked_fill_(a > 1, c)
    elif how == 'swap': a.transpose_(-1, -2)
    return a


def fn_assemble(net, xs, d):
    "A concatenation by hand: an empty tensor, filled part by part"
    a, b = xs[0], xs[-1]
    out = a.new_zeros(a.shape[0], a.shape[1] + b.shape[1], *[a.shape[k] for k in range(2, d)])
    out[:, :a.shape[1]] = a
    out[:, a.shape[1]:] = b
    return out


def fn_fconv(net, xs, d, name, nd=2):
    "The module's own parameters in a functional call"
    m = net.get(name)
    return getattr(F, f'conv{d - 2}d')(xs[0], m.weight, m.bias)


def fn_wread(net, xs, d, name, attr='weight'):
    "A second reader of a parameter or buffer"
    t = getattr(net.get(name), attr)
    return xs[0] if t is None else xs[0] * (1 + t.mean())


def fn_fbn(net, xs, d, name):
    m = net.get(name)
    return F.batch_norm(xs[0], m.running_mean, m.running_var, m.weight, m.bias, False, 0., m.eps)


def fn_unstash(net, xs, d, name):
    t = net.store.get(name)
    return xs[0] if t is None or t.shape != xs[0].shape else xs[0] + t


def fn_branch(net, xs, d, thr=0., how='relu'):
    "Python that branches on a value: the sources are read on one side only"
    x = xs[0]
    if xs[-1].sum() > thr: return x * 0.5
    return F.relu(x) if how == 'relu' else x


def fn_route(net, xs, d, names, each=None, thr=0.):
    "One of two modules, chosen by a value without an `if`"
    return net.get(names[int(xs[-1].sum() > thr)])(xs[0])


def fn_loop(net, xs, d, names=()):
    "The same modules in a loop of as many turns as the batch's second dimension says"
    x = xs[0]
    for n in names: x = net.get(n)(x)
    return x


FUN = dict(cut=fn_cut, take=fn_take, perm=fn_perm, fshape=fn_shape, copy=fn_copy, none=fn_none, mean=fn_mean, fpool=fn_pool,
           fpad=fn_fpad, interp=fn_interp, math=fn_math, inplace=fn_inplace, assemble=fn_assemble, fconv=fn_fconv, wread=fn_wread, fbn=fn_fbn,
           unstash=fn_unstash, branch=fn_branch, route=fn_route, loop=fn_loop,
           cat=lambda net, xs, d, dim=1: torch.cat(xs, dim), stack=lambda net, xs, d, dim=1: torch.stack(xs, dim),
           pick=lambda net, xs, d, i=0: xs[0][i % d])


# ---------------------------------------------------------------- the net
class Box(nn.Module): "A container without a forward"


class Net(nn.Module):
    "Runs its steps; a value is let go after its last use, as in hand-written code"
    def __init__(self, spec):
        super().__init__()
        self.steps, self.outs, self.struct = spec['steps'], spec['out'], spec.get('struct', 'single')
        self.store, self.axes = {}, {}
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
        if op in FUN: return FUN[op](self, xs, self.axes[i], **kw)
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
    if hasattr(m, 'initialize_parameters') and isinstance(m, nn.modules.lazy.LazyModuleMixin): m(xs[0])
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
    x = vals[src[0]]
    net.axes[i] = x.dim() if isinstance(x, torch.Tensor) else len(x)
    if op not in FUN and not has(net, kw['name']): _create(net, op, [vals[s] for s in src], kw)
    if 'each' in kw:
        for n in kw['names']:
            if not has(net, n): _create(net, kw['each'][0], [x], dict(kw['each'][1], name=n))
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
        return local(frame, event, arg) if frame.f_code.co_filename.startswith('<' + programs.FILE) else None
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


# ---------------------------------------------------------------- inventing nets
class Gen:
    "Adds steps that work, one by one, on live values"
    def __init__(self, seed, inputs=None, depth=0, xs=None):
        self.rng, self.depth, self.n = random.Random(seed), depth, 0
        self.spec = dict(seed=seed % 100000, inputs=inputs or self.some_inputs(), steps=[], out=[])
        self.net = net_class(self.spec)(self.spec)
        self.vals = dict(enumerate(xs or inputs_of(self.spec)))
        self.names = {}

    # -- draws
    def p(self, prob): return self.rng.random() < prob
    def one(self, *xs): return self.rng.choice(xs)

    def some_inputs(self):
        r = self.rng
        n = r.choice([1, 2, 2, 3, 4])
        self.batch = n
        c = r.choice([2, 3, 4, 6, 8])
        nd = r.choices([0, 1, 2, 3], [2, 2, 6, 1])[0]
        s = r.choice([4, 5, 6, 8])
        shape = (n, c) + (s,) * nd if nd < 3 else (n, c, 4, 4, 4)
        shapes = [shape]
        if r.random() < 0.25: shapes.append((n, r.choice([2, 4, 6])) + shape[2:])
        if r.random() < 0.08: shapes.append((n, 4))
        return shapes

    def value(self, pred=lambda t: True, late=0.7):
        "A live tensor, mostly one of the last"
        ok = [i for i, t in self.vals.items() if isinstance(t, torch.Tensor) and pred(t)]
        if not ok: return None
        return self.rng.choice(ok[-3:] if self.p(late) else ok)

    def img(self, late=0.7): return self.value(lambda t: t.dim() > 2 and t.shape[1] > 0, late)

    def like(self, i):
        "Another value of the same shape, or None"
        s = self.vals[i].shape
        ok = [j for j, t in self.vals.items() if isinstance(t, torch.Tensor) and j != i and t.shape == s]
        return self.rng.choice(ok) if ok else None

    # -- adding steps
    def name(self, stem):
        self.n += 1
        return self.one('', '', '', 'enc.', 'enc.', 'dec.', 'dec.inner.') + f'{stem}{self.n}'

    def emit(self, op, *src, **kw):
        "The new value's number, or None if the step does not work on these values"
        if any(s is None for s in src): return None
        if op not in FUN and 'name' not in kw: kw['name'] = self.name(op)
        if op not in FUN and not hasattr(self, 'quiet') and self.p(0.012):
            kw['hook'] = self.one('read', 'scale', 'shift', 'inplace', 'stash', 'pre_read', 'pre_scale')
        before = {i: self.vals[i].clone() for i in src if isinstance(self.vals[i], torch.Tensor)} if op == 'inplace' else {}
        self.net.steps.append((op, tuple(src), kw))
        k = self.net.n_in + len(self.net.steps) - 1
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]): self.vals[k] = _advance(self.net, len(self.net.steps) - 1, self.vals)
            self.fits(self.vals[k])
        except Exception:
            self.net.steps.pop()
            self.vals.pop(k, None)
            for i, t in before.items(): self.vals[i] = t
            return None
        return k

    def fits(self, t):
        if isinstance(t, (tuple, list)): return
        if t.numel() > 20000 or t.numel() == 0 or not torch.isfinite(t).all() or t.abs().max() > 1e4: raise Invalid('too large')

    # -- single ops with random options
    def conv(self, i, **kw):
        if i is None or self.vals[i].dim() < 2: return None
        c = self.vals[i].shape[1]
        k = self.one(1, 1, 3, 3, 2)
        kw = dict(out=self.one(2, 4, 6, 8, c), k=k, bias=self.p(0.5)) | kw
        if kw['k'] == 3 and self.p(0.6): kw.setdefault('pad', 1)
        if kw.get('pad') and self.p(0.4): kw['mode'] = self.one('reflect', 'replicate', 'circular')
        if self.p(0.05): kw['pad'] = 'same'
        if self.p(0.2): kw['groups'] = self.one('dw', 2)
        if self.p(0.1): kw['stride'] = 2
        if self.p(0.05): kw['dil'] = 2
        if self.p(0.04): kw['wrap'] = self.one('wn', 'sn', 'twice', 'tbias')
        elif self.p(0.05): kw['cls'] = self.one('fconv', 'nobias', 'std', 'gain', 'pad')
        return self.emit('conv', i, **kw) or self.emit('conv', i, out=4, k=1)

    def convt(self, i):
        kw = dict(out=self.one(2, 4, 6), k=self.one(1, 2, 3), bias=self.p(0.5), stride=self.one(1, 2))
        if self.p(0.3): kw['groups'] = self.one('dw', 2)
        if self.p(0.3): kw['pad'] = 1
        return self.emit('convt', i, **kw)

    def linear(self, i): return self.emit('linear', i, out=self.one(2, 4, 6, 8), bias=self.p(0.5), **({'wrap': 'wn'} if self.p(0.03) else {}))

    def layer(self, i):
        "A convolution or linear layer that fits"
        if i is None or self.vals[i].dim() < 2: return None
        if self.vals[i].dim() == 2 or self.p(0.12): return self.linear(i)
        return self.convt(i) if self.p(0.15) else self.conv(i)

    def bn(self, i, **kw):
        if self.p(0.1): kw.setdefault('kind', self.one('noaffine', 'nostats', 'nomom', 'sync', 'frozen', 'act', 'odd', 'same', 'fbn', 'lazy'))
        if self.p(0.1): kw['eps'] = self.one(1e-3, 0.1)
        return self.emit('bn', i, **kw)

    def act(self, i):
        return self.emit('act', i, kind=self.one('relu', 'relu', 'relu', 'gelu', 'sigmoid', 'leaky', 'silu'), inplace=self.p(0.4))

    def carrier(self, i):
        "Something an affine map might travel through, or might not"
        if i is None: return None
        return getattr(self, 'c_' + self.one('none', 'none', 'drop', 'pool', 'pool', 'up', 'perm', 'take', 'pad', 'shape', 'fshape', 'copy'))(i)

    def c_none(self, i):
        if self.p(0.3): return self.emit('shape', i, kind='identity')
        how = self.one('clone', 'contig', 'detach', 'data', 'cast', 'double', 'as_', 'pos', 'fdrop', 'drop0', 'last', 'alias', 'numpy')
        return self.emit('none', i, how=how)

    def c_drop(self, i): return self.emit('drop', i, kind=self.one('', '', '2d', '1d', 'Alpha', 'FeatureAlpha'), inplace=self.p(0.2))

    def c_pool(self, i):
        if self.p(0.05): return self.emit('mean', i, dims=(0, 1), keep=True)
        if self.p(0.35): return self.emit('mean', i, how=self.one('mean', 'tmean', 'sum', 'amax'), keep=self.p(0.5))
        if self.p(0.4): return self.emit('fpool', i, how=self.one('avg', 'max', 'aavg', 'amax'), k=2, pad=self.one(0, 0, 1), out=self.one(1, 2), count=self.p(0.5))
        return self.emit('pool', i, kind=self.one('Avg', 'Max', 'AdaptiveAvg', 'AdaptiveMax', 'LP'), k=self.one(2, 3), pad=self.one(0, 0, 1),
                         ceil=self.p(0.3), count=self.p(0.5), out=self.one(1, 2), **({'s': 2} if self.p(0.3) else {}))

    def c_up(self, i):
        mode, align = self.one(('nearest', None), ('bilinear', False), ('bilinear', True), ('linear', False), ('bicubic', False), ('nearest-exact', None))
        if self.p(0.3): return self.emit('interp', i, mode=mode, align=align)
        return self.emit('up', i, mode=mode, align=align)

    def c_perm(self, i):
        t, how = self.vals[i], self.one('permute', 'permute', 'T', 'T', 'swap', 'move', 'flip', 'roll', 'rot90', 'einsum', 'unfold', 'strided')
        first = 0 if self.p(0.15) else 1
        dims = list(range(first, t.dim()))
        self.rng.shuffle(dims)
        a, b = self.rng.randrange(first, t.dim()), self.rng.randrange(first, t.dim())
        return self.emit('perm', i, how=how, dims=[0] * first + dims, a=a, b=b)

    def c_take(self, i):
        t = self.vals[i]
        d = self.rng.randrange(1, t.dim())
        how = self.one('slice', 'slice', 'narrow', 'select', 'index', 'gather', 'mask')
        s = ((None,),) * d + (self.one((0, 2), (1, None), (None, None, 2), (0, -1)),)
        return self.emit('take', i, how=how, s=s, dim=d, start=self.one(0, 1), n=self.one(1, 2), idx=self.one((0,), (1, 0), (0, 0, 1)))

    def c_pad(self, i):
        if self.p(0.5): return self.emit('fpad', i, mode=self.one('constant', 'constant', 'reflect', 'replicate', 'circular'), value=self.one(0., 0., 1.), both=self.p(0.7))
        return self.emit('padm', i, kind=self.one('Zero', 'Reflection', 'Replication', 'Circular', 'Constant'), pad=1, value=0.3)

    def c_shape(self, i):
        return self.emit('shape', i, kind=self.one('flatten', 'flatten', 'pixel', 'unpixel', 'cshuffle', 'unflatten', 'fold'), arg=self.one(1, 2, 2))

    def c_fshape(self, i):
        if self.p(0.2): return self.emit('fshape', i, self.value(), how=self.one('as', 'viewas'))
        how = self.one('flat', 'tflat', 'flat2', 'view', 'reshape', 'shuffle', 'shuffle', 'regroup', 'batch', 'unflat', 'image', 'unsq', 'sq')
        return self.emit('fshape', i, how=how, g=self.one(2, 2, 3, 4), dim=self.one(-1, 1, 2))

    def c_copy(self, i): return self.emit('copy', i, how=self.one('expand', 'repeat', 'inter', 'tile', 'expand_as'), g=2, dim=self.one(1, 2))

    def carriers(self, i, most=2):
        for _ in range(self.rng.randrange(most + 1)): i = self.carrier(i) or i
        return i

    def math(self, i):
        if i is None: return None
        how = self.one('add', 'sub', 'mul', 'scale', 'shift', 'neg', 'div', 'max', 'gate', 'relu', 'clamp', 'abs', 'softmax', 'where', 'lerp', 'addcmul',
                       'norm', 'self', 'square', 'cumsum', 'att', 'matmul', 'std', 'rand', 'noise')
        j = self.like(i)
        return self.emit('math', i, *([j] if j is not None else []), how=how)

    # -- patterns
    def m_layer_bn(self):
        i = self.carriers(self.layer(self.value()), 1)
        i = self.bn(i)
        return self.act(i) if self.p(0.6) else i

    def m_bn_layer(self):
        i = self.value()
        if self.p(0.6): i = self.act(i) or i
        return self.layer(self.carriers(self.bn(i), 2))

    def m_far(self): return self.bn(self.carriers(self.layer(self.value()), 3))

    def m_bn_bn(self): return self.bn(self.carriers(self.bn(self.value()), 1))

    def m_head(self):
        i = self.img()
        if self.p(0.6):
            a, b = self.emit('pool', i, kind='AdaptiveAvg', out=1), self.emit('pool', i, kind='AdaptiveMax', out=1)
            i = self.emit('cat', b, a, dim=1)
        else: i = self.c_pool(i) if i is not None else None
        i = self.bn(self.emit('fshape', i, how='flat'))
        if self.p(0.5): i = self.emit('drop', i)
        i = self.emit('linear', i, out=6)
        return self.emit('linear', self.bn(self.act(i)), out=3)

    def m_residual(self):
        i = self.img()
        if i is None: return None
        c = self.vals[i].shape[1]
        j = self.act(self.bn(self.conv(i, out=c, k=1)))
        j = self.bn(self.emit('conv', j, out=c, k=1, bias=False))
        return self.emit('inplace', j, i, how='iadd') if self.p(0.3) else self.emit('math', j, i, how='add')

    def m_cat(self):
        i, n = self.img(), self.one(2, 2, 3)
        parts = [self.branchlet(i) for _ in range(n)]
        if self.p(0.08): return self.layer(self.bn(self.emit('assemble', parts[0], parts[-1])))
        k = self.emit('cat', *parts, dim=self.one(1, 1, 1, 0, -1)) if self.p(0.9) else self.emit('stack', *parts, dim=self.one(1, 2, -1))
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
        how = self.one('chunk', 'split', 'tsplit', 'unbind')
        t = self.emit('cut', i, how=how, n=2, dim=self.one(1, 1, 1, -1, 2))
        if t is None: return None
        a, b = self.emit('pick', t, i=0), self.emit('pick', t, i=1)
        if self.p(0.3): a = self.emit('inplace', a, how=self.one('add', 'imul', 'relu')) or a
        a = (self.bn(a) if self.p(0.5) else self.layer(a)) or a
        b = (self.bn(b) if self.p(0.3) else b) or b
        k = self.emit('cat', *self.one([a, b], [b, a]), dim=1) or self.emit('math', a, b, how=self.one('add', 'mul', 'gate'))
        return self.bn(k) if self.p(0.4) else k

    def m_shared(self):
        "The same layer, or layer and BatchNorm, called twice"
        i = self.value()
        if i is None: return None
        j = self.like(i)
        j = i if j is None else j
        n1, n2 = self.name('sh'), self.name('shbn')
        both, op = self.p(0.6), ('conv' if self.vals[i].dim() > 2 else 'linear')
        kw = dict(out=4, k=1) if op == 'conv' else dict(out=4)
        a = self.emit('bn', self.emit(op, i, name=n1, **kw), name=n2)
        b = self.emit('bn', self.emit(op, j, name=n1 if both or self.p(0.5) else self.name('own'), **kw), name=n2 if both or self.p(0.5) else self.name('bn'))
        return self.emit(self.one('math', 'cat'), a, b)

    def m_shared_bn(self):
        i, name = self.value(), self.name('shbn')
        a = self.emit('bn', i, name=name)
        return self.emit('bn', self.layer(self.act(a)) if self.p(0.5) else self.math(a), name=name)

    def m_two_readers(self):
        i = self.layer(self.value())
        a = self.bn(i)
        b = self.bn(i) if self.p(0.4) else self.math(i) if self.p(0.5) else self.layer(i)
        return self.emit(self.one('math', 'cat'), a, b)

    def m_fan_out(self):
        "One BatchNorm, several readers"
        i = self.bn(self.act(self.value()))
        parts = [self.layer(self.carriers(i, 1)) for _ in range(self.one(2, 3))]
        if self.p(0.2): parts.append(i)
        return self.emit('cat', *parts, dim=1) or self.emit('math', *parts[:2])

    def m_unet(self):
        i = self.img()
        d = self.act(self.bn(self.conv(self.emit('fpool', i, how='max', k=2))))
        u = self.emit('up', d, scale=2) if self.p(0.5) else self.emit('convt', d, out=4, k=2, stride=2)
        skip = self.bn(i) if self.p(0.6) else i
        return self.layer(self.emit('cat', u, skip, dim=1))

    def m_se(self):
        i = self.bn(self.conv(self.img()))
        g = self.emit('pool', i, kind='AdaptiveAvg', out=1)
        if g is None: return None
        g = self.emit('conv', self.act(self.emit('conv', g, out=2, k=1)), out=self.vals[i].shape[1], k=1)
        return self.emit('math', i, g, how='gate')

    def m_repvgg(self):
        i = self.img()
        if i is None: return None
        c = self.vals[i].shape[1]
        parts = [self.bn(self.emit('conv', i, out=c, k=3, pad=1, bias=False)), self.bn(self.emit('conv', i, out=c, k=1, bias=False)), self.bn(i)]
        k = self.emit('math', parts[0], parts[1], how='add')
        return self.act(self.emit('math', k, parts[2], how='add'))

    def m_seq(self):
        i = self.img()
        nd = self.one('conv-bn', 'bn-conv', 'conv-relu-bn', 'conv-drop-bn', 'pool-bn-conv', 'bn-bn', 'conv-bn-conv-bn')
        one = dict(conv=('conv', dict(out=4, k=self.one(1, 3), bias=self.p(0.5))), bn=('bn', {}), relu=('act', dict(kind='relu', inplace=True)),
                   drop=('drop', {}), pool=('pool', dict(kind='Avg', k=2)))
        return self.emit('seq', i, steps=[copy.deepcopy(one[w]) for w in nd.split('-')])

    def m_sub(self):
        if self.depth > 1: return None
        i, j = self.value(), self.value(late=0.3)
        if i is None: return None
        src = [i] if self.p(0.6) or j is None else [i, j]
        xs = [self.vals[s].clone() for s in src]
        g = Gen(self.rng.randrange(10**6), [tuple(x.shape) for x in xs], self.depth + 1, xs)
        spec = g.grow(self.one(1, 2, 3), 1)
        if spec is None: return None
        name = self.name('blk')
        k = self.emit('sub', *src, name=name, spec=spec)
        if k is None or self.p(0.7): return k
        return self.emit('math', k, self.emit('sub', *[self.like(s) or s for s in src], name=name, spec=spec), how='add')

    def m_stash(self):
        i = self.value()
        if i is None: return None
        op, name = self.one('conv', 'bn', 'act'), self.name('st')
        kw = dict(out=4, k=1) if op == 'conv' else {}
        k = self.emit(op, i, name=name, hook='stash', **kw)
        if k is None: return None
        j = self.carriers(self.bn(k) if op != 'bn' else self.act(k), 1)
        return self.emit('unstash', j, name=name)

    def m_tie(self):
        i, op, n1 = self.value(), self.one('conv', 'bn', 'linear'), self.name('ti')
        kw = dict(conv=dict(out=4, k=1), linear=dict(out=4), bn={})[op]
        a = self.emit(op, i, name=n1, **kw)
        b = self.emit(op, self.like(i) or i, name=self.name('tied'), tie=(self.one('weight', 'weight', 'bias'), n1), **kw)
        a, b = (self.bn(a) if self.p(0.8) else a), (self.bn(b) if self.p(0.6) else b)
        return self.emit(self.one('math', 'cat'), a, b)

    def m_wread(self):
        "A parameter or buffer with a second reader, or used by hand"
        i, op = self.value(), self.one('conv', 'bn')
        name = self.name('wr')
        a = self.emit(op, i, name=name, **(dict(out=4, k=1) if op == 'conv' else {}))
        b = self.bn(a) if op == 'conv' else self.layer(a)
        if self.p(0.3): return self.emit('fconv' if op == 'conv' else 'fbn', i, name=name)
        return self.emit('wread', b, name=name, attr=self.one('weight', 'bias') if op == 'conv' else self.one('weight', 'bias', 'running_mean', 'running_var'))

    def m_loop(self):
        i, a, b = self.value(), self.name('lp'), self.name('lpbn')
        if i is None: return None
        c = self.vals[i].shape[1]
        k = self.emit('bn', self.emit('conv', i, name=a, out=c, k=1), name=b)
        return self.emit('loop', k, names=[a, b]) if self.p(0.6) else self.emit('loop', k, names=[b])

    def m_branch(self):
        i = self.bn(self.layer(self.value()))
        return self.layer(self.emit('branch', i, self.one(0, i), thr=self.one(-1e9, -1e9, 1e9, 1e9, 0.), how=self.one('relu', 'same')))

    def m_route(self):
        "Two layers of one shape, one of them taken"
        i, a, b = self.value(), self.name('ra'), self.name('rb')
        if i is None: return None
        op, kw = self.one(('conv', dict(out=4, k=1)), ('conv', dict(out=self.vals[i].shape[1], k=3, pad=1)), ('bn', {}), ('linear', dict(out=4)))
        if self.p(0.5): i = self.bn(i)
        k = self.emit('route', i, 0, names=[a, b], each=(op, kw), thr=self.one(0., 0., -1e9))
        return self.bn(self.act(k) if self.p(0.3) else k) if self.p(0.6) else self.layer(k)

    def m_sum(self):
        "A sum of terms of one shape: convolutions of the same value, the value itself, BatchNorms of it, some twice"
        i = self.value()
        if i is None: return None
        c = self.vals[i].shape[1]
        k = self.summand(i, c)
        for _ in range(self.one(1, 2, 3)):
            j = self.summand(i, c) if self.p(0.8) else k
            k = self.emit('inplace', k, j, how='iadd') if self.p(0.1) else self.emit('math', k, j, how=self.one('add', 'add', 'add', 'sub'))
        return self.bn(k) if self.p(0.5) else self.act(k)

    def summand(self, i, c):
        if self.p(0.15): return i
        if self.p(0.3): return self.bn(i)
        k = self.emit('linear', i, out=self.vals[i].shape[-1]) if self.vals[i].dim() == 2 or self.p(0.1) else \
            self.emit('conv', i, out=c, **self.one(dict(k=3, pad=1), dict(k=1), dict(k=3, pad=1, groups='dw'), dict(k=3, pad=1, mode='reflect'), dict(k=3, dil=2, pad=2)), bias=self.p(0.5))
        return self.bn(k) if self.p(0.4) else k

    def m_inplace(self):
        i = self.value() if self.p(0.5) else self.layer(self.value())
        if i is None: return None
        if self.p(0.25): view = self.c_take(i)
        else: view = i
        if view is None: return None
        s = ((None,), self.one((0, 1), (1, None), (None,)))
        how = self.one('relu', 'frelu', 'add', 'iadd', 'imul', 'set', 'setv', 'copy', 'data', 'detach', 'out', 'zero', 'mask')
        j = self.like(view)
        self.emit('inplace', view, *([j] if j is not None and self.p(0.6) else []), how=how, s=s)
        return self.bn(i) if self.p(0.6) else self.layer(i)

    def m_seq3d(self):
        "Linear on the last axis, BatchNorm on the second: they differ unless transposed"
        i = self.value(lambda t: t.dim() == 3) or self.emit('fshape', self.img(), how='flat2')
        k = self.linear(i)
        if self.p(0.5): k = self.emit('perm', k, how='T', a=1, b=2)
        return self.bn(k)

    def m_alias(self):
        "A module registered under two names"
        a, b = self.name('al'), self.name('albn')
        k = self.emit('conv', self.img(), name=a, out=4, k=1, **(dict(alias='also.' + a) if self.p(0.5) else {}))
        return self.layer(self.emit('bn', k, name=b, **(dict(alias='again.' + b) if self.p(0.6) else {})))

    def m_math(self): return self.math(self.value())
    def m_carrier(self): return self.carrier(self.value())
    def m_act(self): return self.act(self.value())

    MOTIFS = dict(layer_bn=8, bn_layer=8, far=8, bn_bn=2, head=4, residual=4, cat=6, chunk=4, shared=2, shared_bn=1, two_readers=2, fan_out=3, unet=3,
                  se=2, repvgg=2, seq=3, sub=3, stash=1, tie=1, wread=1, loop=1, branch=1, inplace=3, seq3d=2, math=3, carrier=4, act=2, alias=1, route=1, sum=4)

    def grow(self, motifs, outs=None):
        "Some patterns, then the outputs; None if nothing came of it"
        for _ in range(motifs):
            m = self.rng.choices(list(self.MOTIFS), list(self.MOTIFS.values()))[0]
            with suppress(IndexError, AttributeError, ValueError): getattr(self, 'm_' + m)()  # the value at hand has too few axes, or is a list
        steps = self.net.steps
        if not steps: return None
        used = {s for _, src, _ in steps for s in src}
        tensors = [i for i in range(self.net.n_in, self.net.n_in + len(steps)) if isinstance(self.vals[i], torch.Tensor)]
        ends = [i for i in tensors if i not in used]
        if not ends: return None
        out = ends[-outs:] if outs else [self.ending(i) for i in ends[-6:]]
        if not outs and self.p(0.15): out.append(self.rng.choice(tensors))
        self.spec.update(out=out)
        return self.finish(outs)

    def ending(self, i):
        "An output made of value `i`: mostly not a BatchNorm's own"
        if self.p(0.25): return i
        j = self.layer(i) if self.p(0.3) else self.emit('math', i, how=self.one('relu', 'relu', 'square', 'softmax'))
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
        c = programs.Coder(self.rng, self.vals[i].shape, seq=self.vals[i].dim() == 3 and self.p(0.3))
        pair = self.p(0.1)
        k = self.emit('code', i, **programs.tidy(c.program(self.one(1, 2, 3, 4), pair=pair)))
        if pair: k = self.emit('pick', k, i=0)
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
    prog, others = programs.bare(rng, shape, seq)
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
        if op == 'seq':
            for k in range(len(kw['steps'])): yield _with(spec, i, (op, src, dict(kw, steps=kw['steps'][:k] + kw['steps'][k + 1:])))
        if op == 'code':
            for s in programs.simpler_program(kw): yield _with(spec, i, (op, src, s))
        for k in kw:
            if k not in ('name', 'spec', 'steps', 'how', 'tie', 'seq', *programs.TEXT):
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
