"""One trap for each mechanism: a small model, an example batch, what must fold and what must stay with which kind of
reason. `test_traps` folds each one and compares it in float64 on the example and on `others`.

A trap is a chain of layers (`chain`), a forward function with its layers (`@forward`), a class (`@model`), or a row of
a table where one pattern has many forms (`carrier`, `WRITES`, `ASKS`, `look`). `pair` names two layers: folded into one
another they give the same on the example, and something else on one of the others. So the trap is shown to be one."""
import collections
import copy
import random
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from models import Fn, bits, other_batch, real
from nets import FBN, FConv, OddBN2d, SameBN2d, StdConv

torch.manual_seed(0)  # the layers of many traps are made while this file is read


# ---------------------------------------------------------------- how a trap is told
@dataclass
class Trap:
    "A model, its example, and what is expected of a fold"
    name: str
    build: object  # makes the model
    folds: tuple = ()
    keeps: dict = field(default_factory=dict)  # BatchNorm layer -> kind of the reason why it stays
    pair: tuple = ()
    xb: object = ()  # the example: a tuple of positional inputs, or a dict of keyword inputs
    others: tuple = ()  # further inputs, in the same forms
    options: dict = field(default_factory=dict)  # of `plan` and `fold`
    state: object = None  # what else must be as before: state(model)
    fix: object = None  # the last touch to its numbers: fix(model)
    force: bool = False  # unfold by force: its own forward writes weights

    def made(self):
        "The model in float64 with real statistics: each time the same"
        torch.manual_seed(0)
        model = real(self.build(), zero=0.)
        if self.fix: self.fix(model)
        return model

    def given(self):
        "Positional and keyword arguments of `plan` and `fold`"
        return ((), {**self.xb, **self.options}) if isinstance(self.xb, dict) else (self.xb, self.options)


TRAPS = []


def add(name, build, folds='', keeps=None, pair='', xb=None, others=None, **more):
    "Add a trap; the example is an image batch if none is given, the others are spiked, one item, five items"
    xb = (LOW,) if xb is None else xb
    others = others_of(xb) if others is None else [o if isinstance(o, (tuple, dict)) else (o,) for o in others]
    TRAPS.append(Trap(name, build, tuple(folds.split()), keeps or {}, tuple(pair.split()), xb, tuple(others), **more))


OPTIONS = 'keeps', 'pair', 'xb', 'others', 'options', 'state', 'fix', 'force'


def forward(folds='', **kw):
    "A trap out of the decorated forward; keywords that are no options are its layers"
    layers = {k: kw.pop(k) for k in [*kw] if k not in OPTIONS}
    def take(f):
        add(f.__name__, lambda: copy.deepcopy(Fn(f, **layers)), folds, **kw)
        return f
    return take


def chain(name, folds='', **kw):
    "A trap whose layers are called one after the other"
    layers = {k: kw.pop(k) for k in [*kw] if k not in OPTIONS}
    add(name, lambda: copy.deepcopy(seq(**layers)), folds, **kw)


def model(folds='', **kw):
    "A trap out of the decorated class or function, which makes the model"
    def take(build):
        add(build.__name__, build, folds, **kw)
        return build
    return take


# ---------------------------------------------------------------- inputs and layers
def tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image(n=2, h=8, w=8, c=3): return tensor(n, c, h, w) * 0.8 - 1


def spiked(x):
    "One large number in `x`: what no negated or repeated copy of the example would show"
    x = x.clone()
    x.view(-1)[0] = 99.
    return x


def others_of(xb):
    "Other batches like `xb`"
    if isinstance(xb, dict): return [dict(zip(xb, o)) for o in others_of(tuple(xb.values()))]
    if not all(isinstance(x, torch.Tensor) for x in xb): return [tuple(other_batch(xb, 5))]
    hot = tuple(spiked(x) if x.is_floating_point() else x for x in xb)
    return [hot, tuple(x[:1] for x in xb), tuple(other_batch(xb, 5))]


LOW, HOT = image(), spiked(image())
SIZES = [image(1, h, w) for h, w in ((8, 8), (4, 4), (7, 9), (16, 16), (8, 13))]
VEC, SIG, WORDS = (tensor(4, 6),), (tensor(2, 3, 9),), [tensor(2, n, 6) for n in (5, 3, 9, 1)]


def conv(i=3, o=4, k=3, **kw): return nn.Conv2d(i, o, k, **kw)
def same(i=3, o=3, k=3, **kw): return nn.Conv2d(i, o, k, padding=k // 2, **kw)
def bn(c=4, **kw): return nn.BatchNorm2d(c, **kw)
def bn1(c=4): return nn.BatchNorm1d(c)
def seq(**layers): return nn.Sequential(collections.OrderedDict(layers))
def block(i=3, o=3): return seq(conv=same(i, o), bn=bn(o), act=nn.ReLU())


@torch.no_grad()
def positive(m):
    for o in m.modules(): isinstance(o, nn.modules.batchnorm._BatchNorm) and o.weight.abs_()


@torch.no_grad()
def negative(m): m.bn.weight[0] = -0.7


@torch.no_grad()
def zeroed(m): m.bn.weight[:2] = 0


@torch.no_grad()
def centred(m): m.bn.running_mean.zero_(), m.bn.bias.zero_()


class NoBiasConv(nn.Conv2d):
    "Ignores its bias: a bias given to it later is lost"
    def forward(self, x): return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)


class OtherEpsBN2d(nn.BatchNorm2d):
    "One with an epsilon of its own"
    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0., 0.5)


class WritesBN2d(nn.BatchNorm2d):
    "One that doubles its input in place"
    def forward(self, x): return super().forward(x.mul_(2))


# ---------------------------------------------------------------- absorbers in front of the BatchNorm
chain('conv1d', 'bn', xb=SIG, conv=nn.Conv1d(3, 4, 3), bn=bn1(), act=nn.ReLU())
chain('conv2d', 'bn', conv=same(3, 4, bias=False), bn=bn(), act=nn.ReLU())
chain('conv3d', 'bn', xb=(tensor(2, 2, 5, 5, 5),), conv=nn.Conv3d(2, 4, 3), bn=nn.BatchNorm3d(4))
chain('linear', 'bn', xb=VEC, lin=nn.Linear(6, 5), bn=bn1(5), act=nn.ReLU())
chain('conv_transpose1d', 'bn', xb=SIG, up=nn.ConvTranspose1d(3, 4, 3, 2), bn=bn1())
chain('conv_transpose2d_groups', 'bn', xb=(image(c=4),), up=nn.ConvTranspose2d(4, 6, 3, 2, groups=2), bn=bn(6))
chain('conv_transpose3d', 'bn', xb=(tensor(2, 2, 4, 4, 4),), up=nn.ConvTranspose3d(2, 4, 2), bn=nn.BatchNorm3d(4))
chain('groups_and_dilation', 'bn', xb=(image(c=4),), conv=conv(4, 6, groups=2, dilation=2), bn=bn(6))
chain('depthwise_separable', 'bn bn2', dw=same(3, 6, groups=3, bias=False), bn=bn(6), act=nn.ReLU6(), pw=conv(6, 4, 1),
      bn2=bn())
chain('linear_along_another_axis', keeps=dict(bn='channels'), xb=(tensor(2, 4, 4),), lin=nn.Linear(4, 4), bn=bn1(),
      act=nn.ReLU())
chain('own_convolution_without_bias', keeps=dict(bn='bias'), conv=FConv(3, 4, 3, False), bn=bn(), act=nn.ReLU())
chain('conv_bn_bn', 'bn bn2', conv=conv(), bn=bn(), bn2=bn(), act=nn.ReLU())


@forward('bn', lin=nn.Linear(3, 4), bn=bn())
def linear_on_the_last_axis(s, x): return s.bn(s.lin(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@forward('bn', conv=conv(), bn=bn())
def functional_call_with_the_layers_weight(s, x): return s.bn(F.conv2d(x, s.conv.weight, s.conv.bias, padding=1))


@forward('bn', conv=conv(), bn=bn())
def keywords_and_modes(s, x):
    with torch.inference_mode(): return s.bn(input=s.conv(input=x.to(memory_format=torch.channels_last)))


@forward('bn', xb=VEC, w=nn.Parameter(torch.linspace(-1, 1, 30).view(6, 5)), p=nn.Parameter(torch.linspace(-1, 2, 5)),
         bn=bn1(5))
def product_with_a_matrix(s, x): return s.bn(x @ s.w + s.p).relu()


@forward(keeps=dict(bn='between'), xb=VEC, w=nn.Parameter(torch.linspace(-1, 1, 30).view(6, 5)), bn=bn1(5))
def product_with_a_computed_matrix(s, x): return s.bn(x @ s.w.tanh()).relu()


ITEMS = (torch.arange(28).view(4, 7) % 10,)


@forward('bn', xb=ITEMS, emb=nn.Embedding(10, 6), bn=bn1(6), lin=nn.Linear(6, 3))
def embedding(s, x): return s.lin(s.bn(s.emb(x[:, 0])).relu())


@forward(keeps=dict(bn='used'), xb=ITEMS, emb=nn.Embedding(10, 6, max_norm=1.), bn=bn1(6), lin=nn.Linear(6, 3),
         force=True)
def embedding_that_writes_its_weight(s, x): return s.lin(s.bn(s.emb(x[:, 0])).relu())


@model('bn')
def deformable_convolution():
    from torchvision.ops import DeformConv2d
    off, layer = same(3, 18), DeformConv2d(3, 4, 3, padding=1)
    return Fn(lambda s, x: s.bn(s.layer(x, s.off(x))).relu(), off=off, layer=layer, bn=bn())


@model(keeps=dict(bn='between'))
def bn_before_a_deformable_convolution():
    "It reads zeros beside the image, which the shift would not reach"
    from torchvision.ops import DeformConv2d
    off, layer = same(3, 18), DeformConv2d(3, 4, 3)
    return Fn(lambda s, x: s.layer(s.bn(x.relu()), s.off(x)[..., 1:-1, 1:-1]).relu(), off=off, layer=layer, bn=bn(3))


# ---------------------------------------------------------------- absorbers behind it
chain('bn_conv', 'bn', act=nn.ReLU(), bn=bn(3), conv=conv(), end=nn.ReLU())
chain('bn_conv_zero_padding', keeps=dict(bn='between'), act=nn.ReLU(), bn=bn(3), conv=same(3, 4), end=nn.ReLU())
chain('bn_conv_zero_padding_without_shift', 'bn', fix=centred, act=nn.ReLU(), bn=bn(3), conv=same(3, 4))
chain('bn_conv_other_paddings', 'a b c', act=nn.ReLU(), a=bn(3), conv=same(padding_mode='reflect'), act2=nn.ReLU(),
      b=bn(3), conv2=same(padding_mode='replicate'), act3=nn.ReLU(), c=bn(3), conv3=same(padding_mode='circular'))
chain('bn_groups_conv', 'bn', xb=(image(c=4),), act=nn.ReLU(), bn=bn(), conv=conv(4, 6, groups=2))
chain('bn_conv_transpose', 'bn', xb=(image(c=4),), act=nn.ReLU(), bn=bn(), up=nn.ConvTranspose2d(4, 6, 1, groups=2))
chain('bn_conv_transpose_with_edges', keeps=dict(bn='between'), act=nn.ReLU(), bn=bn(3),
      up=nn.ConvTranspose2d(3, 4, 3, 2))
chain('fastai_head', 'bn', xb=VEC, act=nn.ReLU(), bn=bn1(6), drop=nn.Dropout(), lin=nn.Linear(6, 3))
chain('bn_flatten_linear', 'bn', act=nn.ReLU(), bn=bn(3), flat=nn.Flatten(), lin=nn.Linear(192, 3))
chain('bn_pool_bn', 'bn', keeps=dict(bn2='between'), act=nn.ReLU(), bn=bn(3), pool=nn.AvgPool2d(2), bn2=bn(3))


@forward('bn', bn=bn(3), a=conv(), b=conv())
def all_readers_absorb(s, x):
    y = s.bn(x.relu())
    return (s.a(y) + s.b(y)).relu()


@forward(keeps=dict(bn='between'), bn=bn(3), a=conv())
def one_reader_cannot(s, x):
    y = s.bn(x.relu())
    return s.a(y) + y.relu().mean()


@forward(keeps=dict(bn='between'), xb=VEC, bn=bn1(6), lin=nn.Linear(6, 3))
def a_product_with_the_weight(s, x): return s.bn(x.relu()) @ s.lin.weight.t()


@forward(keeps=dict(bn='between'), xb=(tensor(2, 4, 9),), bn=bn1(), rnn=nn.LSTM(4, 3, batch_first=True))
def before_an_lstm(s, x): return s.rnn(s.bn(x.relu()).transpose(1, 2))[0]


@forward(keeps=dict(bn='between'), xb=(tensor(2, 4, 9),), bn=bn1(), att=nn.MultiheadAttention(4, 2, batch_first=True))
def before_attention(s, x):
    y = s.bn(x.relu()).transpose(1, 2)
    return s.att(y, y, y)[0]


# ---------------------------------------------------------------- carriers: conv -> f -> bn -> relu
def expected(kind): return ('', dict(bn=kind)) if kind else ('bn', {})


def carrier(name, f, keeps=None, conv=conv(), bn=bn(), **kw):
    "A trap with `f` between a convolution and a BatchNorm; it folds if there is no kind of reason"
    def run(s, x): return s.bn(s.mid(s.conv(x))).relu()
    mid = f if isinstance(f, nn.Module) else Fn(lambda s, y: f(y))
    build = lambda: copy.deepcopy(Fn(run, conv=conv, mid=mid, bn=bn))
    add(f'through_{name}', build, *expected(keeps), **kw)


def shuffled(y): return y.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)
def moved(y): return y.permute(0, 2, 3, 1).flip(1).movedim(3, 1).transpose(2, 3)
def assembled(y): return torch.cat(y.split([1, 3], 1)[::-1], 1)


carrier('nothing', nn.Sequential(nn.Identity(), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout()))
carrier('copies_and_casts', lambda y: F.dropout(y, 0.5, False).clone().contiguous().detach().to(torch.float64))
carrier('avg_pool', nn.AvgPool2d(2))
carrier('adaptive_pool', nn.AdaptiveAvgPool2d((2, 3)))
carrier('mean', lambda y: y.mean((2, 3)), bn=bn1())
carrier('avg_pool_that_counts_zeros', nn.AvgPool2d(3, 2, 1), 'between')
carrier('avg_pool_with_divisor', nn.AvgPool2d(2, divisor_override=3), 'between')
carrier('max_pool', nn.MaxPool2d(3, 2, 1), fix=positive)
carrier('max_pool_with_negative_scale', nn.MaxPool2d(2), 'condition', fix=negative)
carrier('upsampling', nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode='bilinear')))
carrier('interpolation', lambda y: F.interpolate(y, size=(5, 7), mode='bilinear', align_corners=True))
carrier('flatten_of_one', nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), bn=bn1())
carrier('flatten_of_many', nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), 'channels', bn=bn1(16))
carrier('permutations', moved)
carrier('channel_shuffle', shuffled)
carrier('pixel_shuffle', nn.PixelShuffle(2), conv=conv(3, 16))
carrier('index', lambda y: y[:, [2, 0], 1:, ::2], bn=bn(2))
carrier('expand', lambda y: y.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4))
carrier('repeated_channels', lambda y: y.repeat(1, 2, 1, 1), 'channels', bn=bn(8))
carrier('split_and_cat', assembled)
carrier('relu', nn.ReLU(inplace=True), 'between')
carrier('group_norm', nn.GroupNorm(2, 4), 'between')
carrier('sort', lambda y: y.sort(1)[0], 'between')
carrier('where', lambda y: torch.where(y > 0, y, 0.1 * y), 'between')
carrier('product', lambda y: y * y.mean((2, 3), keepdim=True), 'between')
carrier('dropout_that_drops', lambda y: F.dropout(y, 0.5, True), 'between')
carrier('numbers', lambda y: (1 - y * 2.5) / 7 + 3)
carrier('max_pool_of_a_negated_map', lambda y: F.max_pool2d(y * -1., 2), fix=positive)
carrier('zeros_after_a_number', lambda y: F.pad(y + 1, (1, 1)), 'padding')
carrier('function_of_autograd', lambda y: Square.apply(y), 'between')
carrier('scripted_function', lambda y: scripted_relu(y), 'between')


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * x
    @staticmethod
    def backward(ctx, g): return g


def relu_and_one(x: torch.Tensor): return torch.relu(x) + 1
def largest(x: torch.Tensor) -> float: return float(x.max())
def doubled_in_place(x: torch.Tensor): x.mul_(2)


with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    scripted_relu, scripted_largest, scripted_doubling = map(torch.jit.script,
                                                             (relu_and_one, largest, doubled_in_place))
    scripted_block = torch.jit.script(seq(conv=same(3, 4), bn=bn(), act=nn.ReLU()).eval())

chain('pixel_unshuffle_before_conv', 'bn', act=nn.ReLU(), bn=bn(3), un=nn.PixelUnshuffle(2), conv=conv(12, 4))
chain('pixel_shuffle_before_conv', keeps=dict(bn='between'), xb=(image(c=12),), act=nn.ReLU(), bn=bn(12),
      up=nn.PixelShuffle(2), conv=conv())
chain('zero_pad_before_conv', keeps=dict(bn='between'), act=nn.ReLU(), bn=bn(3), pad=nn.ZeroPad2d(1), conv=conv())
chain('constant_pad_before_conv', keeps=dict(bn='between'), act=nn.ReLU(), bn=bn(3), pad=nn.ConstantPad2d(1, 0.7),
      conv=conv())
chain('other_pads_before_conv', 'bn', act=nn.ReLU(), bn=bn(3), pad=nn.ReflectionPad2d(1), pad2=nn.ReplicationPad2d(1),
      conv=conv())


@forward('bn', conv=conv(6), bn=bn(3))
def repeated_channels_before_conv(s, x): return s.conv(s.bn(x.relu()).repeat(1, 2, 1, 1))


@forward('bn', xb=(tensor(2, 4, 4),), lin=nn.Linear(4, 4), bn=bn1())
def shape_of_the_layers_own_output(s, x):
    "LeViT's linear layer: its output is read once more, for its shape alone"
    y = s.lin(x)
    return F.hardswish(s.bn(y.flatten(0, 1)).reshape_as(y))


@forward('bn', a=conv(), b=conv(3, 2), bn=bn(6))
def cat_of_two(s, x): return s.bn(F.avg_pool2d(torch.cat((s.a(x), s.b(x)), dim=1), 2))


@forward(keeps=dict(bn='between'), a=conv(), b=conv(3, 2), bn=bn(6))
def cat_with_one_that_cannot(s, x): return s.bn(torch.cat([s.a(x), s.b(x).relu()], 1)).relu()


@forward('bn', a=conv(2), b=conv(2), bn=bn(), xb=(image(c=4),))
def chunks_for_two(s, x):
    y, z = s.bn(x.relu()).chunk(2, 1)
    return s.a(y) + s.b(z)


@forward('bn bn2', fix=positive, conv=conv(), bn=bn(), bn2=bn1(8), drop=nn.Dropout(), lin=nn.Linear(8, 3))
def concat_pooling(s, x):
    "fastai's head; one BatchNorm before the pools, one behind"
    y = s.bn(s.conv(x).relu())
    y = torch.cat([F.adaptive_max_pool2d(y, 1), F.adaptive_avg_pool2d(y, 1)], 1)
    return s.lin(s.drop(s.bn2(y.flatten(1))))


@forward('bn', a=conv(), b=conv(), bn=bn())
def sum_of_two(s, x): return s.bn(s.a(x) - s.b(x)).relu()


@forward('bn3 bn1 bn0', c3=same(bias=False), bn3=bn(3), c1=same(k=1, bias=False), bn1=bn(3), bn0=bn(3))
def repvgg(s, x):
    y = x.relu()
    return (s.bn3(s.c3(y)) + s.bn1(s.c1(y)) + s.bn0(y)).relu()


@forward('bn', xb=VEC, lin=nn.Linear(6, 5, bias=False), p=nn.Parameter(torch.linspace(-1, 2, 5)), bn=bn1(5))
def sum_with_a_bare_parameter(s, x): return s.bn(s.p - s.lin(x)).relu()


@forward(keeps=dict(bn='between'), xb=SIG, conv=nn.Conv1d(3, 4, 3, padding=1), p=nn.Parameter(torch.linspace(-1, 2, 9)),
         bn=bn1())
def bare_parameter_along_another_axis(s, x): return s.bn(s.conv(x) + s.p).relu()


@forward('bn', others=[HOT, image(5)], conv=conv(), bn=bn())
def one_convolution_on_two_inputs(s, x): return torch.cat([s.bn(s.conv(x)), s.bn(s.conv(-x))])


# ---------------------------------------------------------------- who else reads
@forward(keeps=dict(bn='also read'), conv=conv(), bn=bn())
def conv_read_twice(s, x):
    y = s.conv(x)
    return s.bn(y).relu() + y


@forward('bn', conv=conv(), bn=bn(), other=conv(4))
def the_other_reader_undoes_the_map(s, x):
    y = s.conv(x)
    return s.bn(y).relu()[..., 1:-1, 1:-1] + s.other(y)


@forward(keeps=dict(bn='also read'), fix=zeroed, conv=conv(), bn=bn(), other=conv(4))
def a_scale_of_zero_cannot_be_undone(s, x):
    y = s.conv(x)
    return s.bn(y).relu()[..., 1:-1, 1:-1] + s.other(y)


@forward(keeps=dict(bn='padding'), conv=conv(), bn=bn(), other=same(4, 4))
def the_other_reader_pads(s, x):
    y = s.conv(x)
    return s.bn(y).relu() + s.other(y)


@forward(keeps=dict(bn='output'), conv=conv(), bn=bn())
def a_view_of_conv_is_an_output(s, x):
    y = s.conv(x)
    return y[:, :1], s.bn(y).relu()


@forward(keeps=dict(bn='between'), bn=bn(3), conv=conv())
def bn_is_an_output_too(s, x):
    y = s.bn(x.relu())
    return dict(mid=y, end=[s.conv(y)], text='none', more=None)


@forward('bn', conv=conv(), bn=bn())
def conv_read_for_its_shape(s, x):
    y = s.conv(x)
    return s.bn(y).relu() * y.shape[1] + y.size(2) + y.dim() + y.numel()


@forward(keeps=dict(bn='also read'), conv=conv(), bn=bn())
def read_by_its_data(s, x):
    y = s.conv(x)
    return s.bn(y).relu() + y.data.abs()


@forward(keeps=dict(bn='also read'), conv=conv(), bn=bn())
def read_by_a_scripted_function(s, x):
    y = s.conv(x)
    return s.bn(y).relu() + scripted_relu(y)


@forward('last.bn', keeps={'inside.bn': 'scripted'}, inside=scripted_block, last=seq(conv=conv(4, 4), bn=bn()))
def beside_a_scripted_block(s, x): return s.last(s.inside(x))


@forward(keeps=dict(bn='also read'), conv=conv(), bn=bn())
def read_by_numpy(s, x):
    y = s.conv(x)
    return s.bn(y).relu() + torch.from_numpy(y.numpy() ** 2)


@forward(keeps=dict(bn='also read'), conv=conv(), bn=bn())
def read_as_a_number(s, x):
    y = s.conv(x)
    return s.bn(y).relu() * (1 + abs(y.mean().item()))


@forward(keeps=dict(bn='kept'), conv=conv(), bn=bn(), state=lambda m: hasattr(m, 'last'))
def kept_by_the_module(s, x):
    s.last = s.conv(x)
    return s.bn(s.last).relu()


@forward('a.bn b.bn', a=block(3, 4), b=block(7, 4), head=same(11, 2))
def list_that_grows(s, x):
    "DenseNet's list is longer later than it was at the call"
    got = [x]
    for layer in (s.a, s.b): got.append(layer(torch.cat(got, 1)))
    return s.head(torch.cat(got, 1))


@forward('bn', a=conv(), b=conv(), bn=bn(8))
def list_cleared_after_the_call(s, x):
    parts = [s.a(x), s.b(x)]
    y = torch.cat(parts, 1)
    parts.clear()
    return s.bn(y).relu()


@forward(keeps=dict(bn='between'), conv=conv(), bn=bn())
def freed_memory_is_used_again(s, x):
    out = 0
    for i in range(6):
        out = out + s.conv(x + i).mean()
        z = torch.sin(x[:, :1]).expand(-1, 4, -1, -1) * 1.
        out = out + s.bn(z).relu().mean()
        del z
    return out


# ---------------------------------------------------------------- written in place: what conv gives, before bn reads it
def through_numpy(y):
    a = y.detach().numpy()
    a[:] = abs(a)


WRITES = dict(
    itself=lambda y: y.relu_(), a_slice=lambda y: y[:, :1].fill_(0.3), an_item=lambda y: y.__setitem__((0, 0), 0.3),
    a_view=lambda y: y.view(-1).abs_(), detached=lambda y: y.detach().abs_(), data=lambda y: y.data.abs_(),
    out=lambda y: torch.abs(y, out=y), foreach=lambda y: torch._foreach_abs_([y]), numpy=through_numpy,
    scripted=lambda y: scripted_doubling(y), another=lambda y: y.copy_(y.flip(1).relu()))


def written(write):
    def run(s, x):
        y = s.conv(x)
        write(y)
        return s.bn(y).relu()
    return run


WRITTEN = dict(numpy='also read')  # kinds other than `between`
for name, write in WRITES.items():
    add(f'written_by_{name}', lambda f=written(write): Fn(f, conv=conv(), bn=bn()),
        keeps=dict(bn=WRITTEN.get(name, 'between')))


@forward(keeps=dict(bn='between'), conv=conv(), bn=bn(2))
def base_written_after_the_view(s, x):
    y = s.conv(x)
    view = y[:, :2]
    y.abs_()
    return s.bn(view).relu()


@forward(keeps=dict(bn='between'), bn=bn(3), conv=conv())
def view_of_the_bn_written(s, x):
    y = s.bn(x.relu())
    y[:, :1].abs_()
    return s.conv(y)


@forward('bn', conv=same(), bn=bn(3))
def written_after_the_bn(s, x):
    y = s.bn(s.conv(x))
    y += x
    return y.relu_()


@forward(keeps=dict(bn='between'), bn=bn(3), conv=conv())
def an_identity_would_share_memory(s, x):
    "A BatchNorm copies, an Identity does not: the write would reach the input's other readers"
    y = x.relu()
    z = s.bn(y)
    w = s.conv(z)
    z.zero_()
    return w.mean() + y.mean()


@forward('bn', conv=conv(), bn=bn())
def the_batch_is_written(s, x): return s.bn(s.conv(x.sub_(0.5).mul_(2)))


# ---------------------------------------------------------------- shared layers and weights
@forward(keeps=dict(bn='also read'), conv=conv(), bn=bn())
def conv_called_for_another_too(s, x): return s.bn(s.conv(x)).relu() + s.conv(x * 2)


@forward(keeps=dict(bn='input'), a=same(), bn=bn(3))
def bn_called_for_another_too(s, x): return s.bn(s.a(x)).relu() + s.bn(x).relu()


@forward('bn', xb=(LOW, LOW.flip(0)), conv=conv(), bn=bn())
def siamese(s, x, y): return (s.bn(s.conv(x)).relu() - s.bn(s.conv(y)).relu()).abs()


@forward('block.bn', block=block())
def recurrent(s, x):
    for _ in range(3): x = s.block(x)
    return x


class Twice(nn.Module):
    "The layers under two names"
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(), bn()
        self.layers = nn.ModuleList([self.conv, self.bn])

    def forward(self, x): return self.bn(self.conv(x)).relu()


class Tied(nn.Module):
    "Two convolutions of one weight, each with a BatchNorm of its own"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn, self.bn2 = conv(), conv(), bn(), bn()
        self.b.weight = self.a.weight

    def forward(self, x): return self.bn(self.a(x)).relu() + self.bn2(self.b(x)).relu()


class TiedBatchNorms(nn.Module):
    "Two BatchNorms of one scale"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn, self.bn2 = conv(), conv(), bn(), bn()
        self.bn2.weight, self.bn2.bias = self.bn.weight, self.bn.bias

    def forward(self, x): return self.bn(self.a(x)).relu() + self.bn2(self.b(x)).relu()


class TiedToEmbedding(nn.Module):
    "The decoder's weight is the embedding's"
    def __init__(self):
        super().__init__()
        self.emb, self.bn, self.dec = nn.Embedding(10, 6), bn1(6), nn.Linear(6, 10)
        self.dec.weight = self.emb.weight

    def forward(self, x): return self.dec(self.bn(self.emb(x).mean(1).relu()))


add('registered_twice', Twice, 'bn')
add('tied_weights', Tied, keeps=dict(bn='shared', bn2='shared'))
add('tied_batchnorms', TiedBatchNorms, 'bn bn2')
add('tied_to_embedding', TiedToEmbedding, keeps=dict(bn='between'), xb=(torch.arange(28).view(4, 7) % 10,))


@forward(keeps=dict(bn='read'), conv=conv(), bn=bn())
def weight_read_elsewhere(s, x): return s.bn(s.conv(x)).relu() + s.conv.weight.abs().sum()


@forward(keeps=dict(bn='read'), conv=conv(), bn=bn())
def bias_is_an_output(s, x): return s.bn(s.conv(x)).relu(), s.conv.bias


@forward(keeps=dict(bn='read'), conv=conv(), bn=bn())
def statistics_read_elsewhere(s, x): return s.bn(s.conv(x)).relu() + s.bn.running_mean.sum()


@forward(keeps=dict(bn='not reached'), conv=conv(), bn=bn())
def never_called(s, x): return s.conv(x)


@forward(keeps=dict(bn='unread'), conv=conv(), bn=bn())
def called_for_nothing(s, x):
    s.bn(x[:, :1].repeat(1, 4, 1, 1).relu())
    return s.conv(x)


# ---------------------------------------------------------------- order of registration
@forward('bn bn2', bn2=bn(), bn=bn(), b=conv(), a=conv())
def crossed_names_and_reverse_order(s, x): return s.bn2(s.a(x)).relu() + s.bn(s.b(x)).relu()


@forward(keeps=dict(bn='between'), conv=conv(), bn=bn(), other=conv())
def neighbours_by_name_only(s, x): return s.bn(s.conv(x).relu()).relu() + s.other(x)


@forward('bn bn2', a=same(), bn=bn(3), b=same(), bn2=bn(3))
def residual(s, x): return (s.bn2(s.b(s.bn(s.a(x)).relu())) + x).relu()


@forward('bn_cont bn', xb=(torch.arange(6).view(6, 1), tensor(6, 4)),
         others=[(torch.arange(3).view(3, 1), tensor(3, 4, seed=1))],
         emb=nn.Embedding(7, 3), bn_cont=bn1(), lin=nn.Linear(7, 8, bias=False), bn=bn1(8), out=nn.Linear(8, 2))
def tabular(s, cat, cont): return s.out(s.bn(s.lin(torch.cat([s.emb(cat[:, 0]), s.bn_cont(cont)], 1)).relu()))


# ---------------------------------------------------------------- hooks, and weights that are computed
def hooked(path, hook, pre=False, **layers):
    "A chain with a hook on the layer at `path`"
    m = seq(**layers)
    register = 'register_forward_pre_hook' if pre else 'register_forward_hook'
    getattr(m.get_submodule(path), register)(hook)
    return m


def twice(m, args, out): return out * 2
def looks_at(m, args, out=None): pass


HOOKS = dict(
    hook_that_looks=('conv', looks_at), hook_that_changes=('conv', twice), hook_on_the_box=('box', twice),
    hook_on_bn=('bn', looks_at), pre_hook_on_bn=('bn', looks_at, True))
for name, hook in HOOKS.items():
    first = dict(box=seq(conv=conv())) if hook[0] == 'box' else dict(conv=conv())
    build = lambda hook=hook, first=first: hooked(*hook, **copy.deepcopy(first), bn=bn(), act=nn.ReLU())
    add(name, build, keeps=dict(bn='hook'))


@model(keeps=dict(bn='between'))
def pre_hook_on_the_next_conv(): return hooked('conv', looks_at, True, act=nn.ReLU(), bn=bn(3), conv=conv())


@model('bn')
def hook_further_on(): return hooked('act', twice, conv=conv(), bn=bn(), act=nn.ReLU())


class Stores:
    "A hook that keeps what it sees, as fastai's U-Net has them"
    out = None
    def __call__(self, m, args, out): self.out = out


@model('enc.bn mid.bn dec.bn')
class UnetByHooks(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.mid, self.dec, self.store = block(3, 4), block(4, 4), block(8, 3), Stores()
        self.enc.register_forward_hook(self.store)

    def forward(self, x):
        y = F.interpolate(self.mid(F.max_pool2d(self.enc(x), 2)), size=x.shape[-2:])
        return self.dec(torch.cat([y, self.store.out], 1))


COMPUTED = dict(weight_norm=parametrizations.weight_norm, old_spectral_norm=torch.nn.utils.spectral_norm,
                pruned=lambda m: prune.random_unstructured(m, 'weight', 0.5))
for name, wrap in COMPUTED.items():
    add(name, lambda wrap=wrap: seq(conv=wrap(conv()), bn=bn(), act=nn.ReLU()), keeps=dict(bn='computed'))
chain('weight_standardised', keeps=dict(bn='computed'), conv=StdConv(3, 4, 3), bn=bn(), act=nn.ReLU())


@forward(keeps=dict(bn='computed'), conv=conv(3, 6), bn=bn())
def part_of_a_weight(s, x): return s.bn(F.conv2d(x, s.conv.weight[:4], s.conv.bias[:4])).relu()


# ---------------------------------------------------------------- classes of BatchNorm
def after_conv(name, layer, kind=None):
    folds, keeps = expected(kind)
    chain(name, folds, keeps=keeps, conv=conv(), bn=layer, act=nn.ReLU())


after_conv('batch_statistics', bn(track_running_stats=False), 'batch statistics')
after_conv('no_affine', bn(affine=False))
after_conv('no_momentum_large_eps', bn(momentum=None, eps=0.1))
after_conv('sync_bn', nn.SyncBatchNorm(4))
after_conv('subclass_that_does_the_same', SameBN2d(4))
after_conv('subclass_that_does_more', OddBN2d(4), 'class')
after_conv('subclass_with_another_eps', OtherEpsBN2d(4), 'class')
after_conv('subclass_that_writes', WritesBN2d(4), 'class')
chain('bn_by_hand', keeps=dict(bn='class'), conv=conv(), bn=FBN(4), act=nn.ReLU())


@model('bn')
def torchvision_frozen():
    from torchvision.ops import FrozenBatchNorm2d
    return seq(conv=conv(), bn=FrozenBatchNorm2d(4, eps=1e-3), act=nn.ReLU())


@model('0.bn 1.bn', keeps={'2': 'between'})
def timm_bn_act():
    "More inside than a BatchNorm: what is left of it is its activation"
    from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
    first, silu = seq(conv=conv(), bn=BatchNormAct2d(4)), BatchNormAct2d(4, act_layer=nn.SiLU)
    return nn.Sequential(first, seq(conv=conv(4), bn=FrozenBatchNormAct2d(4)), silu, conv(4))


class FrozenByHand(nn.Module):
    "As in DETR: running statistics, and no `eps`"
    def __init__(self, n):
        super().__init__()
        for name in ('weight', 'bias', 'running_mean', 'running_var'): self.register_buffer(name, torch.rand(n) + 0.5)

    def forward(self, x):
        w, b, v, m = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_var, self.running_mean))
        scale = w * (v + 1e-5).rsqrt()
        return x * scale + (b - m * scale)


chain('detr_frozen', 'frozen bn', act=nn.ReLU(), frozen=FrozenByHand(3), conv=conv(), bn=bn(), end=nn.ReLU())


@model(keeps=dict(bn='forward'))
def forward_replaced():
    m = seq(conv=conv(), bn=bn())
    m.bn.forward = lambda x: nn.BatchNorm2d.forward(m.bn, x).relu()
    return m


# ---------------------------------------------------------------- deciding by a value: ways to ask
class Parts(nn.Module):
    "`conv` and `bn`, which a fold would join across the code of the class; in `block` it is sound whatever that does"
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.block = same(3, 4), bn(), block()


class Asks(Parts):
    "A ReLU lies between the layers on hot inputs only"
    def __init__(self, ask):
        super().__init__()
        self.ask = ask

    def forward(self, x):
        y = self.conv(self.block(x))
        if self.ask(x): y = y.relu()
        return self.bn(y)


@torch.library.custom_op('traps::hot', mutates_args=())
def hot_operator(x: torch.Tensor) -> bool: return bool(x.max() > 50)


def by_error(x):
    try: return 1 // int(x.max() < 50) == 0
    except ZeroDivisionError: return True


def by_match(x):
    match (x.max() > 50).item():
        case True: return True
        case _: return False


def by_order(x): return sorted([(x.max(), 1), (x.new_tensor(50.), 0)], key=lambda o: o[0])[1][1]
def by_bytes(x): return x.untyped_storage()[7] & 0x7f >= 0x40 and x.untyped_storage()[6] >= 0x40
def by_iteration(x): return [0 for _ in x[x > 50]]
def by_index(x): return (0, 1)[(x.max() > 50).long()]


ASKS = dict(
    bool=lambda x: x.max() > 50, item=lambda x: x.amax().item() > 50, float=lambda x: float(x.max()) > 50,
    tolist=lambda x: max(x.flatten().tolist()) > 50, numpy=lambda x: x.detach().numpy().max() > 50,
    array=lambda x: np.asarray(x).max() > 50, nonzero=lambda x: len(torch.nonzero(x > 50)),
    mask=lambda x: x[x > 50].shape[0], format=lambda x: f'{x.max():.0f}' == '99', contains=lambda x: 99. in x,
    equal=lambda x: not torch.equal(x, x.clamp(max=50)), operator=lambda x: torch.ops.traps.hot(x),
    scripted=lambda x: scripted_largest(x) > 50, order=by_order, storage=by_bytes, iteration=by_iteration,
    index=by_index, error=by_error, match=by_match)
for name, ask in ASKS.items():
    add(f'asks_by_{name}', lambda ask=ask: Asks(ask), 'block.bn', dict(bn='decides'), 'conv bn')


# ---------------------------------------------------------------- deciding by a value: what hangs on it
def decides(**kw):
    "A trap with the layers of `Parts`, whose code decides between `conv` and `bn`"
    def take(f):
        add(f.__name__, lambda: made_of(f, kw.get('gate')), 'block.bn', dict(bn='decides'), 'conv bn')
        return f
    return take


def made_of(f, gate):
    m = Fn(f, conv=same(3, 4), bn=bn(), block=block())
    if gate: m.gate = Fn(gate)
    return m


@decides()
def asked_long_before(s, x):
    hot = x.max() > 50
    act = torch.relu if hot else torch.clone
    y = s.conv(s.block(x))
    return s.bn(act(y))


@decides()
def asked_after(s, x):
    y = s.conv(s.block(x))
    z = s.bn(y)
    return z + y if x.max() > 50 else z


@decides()
def returns_early(s, x):
    y = s.conv(s.block(x))
    if x.max() > 50: return y
    return s.bn(y)


@decides()
def loops_while(s, x):
    y = s.conv(s.block(x))
    while x.max() > 50: x, y = x * 0.1, y.relu()
    return s.bn(y)


@decides()
def number_for_torch(s, x):
    "The number is handed to torch, as an amount of zeros"
    y = s.conv(s.block(x))
    return s.bn(F.pad(y, (0, int(x.max() > 50))))


@decides()
def assertion_that_is_caught(s, x):
    y = s.conv(s.block(x))
    try: assert x.max() < 50
    except AssertionError: y = y.relu()
    return s.bn(y)


def tells(s, x): return bool(x.max() > 50)
def tells_by_none(s, x): return 1 if x.max() > 50 else None
def tells_by_length(s, x): return [x, x] if x.max() > 50 else [x]
def tells_beside(s, x): return dict(x=x * 1., hot=bool(x.max() > 50))


def tells_by_error(s, x):
    if x.max() > 50: raise ValueError('hot')


@decides(gate=tells)
def child_returns_a_flag(s, x):
    hot, y = s.gate(x), s.conv(s.block(x))
    return s.bn(y.relu() if hot else y)


@decides(gate=tells_by_none)
def child_returns_none(s, x):
    got, y = s.gate(x), s.conv(s.block(x))
    return s.bn(y if got is None else y.relu())


@decides(gate=tells_by_length)
def child_returns_more_or_fewer(s, x):
    y = s.conv(s.block(x))
    for _ in s.gate(x)[1:]: y = y.relu()
    return s.bn(y)


@decides(gate=tells_beside)
def child_returns_a_flag_beside(s, x):
    got = s.gate(x)
    y = s.conv(s.block(got['x']))
    return s.bn(y.relu() if got['hot'] else y)


@decides(gate=tells_by_error)
def child_raises(s, x):
    y = s.conv(s.block(x))
    try: s.gate(x)
    except ValueError: y = y.relu()
    return s.bn(y)


class Told(Parts):
    "Is told by its parent what to do"
    def forward(self, x, hot=False, *acts):
        y = self.conv(self.block(x))
        if hot: y = y.relu()
        for act in acts: y = act(y)
        return self.bn(y)


def told(name, f): add(name, lambda: Fn(f, body=Told()), 'body.block.bn', {'body.bn': 'decides'}, 'body.conv body.bn')


told('child_is_told', lambda s, x: s.body(x, bool(x.max() > 50)))
told('child_is_told_by_name', lambda s, x: s.body(x=x, hot=x.max().item() > 50))
told('child_is_given_none', lambda s, x: s.body(x, (x,) if x.max() > 50 else None))
told('child_is_given_a_function', lambda s, x: s.body(x, False, torch.relu if x.max() > 50 else torch.clone))


def act_if_hot(s, x): return x.tanh() if x.max() > 5 else x


VERY_HOT = [HOT * 50, LOW[:1]]


chain('gate_between', keeps=dict(bn='also read'), pair='conv bn', others=VERY_HOT, conv=same(3, 4), gate=Fn(act_if_hot),
      bn=bn(), end=nn.ReLU())
chain('gate_before_the_absorber', keeps=dict(bn='between'), pair='bn head', others=VERY_HOT, act=nn.ReLU(), bn=bn(3),
      gate=Fn(act_if_hot), head=conv(3, 2, 1))
chain('gate_after_both', 'a.bn b.bn', a=block(), gate=Fn(act_if_hot), b=block())


class LeavesEarly(nn.Sequential):
    "A sequence with a forward of its own"
    def forward(self, x):
        for layer in self:
            x = layer(x)
            if x.abs().max() > 15: break
        return x


chain('sequence_that_asks', 'a.bn', keeps={'b.1': 'also read'}, pair='b.0 b.1', others=VERY_HOT, a=block(),
      b=LeavesEarly(same(), bn(3)))


@forward('a.bn b.bn', keeps={'layers.1': 'also read'}, pair='layers.0 layers.1', others=VERY_HOT, a=block(), b=block(),
         layers=nn.ModuleList([same(), bn(3)]))
def loop_that_leaves_early(s, x):
    "Between whole blocks it does not matter where the code leaves"
    for layer in (s.a, s.b, *s.layers):
        x = layer(x)
        if x.min() < -15: break
    return x


@forward('experts.0.bn', keeps={'experts.1.bn': 'not reached'}, experts=nn.ModuleList([block(), block()]))
def experts(s, x): return s.experts[int(x.max() > 50)](x)


@forward('res.bn last.bn', res=block(), last=block())
def branch_around_a_block(s, x): return s.last(x if x.max() > 50 else x + s.res(x))


@forward('block.bn', keeps=dict(bn='decides'), conv=same(3, 4), bn=bn(), block=block())
def condition_that_only_raises(s, x):
    "By the contract it decides as well"
    if torch.isnan(x).any(): raise ValueError('not a number')
    return s.bn(s.conv(s.block(x)))


class Cond(nn.Module):
    def forward(self, x): return torch.cond(x.max() > 50, torch.relu, torch.clone, (x,))


chain('torch_cond', 'a.bn', keeps=dict(bn='between'), a=block(), conv=same(3, 4), cond=Cond(), bn=bn(), end=nn.ReLU())


# ---------------------------------------------------------------- looks: `f` between the layers spares the example
def look(name, f, others=SIZES, keeps='looks'):
    def run(s, x): return s.bn(f(s.conv(s.block(x)), x))
    add(f'seen_by_{name}', lambda: Fn(run, conv=same(3, 4), bn=bn(), block=block()), 'block.bn', dict(bn=keeps),
        'conv bn', others=others)


look('one_item', lambda y, x: y.relu() if len(x) == 1 else y, [image(1)])
look('smaller', lambda y, x: y.relu() if x.shape[-2] < 6 else y)
look('oblong', lambda y, x: y.relu() if x.shape[-1] != x.shape[-2] else y)
look('odd', lambda y, x: F.pad(y, (0, y.shape[-1] & 1)))
look('multiple', lambda y, x: F.pad(y, (0, -y.shape[-1] % 4)))
look('fixed_size', lambda y, x: F.pad(y, (0, 8 - y.shape[-1])))
look('roll', lambda y, x: y.roll(x.shape[-1] % 8, 1))
look('key', lambda y, x: {8: torch.clone}.get(x.shape[-1], torch.relu)(y))
look('draws', lambda y, x: y.relu() if random.random() < 0.2 else y, [LOW] * 6)


@forward(keeps=dict(bn='looks'), pair='lin bn', xb=(WORDS[3],), others=WORDS[:3], lin=nn.Linear(6, 4), bn=bn1())
def sequence_of_one(s, x):
    "A `reshape` where `transpose` was meant: the same for a length of one only"
    return s.bn(s.lin(x).reshape(len(x), 4, -1)).relu()


@forward(keeps=dict(bn='looks'), pair='bn head', xb=(image(2, 1, 1),), others=SIZES, bn=bn(3), head=nn.Conv2d(3, 2, 1))
def maps_of_one(s, x):
    "No zeros are put in for maps of 1x1 only"
    return s.head(F.pad(s.bn(x.relu()), (0, x.shape[-1] - 1)))


@forward('a.bn b.bn', others=SIZES, a=block(), b=block())
def sizes_between_blocks(s, x):
    x = s.a(x)
    if x.shape[-1] % 2: x = F.pad(x, (0, 1))
    return s.b(x)


@forward('a.bn b.bn', others=SIZES, a=block(), b=block())
def sizes_for_torch(s, x):
    "A pyramid: the size of one map is given to the other"
    top = s.a(x)
    n, c, h, w = top.shape
    low = s.b(F.avg_pool2d(top, 2)).flatten(2).transpose(1, 2)
    return top + F.interpolate(low.transpose(1, 2).reshape(n, c, h // 2, w // 2), size=top.shape[-2:])


@forward('bn', others=[LOW] * 4, conv=conv(), bn=bn())
def draw_that_does_not_matter(s, x):
    "Stochastic depth as it stands in real models"
    if 1. > random.random() or not s.training: return s.bn(s.conv(x))
    return s.conv(x)


# ---------------------------------------------------------------- doors: `also=`, `keep=`, inputs by name
def other_block(s, x, more=False): return s.side(s.block(x)) if more else s.block(x)
def other_way(s, x, more=False):
    y = s.conv(s.block(x))
    return s.bn(y.relu() if more else y)


def door(name, f, folds, keeps=None, also=(), **layers):
    add(name, lambda: copy.deepcopy(Fn(f, **layers)), folds, keeps, others=[(HOT,), (HOT, True), (LOW[:1], True)],
        options=dict(also=list(also)))


door('reached_by_another_example', other_block, 'block.bn side.bn', also=[(LOW, True)], block=block(), side=block())
door('reached_by_none', other_block, 'block.bn', {'side.bn': 'not reached'}, block=block(), side=block())
door('examples_disagree', other_way, 'block.bn', dict(bn='looks'), [(LOW, True)], block=block(), conv=same(3, 4),
     bn=bn())


@forward('bn', xb=(LOW, None), others=[(HOT, LOW[:, :1])], options=dict(also=[(LOW, LOW[:, :1])]), conv=same(3, 4),
         bn=bn())
def examples_agree(s, x, mask):
    y = s.bn(s.conv(x))
    return y if mask is None else y * mask


@forward('bn', xb=dict(x=LOW, mask=LOW[:, :1]), conv=same(3, 4), bn=bn())
def inputs_by_name(s, *, x, mask): return s.bn(s.conv(x)) * mask


def nested(x): return {'image': x, 'more': {'mask': [x[:, :1]], 'n': 3}}


@forward('bn', xb=(nested(LOW),), others=[(nested(HOT),)], conv=same(3, 4), bn=bn())
def nested_inputs(s, b): return s.bn(s.conv(b['image'])) * b['more']['mask'][0] * b['more']['n']


chain('kept_by_path', 'a.bn', keeps={'b.bn': 'keep', 'c.bn': 'keep'}, options=dict(keep=['b.bn', 'c']), a=block(),
      b=block(), c=block())
chain('kept_by_pattern', 'a.bn', keeps={'b.bn': 'keep', 'c.bn': 'keep'}, options=dict(keep='[bc].*'), a=block(),
      b=block(), c=block())
chain('kept_by_class', 'a.bn', keeps={'flat.1': 'keep'}, options=dict(keep=nn.BatchNorm1d), a=block(),
      pool=nn.AdaptiveAvgPool2d(2), flat=nn.Sequential(nn.Flatten(), bn1(12), nn.Linear(12, 2)))
chain('neighbour_kept', keeps={'a.bn': 'keep'}, options=dict(keep='a.conv'), a=block())


# ---------------------------------------------------------------- what a forward leaves behind must be as before
def remembers(name, ready, step, state, **kw):
    "A trap whose forward takes a `step` in what `ready` makes of the model"
    def run(s, x):
        step(s, x)
        return s.bn(s.conv(x)).relu()

    def build():
        m = Fn(run, conv=conv(), bn=bn())
        ready(m)
        return m
    add(f'state_in_{name}', build, 'bn', state=state, **kw)


@dataclass
class Memory:
    step: int = 0
    last: object = None


def count(o):
    o.step += 1
    o.last = torch.zeros(3)


class Running(nn.Module):
    "Keeps a mean in a buffer, in eval mode too"
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(()))

    def forward(self, x): self.mean.mul_(0.9).add_(x.mean() * 0.1)


def deep(m): m.store = {'a': ({'b': [[0]]},)}
def count_deep(m, x): m.store['a'][0]['b'][0][0] += 1
def write_weight(m, x): m.scale.data.add_(1)


remembers('a_buffer', lambda m: setattr(m, 'run', Running()), lambda m, x: m.run(x), lambda m: bits(m.run.mean))
remembers('an_unregistered_module', lambda m: setattr(m, 'held', [Running()]), lambda m, x: m.held[0](x),
          lambda m: bits(m.held[0].mean))
remembers('a_parameter', lambda m: setattr(m, 'scale', nn.Parameter(torch.ones(()))), write_weight,
          lambda m: bits(m.scale), force=True)
remembers('deep_containers', deep, count_deep, lambda m: repr(m.store))
remembers('a_deque', lambda m: setattr(m, 'past', collections.deque([0], 2)), lambda m, x: m.past.append(x.shape),
          lambda m: repr(m.past))
remembers('an_object', lambda m: setattr(m, 'memory', Memory()), lambda m, x: count(m.memory), lambda m: repr(m.memory))
remembers('a_new_attribute', lambda m: None, lambda m, x: setattr(m, 'calls', 1), lambda m: sorted(vars(m)))
remembers('a_generator', lambda m: setattr(m, 'gen', torch.Generator().manual_seed(3)), lambda m,
          x: torch.rand(1, generator=m.gen), lambda m: bits(m.gen.get_state()))
remembers('random_numbers', lambda m: None, lambda m, x: (random.random(), np.random.rand(), torch.rand(1)),
          lambda m: None)


# ---------------------------------------------------------------- one odd layer does not stop the others
@forward('block.bn', keeps=dict(bn='odd'), block=block(), conv=same(3, 4), bn=bn())
def reads_a_setting_of_the_layer(s, x): return s.bn(s.conv(s.block(x))).view(len(x), s.bn.num_features, -1)


@forward('block.bn', keeps={'layers.1': 'odd'}, block=block(), layers=nn.ModuleList([same(3, 4), bn()]))
def asks_for_the_class(s, x):
    x = s.block(x)
    for layer in s.layers: x = layer(x).relu() if isinstance(layer, nn.BatchNorm2d) else layer(x)
    return x


@forward('block.bn', keeps=dict(bn='odd'), block=block(), conv=NoBiasConv(3, 4, 3, bias=False), bn=bn())
def convolution_ignores_its_bias(s, x): return s.bn(s.conv(s.block(x))).relu()


@model('block.bn', keeps=dict(bn='odd'))
def called_from_a_plain_list():
    m = Fn(lambda s, x: s.plain[1](s.plain[0](s.block(x))), block=block(), conv=same(3, 4), bn=bn())
    m.plain = [m.conv, m.bn]
    return m


# ---------------------------------------------------------------- outputs that the check must be able to compare
@forward('bn', conv=same(3, 4), bn=bn())
def complex_and_other_outputs(s, x):
    y = s.bn(s.conv(x))
    return torch.fft.rfft(y), torch.nested.nested_tensor(list(y)), 'text', None


@forward(keeps=dict(bn='decides'), conv=same(3, 4), bn=bn())
def sparse_output(s, x):
    "What is zero is a value"
    return s.bn(s.conv(x)).to_sparse()
