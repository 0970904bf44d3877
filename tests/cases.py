"""Hand-made cases, one trap each. A case gives a model, an example batch, the BatchNorm layers that must fold, those that
must be kept with a word of the reason (any of several), and those that are free to go either way (`may`)."""
import collections
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from models import calibrate, other_batch, random_gamma, randomize_bn, run
from nets import (
    FBN, CheckedBN, DoubledBN2d, FConv, GainConv, NarrowBN2d, NoBiasConv, OddBN2d, OtherEpsBN2d, SameBN2d, StdConv, Twice, WritesBN2d)


@dataclass
class Case:
    "What is built, and what is expected of it"
    name: str
    build: object
    folds: tuple = ()
    keeps: dict = field(default_factory=dict)
    may: tuple = ()
    count: int = None  # how many of `may` fold, where it is free which
    refuse: bool = False  # a `FoldError` that leaves the model alone is right too
    state: object = None  # plain attributes that must be as before: state(model)


CASES = []


def case(folds='', may='', count=None, refuse=False, state=None, **keeps):
    "Register a builder of `(model, xb)`; `__` in a name of `keeps` stands for a dot"
    def add(f):
        kept = {k.replace('__', '.'): (v,) if isinstance(v, str) else v for k, v in keeps.items()}
        CASES.append(Case(f.__name__, f, tuple(folds.split()), kept, tuple(may.split()), count, refuse, state))
        return f
    return add


def made(c, seed=0):
    "The case's model with real statistics, its batch, and a fresh batch of another size"
    torch.manual_seed(seed)
    model, xb = c.build()
    model = model.double().eval()
    if not getattr(model, 'as_is', False): randomize_bn(model, seed, zero=0.)
    for bn in getattr(model, 'positive', ()): bn.weight.data.abs_()
    run(model, other_batch(xb, 8))
    if not getattr(model, 'as_is', False): settle(model, xb, seed)
    return model, xb, other_batch(xb, 5)


def settle(model, xb, seed):
    "Calibrate, unless a hook or state of the model's own is in the way"
    if getattr(model, 'settled', True): calibrate(model, other_batch(xb, 8), seed)


class Fn(nn.Module):
    "A module out of a forward function `f(self, x)` and its layers"
    def __init__(self, f, **mods):
        super().__init__()
        self.f = f
        for k, m in mods.items(): setattr(self, k, m)

    def forward(self, x): return self.f(self, x)


class Fn2(Fn):
    def forward(self, x, y): return self.f(self, x, y)


def seq(**mods): return nn.Sequential(collections.OrderedDict(mods))
def img(c=3, n=2, s=8): return [torch.randn(n, c, s, s, dtype=torch.float64)]
def vec(c=6, n=4): return [torch.randn(n, c, dtype=torch.float64)]
def sig(c=3, n=2, s=9): return [torch.randn(n, c, s, dtype=torch.float64)]
def vol(c=2, n=2, s=5): return [torch.randn(n, c, s, s, s, dtype=torch.float64)]
def conv(i=3, o=4, k=3, **kw): return nn.Conv2d(i, o, k, **kw)
def bn(c=4, **kw): return nn.BatchNorm2d(c, **kw)


def positive(model, *bns):
    "Scales of these layers positive: order is kept"
    model.positive = [model.get_submodule(b) for b in bns]
    return model


def negative(model, b):
    "The first scale negative: a maximum becomes a minimum"
    randomize_bn(model, zero=0.)
    m = model.get_submodule(b)
    m.weight.data[0] = -abs(m.weight.data[0]) - 0.1
    model.as_is = True
    return model


def centred(model, *bns):
    "No shift in these layers: beta = mean = 0"
    randomize_bn(model, zero=0.)
    for b in bns:
        m = model.get_submodule(b)
        m.running_mean.zero_(), m.bias.data.zero_()
    model.as_is = True
    return model


# ---------------------------------------------------------------- absorbers, backward
@case('bn')
def conv1d_bn(): return seq(conv=nn.Conv1d(3, 4, 3), bn=nn.BatchNorm1d(4), act=nn.ReLU()), sig()


@case('bn')
def conv2d_bn(): return seq(conv=conv(bias=False, padding=1), bn=bn(), act=nn.ReLU()), img()


@case('bn')
def conv3d_bn(): return seq(conv=nn.Conv3d(2, 4, 3), bn=nn.BatchNorm3d(4)), vol()


@case('bn')
def linear_bn(): return seq(lin=nn.Linear(6, 5), bn=nn.BatchNorm1d(5), act=nn.ReLU()), vec()


@case('bn')
def conv_transpose1d_bn(): return seq(conv=nn.ConvTranspose1d(3, 4, 3, stride=2), bn=nn.BatchNorm1d(4)), sig()


@case('bn')
def conv_transpose2d_groups_bn(): return seq(conv=nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), bn=bn(6)), img(4)


@case('bn')
def conv_transpose3d_bn(): return seq(conv=nn.ConvTranspose3d(2, 4, 2, bias=False), bn=nn.BatchNorm3d(4)), vol()


@case('bn')
def conv_groups_bn(): return seq(conv=conv(4, 6, groups=2, dilation=2), bn=bn(6)), img(4)


@case('bn bn2')
def depthwise_separable():
    return seq(dw=conv(4, 4, groups=4, padding=1, bias=False), bn=bn(), act=nn.ReLU6(), pw=conv(4, 6, 1), bn2=bn(6)), img(4)


@case('bn')
def same_padding(): return seq(conv=conv(padding='same'), bn=bn()), img()


@case('bn')
def channels_last(): return Fn(lambda s, x: s.bn(s.conv(x.to(memory_format=torch.channels_last))), conv=conv(), bn=bn()), img()


@case('bn')
def linear_on_channels_last_axis(): return Fn(lambda s, x: s.bn(s.lin(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), lin=nn.Linear(3, 4), bn=bn()), img()


@case('bn')
def linear_transposed_bn(): return Fn(lambda s, x: s.bn(s.lin(x.transpose(1, 2)).transpose(1, 2)), lin=nn.Linear(3, 4), bn=nn.BatchNorm1d(4)), sig()


@case(bn=('axis', 'channel'))
def linear_bn_3d(): return seq(lin=nn.Linear(9, 9), bn=nn.BatchNorm1d(3), act=nn.ReLU()), sig()


@case(bn=('axis', 'channel'))
def linear_bn_3d_square(): return seq(lin=nn.Linear(4, 4), bn=nn.BatchNorm1d(4), act=nn.ReLU()), sig(4, s=4)


@case('bn')
def functional_conv(): return Fn(lambda s, x: s.bn(F.conv2d(x, s.conv.weight, s.conv.bias, padding=1)), conv=conv(), bn=bn()), img()


@case('bn')
def own_conv_with_bias(): return seq(conv=FConv(3, 4, 3, True), bn=bn()), img()


@case(bn=('bias', 'shift'))
def own_conv_without_bias(): return seq(conv=FConv(3, 4, 3, False), bn=bn(), act=nn.ReLU()), img()


@case(bn=('bias', 'shift'))
def conv_ignores_bias(): return seq(conv=NoBiasConv(3, 4, 3, bias=False), bn=bn(), act=nn.ReLU()), img()


@case('bn')
def called_by_keyword(): return Fn(lambda s, x: s.bn(input=s.conv(input=x)), conv=conv(), bn=bn()), img()


@case('bn')
def under_no_grad():
    def f(s, x):
        with torch.no_grad(): y = s.conv(x)
        with torch.enable_grad(): return s.bn(y).detach()
    return Fn(f, conv=conv(), bn=bn()), img()


@case(may='bn')
def forward_called_directly(): return Fn(lambda s, x: s.bn.forward(s.conv.forward(x)), conv=conv(), bn=bn()), img()


@case(may='bn', refuse=True)
def forward_of_the_class(): return Fn(lambda s, x: nn.BatchNorm2d.forward(s.bn, s.conv(x)), conv=conv(), bn=bn()), img()


# ---------------------------------------------------------------- absorbers, forward
@case('bn')
def bn_conv(): return seq(act=nn.ReLU(), bn=bn(3), conv=conv(), end=nn.ReLU()), img()


@case(bn='pad')
def bn_conv_zero_padding(): return seq(act=nn.ReLU(), bn=bn(3), conv=conv(padding=1), end=nn.ReLU()), img()


@case('bn')
def bn_conv_zero_padding_no_shift(): return centred(seq(act=nn.ReLU(), bn=bn(3), conv=conv(padding=1)), 'bn'), img()


@case('bn0 bn1 bn2')
def bn_conv_other_paddings():
    mods = {}
    for i, mode in enumerate(('reflect', 'replicate', 'circular')):
        mods |= {f'act{i}': nn.ReLU(), f'bn{i}': bn(4), f'conv{i}': conv(4, padding=1, padding_mode=mode)}
    return seq(**mods, end=nn.ReLU()), img(4)


@case('bn')
def bn_groups_conv(): return seq(act=nn.ReLU(), bn=bn(4), conv=conv(4, 6, groups=2)), img(4)


@case('bn')
def bn_conv_transpose_1x1(): return seq(act=nn.ReLU(), bn=bn(4), conv=nn.ConvTranspose2d(4, 6, 1, groups=2)), img(4)


@case(bn=('pad', 'shift', 'border', 'edge', 'overlap'))
def bn_conv_transpose_stride(): return seq(act=nn.ReLU(), bn=bn(4), conv=nn.ConvTranspose2d(4, 6, 3, stride=2)), img(4)


@case('bn')
def bn_dropout_linear(): return seq(act=nn.ReLU(), bn=nn.BatchNorm1d(6), drop=nn.Dropout(0.5), lin=nn.Linear(6, 3)), vec()


@case('bn')
def bn_flatten_linear(): return seq(act=nn.ReLU(), bn=bn(3), flat=nn.Flatten(), lin=nn.Linear(48, 3)), img(s=4)


@case('bn1', bn2=('reads', 'output', 'ReLU'))
def bn_then_all_readers():
    f = lambda s, x: s.bn2(s.act(s.a(y) + s.b(y))) if (y := s.bn1(F.relu(x))) is not None else None
    return Fn(f, bn1=bn(3), a=conv(), b=conv(), act=nn.ReLU(), bn2=bn()), img()


@case(bn=('relu', 'also'))
def bn_one_reader_cannot(): return Fn(lambda s, x: s.a(y) + F.relu(y).mean() if (y := s.bn(F.relu(x))) is not None else 0, bn=bn(3), a=conv()), img()


@case(bn=('matmul', 'not', 'between', '@', 'T'))
def bn_matmul(): return Fn(lambda s, x: s.bn(F.relu(x)) @ s.lin.weight.t(), bn=nn.BatchNorm1d(6), lin=nn.Linear(6, 3)), vec()


@case(bn=('einsum',))
def bn_einsum(): return Fn(lambda s, x: torch.einsum('nc,oc->no', s.bn(F.relu(x)), s.lin.weight), bn=nn.BatchNorm1d(6), lin=nn.Linear(6, 3)), vec()


@case(bn=('attention', 'between', 'also'))
def bn_attention():
    return Fn(lambda s, x: s.att(y, y, y)[0] if (y := s.bn(F.relu(x)).transpose(1, 2)) is not None else 0,
              bn=nn.BatchNorm1d(4), att=nn.MultiheadAttention(4, 2, batch_first=True)), sig(4)


@case(bn=('lstm', 'between'))
def bn_lstm(): return Fn(lambda s, x: s.rnn(s.bn(F.relu(x)).transpose(1, 2))[0], bn=nn.BatchNorm1d(4), rnn=nn.LSTM(4, 3, batch_first=True)), sig(4)


# ---------------------------------------------------------------- two BatchNorms
@case('bn1 bn2')
def conv_bn_bn(): return seq(conv=conv(), bn1=bn(), bn2=bn(), act=nn.ReLU()), img()


@case(may='bn1 bn2', count=1)
def bn_bn_alone(): return seq(act=nn.ReLU(), bn1=bn(3), bn2=bn(3), end=nn.ReLU()), img()


@case('bn1', bn2=('output', 'input'))
def bn_pool_bn(): return seq(act=nn.ReLU(), bn1=bn(3), pool=nn.AvgPool2d(2), bn2=bn(3)), img()


# ---------------------------------------------------------------- carriers
def between(*mods, first=None, last=None): return seq(conv=first or conv(), **{f'c{i}': m for i, m in enumerate(mods)}, bn=last or bn(), act=nn.ReLU())


@case('bn')
def through_nothing(): return between(nn.Identity(), nn.Dropout(0.3), nn.Dropout2d(0.2), nn.AlphaDropout(0.1)), img()


@case('bn')
def through_functions():
    return Fn(lambda s, x: s.bn(F.dropout(s.conv(x), 0.3, s.training).clone().contiguous().detach().to(torch.float64)), conv=conv(), bn=bn()), img()


@case('bn')
def through_avg_pool(): return between(nn.AvgPool2d(2)), img()


@case('bn')
def through_functional_avg_pool(): return Fn(lambda s, x: s.bn(F.avg_pool2d(s.conv(x), 2)), conv=conv(), bn=bn()), img()


@case('bn')
def through_adaptive_pool(): return between(nn.AdaptiveAvgPool2d((2, 3))), img()


@case('bn')
def through_mean(): return Fn(lambda s, x: s.bn(s.conv(x).mean((2, 3))), conv=conv(), bn=nn.BatchNorm1d(4)), img()


@case('bn')
def through_mean_twice(): return Fn(lambda s, x: s.bn(torch.mean(s.conv(x), -1).mean(2)), conv=conv(), bn=nn.BatchNorm1d(4)), img()


@case(may='bn')
def through_sum(): return Fn(lambda s, x: s.bn(s.conv(x).sum((2, 3))), conv=conv(), bn=nn.BatchNorm1d(4)), img()


@case(bn=('pool', 'pad'))
def avg_pool_counts_padding(): return between(nn.AvgPool2d(3, 2, 1)), img()


@case(may='bn')
def avg_pool_without_counting(): return between(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), img()


@case(may='bn')
def avg_pool_ceil(): return between(nn.AvgPool2d(2, 2, ceil_mode=True)), img(s=9)


@case(bn=('pool', 'divisor', 'between'))
def avg_pool_divisor(): return between(nn.AvgPool2d(2, divisor_override=3)), img()


@case('bn')
def through_max_pool(): return positive(between(nn.MaxPool2d(3, 2, 1)), 'bn'), img()


@case('bn')
def through_functional_max_pool(): return positive(Fn(lambda s, x: s.bn(F.max_pool2d(s.conv(x), 2)), conv=conv(), bn=bn()), 'bn'), img()


@case(bn=('max', 'negative'))
def max_pool_negative(): return negative(between(nn.MaxPool2d(2)), 'bn'), img()


@case(may='bn')
def max_over_positions(): return positive(Fn(lambda s, x: s.bn(s.conv(x).amax((2, 3))), conv=conv(), bn=nn.BatchNorm1d(4)), 'bn'), img()


@case('bn')
def through_upsample(): return between(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode='bilinear')), img()


@case('bn')
def through_interpolate():
    return Fn(lambda s, x: s.bn(F.interpolate(s.conv(x), size=(5, 7), mode='bilinear', align_corners=True)), conv=conv(), bn=bn()), img()


@case('bn')
def through_flatten(): return between(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last=nn.BatchNorm1d(4)), img()


@case(bn=('channel', 'position', 'same'))
def flatten_many(): return between(nn.Flatten(), last=nn.BatchNorm1d(16)), img(s=4)


@case('bn')
def through_views():
    return Fn(lambda s, x: s.bn(torch.flatten(F.adaptive_avg_pool2d(s.conv(x), 1), 1).view(x.shape[0], -1).reshape(-1, 4)), conv=conv(), bn=nn.BatchNorm1d(4)), img()


@case('bn')
def through_permutes(): return Fn(lambda s, x: s.bn(s.conv(x).permute(0, 2, 3, 1).flip(1).movedim(3, 1).transpose(2, 3)), conv=conv(), bn=bn()), img()


@case('bn')
def through_channel_shuffle():
    return Fn(lambda s, x: s.bn(s.conv(x).view(-1, 2, 2, 6, 6).transpose(1, 2).reshape(-1, 4, 6, 6)), conv=conv(), bn=bn()), img()


@case('bn')
def through_channel_shuffle_module(): return between(nn.ChannelShuffle(2)), img()


@case('bn')
def through_pixel_shuffle(): return between(nn.PixelShuffle(2), first=conv(3, 16), last=bn(4)), img()


@case('bn')
def pixel_unshuffle_forward(): return seq(act=nn.ReLU(), bn=bn(3), un=nn.PixelUnshuffle(2), conv=conv(12, 4)), img()


@case(bn=('channel', 'pixel', 'position', 'same', 'axis'))
def pixel_shuffle_forward(): return seq(act=nn.ReLU(), bn=bn(12), un=nn.PixelShuffle(2), conv=conv(3, 4)), img(12)


@case('bn')
def through_reshape_as(): return Fn(lambda s, x: s.bn(s.conv(x).flatten(1).reshape_as(x)), conv=conv(3, 3, padding=1), bn=bn(3)), img()


@case('bn')
def shape_of_the_layers_own_output():
    "LeViT's linear layer: its output is read once more, for its shape alone"
    return Fn(lambda s, x: F.hardswish(s.bn(y.flatten(0, 1)).reshape_as(y)) if (y := s.lin(x)) is not None else 0, lin=nn.Linear(4, 4), bn=nn.BatchNorm1d(4)), sig(3, s=4)


@case('bn')
def view_of_the_layers_own_output(): return Fn(lambda s, x: F.relu(s.bn(y.flatten(2)).view_as(y).expand_as(y)) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=nn.BatchNorm1d(4)), img()


@case('bn')
def through_index(): return Fn(lambda s, x: s.bn(s.conv(x)[:, [2, 0], 1:, ::2]), conv=conv(), bn=bn(2)), img()


@case('bn')
def through_expand(): return Fn(lambda s, x: s.bn(s.conv(x).mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)), conv=conv(), bn=bn()), img()


@case(bn=('channel', 'same', 'differ'))
def repeat_channels(): return Fn(lambda s, x: s.bn(s.conv(x).repeat(1, 2, 1, 1)), conv=conv(), bn=bn(8)), img()


@case('bn')
def repeat_channels_forward(): return Fn(lambda s, x: s.conv(s.bn(F.relu(x)).repeat(1, 2, 1, 1)), conv=conv(6), bn=bn(3)), img()


@case('bn')
def through_unbind_stack(): return Fn(lambda s, x: s.bn(torch.stack(s.conv(x).unbind(2), 2)), conv=conv(), bn=bn()), img()


@case('bn')
def cat_of_convs(): return Fn(lambda s, x: s.bn(torch.cat([s.a(x), s.b(x)], 1)), a=conv(), b=conv(3, 2), bn=bn(6)), img()


@case('bn')
def cat_of_convs_then_pool(): return Fn(lambda s, x: s.bn(F.avg_pool2d(torch.cat((s.a(x), s.b(x)), dim=1), 2)), a=conv(), b=conv(3, 2), bn=bn(6)), img()


@case(bn=('relu', 'between'))
def cat_one_branch_cannot(): return Fn(lambda s, x: F.relu(s.bn(torch.cat([s.a(x), F.relu(s.b(x))], 1))), a=conv(), b=conv(3, 2), bn=bn(6)), img()


@case('bn')
def chunk_forward(): return Fn(lambda s, x: s.a(y[0]) + s.b(y[1]) if (y := s.bn(F.relu(x)).chunk(2, 1)) else 0, a=conv(2), b=conv(2), bn=bn(4)), img(4)


@case('bn')
def split_and_cat(): return Fn(lambda s, x: s.bn(torch.cat(s.conv(x).split([1, 3], 1)[::-1], 1)), conv=conv(), bn=bn()), img()


@case(may='bn1 bn2')
def chunk_to_two_bns(): return Fn(lambda s, x: s.bn1(y[0]) * s.bn2(y[1]).sigmoid() if (y := s.conv(x).chunk(2, 1)) else 0, conv=conv(), bn1=bn(2), bn2=bn(2)), img()


@case(bn=('pad',))
def zero_pad_between(): return Fn(lambda s, x: s.conv(F.pad(s.bn(F.relu(x)), (1, 1, 1, 1))), bn=bn(3), conv=conv()), img()


@case(bn=('pad',))
def constant_pad_between(): return seq(act=nn.ReLU(), bn=bn(3), pad=nn.ConstantPad2d(1, 0.7), conv=conv()), img()


@case('bn')
def reflection_pad_between(): return seq(act=nn.ReLU(), bn=bn(3), pad=nn.ReflectionPad2d(1), pad2=nn.ReplicationPad2d(1), conv=conv()), img()


@case('bn')
def circular_pad_function(): return Fn(lambda s, x: s.conv(F.pad(s.bn(F.relu(x)), (1, 1, 1, 1), 'circular')), bn=bn(3), conv=conv()), img()


@case('bn')
def concat_pooling():
    f = lambda s, x: s.lin(s.drop(s.bn(torch.cat([s.mx(y), s.av(y)], 1).flatten(1)))) if (y := F.relu(s.conv(x))) is not None else 0
    return Fn(f, conv=conv(), mx=nn.AdaptiveMaxPool2d(1), av=nn.AdaptiveAvgPool2d(1), bn=nn.BatchNorm1d(8), drop=nn.Dropout(), lin=nn.Linear(8, 3)), img()


@case('bn0 bn')
def bn_before_concat_pooling():
    f = lambda s, x: s.lin(s.bn(torch.cat([s.mx(y), s.av(y)], 1).flatten(1))) if (y := s.bn0(F.relu(s.conv(x)))) is not None else 0
    return positive(Fn(f, conv=conv(), bn0=bn(), mx=nn.AdaptiveMaxPool2d(1), av=nn.AdaptiveAvgPool2d(1), bn=nn.BatchNorm1d(8), lin=nn.Linear(8, 3)), 'bn0'), img()


@case(bn='relu')
def relu_between(): return between(nn.ReLU(inplace=True)), img()


@case(may='bn')
def add_between(): return Fn(lambda s, x: F.relu(s.bn(s.a(x) + s.b(x))), a=conv(), b=conv(), bn=bn()), img()


@case(bn=('mul', '*'))
def mul_between(): return Fn(lambda s, x: F.relu(s.bn(s.a(x) * s.b(x))), a=conv(), b=conv(), bn=bn()), img()


@case(bn=('where',))
def where_between(): return Fn(lambda s, x: F.relu(s.bn(torch.where(y > 0, y, 0.1 * y))) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('where', 'also', '>', 'gt'))
def where_condition(): return Fn(lambda s, x: torch.where(y > 0, s.bn(y), x[:, :1, 1:-1, 1:-1]) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('dropout', 'random', 'training'))
def dropout_that_drops(): return Fn(lambda s, x: F.relu(s.bn(F.dropout(s.conv(x), 0.5, training=True))), conv=conv(), bn=bn()), img()


@case(may='bn')
def scaled_by_a_number(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x) * 2 + 1)), conv=conv(), bn=bn()), img()


@case(bn=('sort', 'between', 'argsort'))
def sorted_between(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x).sort(1)[0])), conv=conv(), bn=bn()), img()


@case(bn=('layer', 'norm', 'between'))
def layer_norm_between(): return between(nn.GroupNorm(2, 4)), img()


@case(may='bn')
def blur_pool():
    def f(s, x): return s.bn(F.conv2d(F.pad(s.conv(x), (1, 1, 1, 1), 'reflect'), s.k, groups=4, stride=2))
    m = Fn(f, conv=conv(), bn=bn())
    m.register_buffer('k', torch.ones(4, 1, 3, 3) / 9)
    return m, img()


# ---------------------------------------------------------------- readers
@case(bn=('also', 'output', 'add'))
def conv_read_twice(): return Fn(lambda s, x: F.relu(s.bn(y)) + y if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case('bn')
def other_reader_takes_the_inverse(): return Fn(lambda s, x: F.relu(s.bn(y))[:, :2, 2:-2, 2:-2] + s.conv2(y)[:, :2, 1:-1, 1:-1] if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn(), conv2=conv(4, 4)), img()


@case(bn=('pad', 'also'))
def other_reader_pads(): return Fn(lambda s, x: F.relu(s.bn(y)) + s.conv2(y) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn(), conv2=conv(4, 4, padding=1)), img()


@case(bn=('output',))
def conv_is_output(): return Fn(lambda s, x: (F.relu(s.bn(y)), y) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('output',))
def bn_is_output_and_read(): return Fn(lambda s, x: dict(mid=y, end=[s.conv(y)]) if (y := s.bn(F.relu(x))) is not None else 0, conv=conv(), bn=bn(3)), img()


@case(bn=('output', 'also'))
def view_of_conv_is_output(): return Fn(lambda s, x: (y[:, :1], F.relu(s.bn(y))) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('output', 'also'))
def detached_conv_is_output(): return Fn(lambda s, x: (y.detach(), F.relu(s.bn(y))) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case('bn')
def conv_read_for_its_shape(): return Fn(lambda s, x: F.relu(s.bn(y)) * y.shape[1] + y.size(2) + y.dim() + y.numel() if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(may='bn')
def conv_read_for_its_likes(): return Fn(lambda s, x: s.bn(y) + torch.ones_like(y) + y.new_zeros(1) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * x
    @staticmethod
    def backward(ctx, g): return g


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return torch.from_numpy(x.detach().numpy() ** 2)
    @staticmethod
    def backward(ctx, g): return g


@case(bn=('also', 'read', 'Square', 'mul'))
def autograd_function_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + Square.apply(y) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def opaque_function_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + Opaque.apply(y) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def autograd_function_between(): return Fn(lambda s, x: F.relu(s.bn(Square.apply(s.conv(x)))), conv=conv(), bn=bn()), img()


@torch.jit.script
def scripted(x): return torch.relu(x) + 1


@case(bn=('',))
def scripted_function_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + scripted(y) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def scripted_function_between(): return Fn(lambda s, x: F.relu(s.bn(scripted(s.conv(x)))), conv=conv(), bn=bn()), img()


@case('bn1 bn2', mid__1='script')
def script_module_between():
    return seq(conv=conv(), bn1=bn(), mid=torch.jit.script(nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU()).eval()), bn2=bn(), conv2=conv(4)), img(s=10)


@case(bn=('',))
def script_module_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + s.sc(y) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn(), sc=torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1)))), img()


@case(bn=('',))
def numpy_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + torch.from_numpy(y.numpy() ** 2) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def item_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) * (1 + abs(y.mean().item())) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def tolist_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + sum(y[0, :, 0, 0].tolist()) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def data_alias_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + y.data.abs() if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(may='bn')
def value_kept_on_the_module():
    def f(s, x):
        s.last = s.conv(x)
        z = F.relu(s.bn(s.last))
        return z + s.last.mean()
    return Fn(f, conv=conv(), bn=bn()), img()


@case('d0.n2 d1.n2', d0__n1=('also', 'pad', 'relu'), d1__n1=('also', 'relu', 'between', 'cat'))
def dense_block():
    class Layer(nn.Module):
        def __init__(self, i):
            super().__init__()
            self.n1, self.c1, self.n2, self.c2 = bn(i), conv(i, 4, 1, bias=False), bn(4), conv(4, 2, padding=1, bias=False)

        def forward(self, fs): return self.c2(F.relu(self.n2(self.c1(F.relu(self.n1(torch.cat(fs, 1)))))))

    def f(s, x):
        fs = [x]
        for d in (s.d0, s.d1): fs.append(d(fs))
        return torch.cat(fs, 1)
    return Fn(f, d0=Layer(3), d1=Layer(5)), img()


@case('bn')
def list_cleared_after_cat():
    def f(s, x):
        parts = [s.a(x), s.b(x)]
        y = torch.cat(parts, 1)
        parts.clear()
        parts.append(F.relu(x))
        return F.relu(s.bn(y)).mean() + parts[0].mean()
    return Fn(f, a=conv(), b=conv(), bn=bn(8)), img()


@case(bn=('',))
def freed_values_reuse_ids():
    def f(s, x):
        out = 0
        for i in range(6):
            y = s.conv(x + i)
            out = out + y.mean()
            del y
            z = torch.sin(x[:, :1]).expand(-1, 4, -1, -1) * 1.
            out = out + F.relu(s.bn(z)).mean()
            del z
        return out
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',), refuse=True)
def threads():
    def f(s, x):
        with ThreadPoolExecutor(1) as ex: z = ex.submit(lambda: y.abs()).result() if (y := s.conv(x)) is not None else 0
        return F.relu(s.bn(y)) + z
    return Fn(f, conv=conv(), bn=bn()), img()


@case(may='bn')
def threads_all():
    def f(s, x):
        out = []
        t = threading.Thread(target=lambda: out.append(s.bn(s.conv(x)).detach()))
        t.start(), t.join()
        return out[0]
    return Fn(f, conv=conv(), bn=bn()), img()


@case(may='bn')
def checkpointed(): return Fn(lambda s, x: checkpoint(lambda v: s.bn(s.conv(v)), x, use_reentrant=False), conv=conv(), bn=bn()), img()


@case(may='bn')
def vmapped(): return Fn(lambda s, x: s.bn(torch.vmap(lambda v: s.conv(v[None])[0])(x)), conv=conv(), bn=bn()), img()


# ---------------------------------------------------------------- writing in place
@case(bn=('',))
def written_between(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x).relu_())), conv=conv(), bn=bn()), img()


@case(bn=('',))
def slice_written():
    def f(s, x):
        y = s.conv(x)
        y[:, :1] = 0.3
        return F.relu(s.bn(y))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',))
def view_written():
    def f(s, x):
        y = s.conv(x)
        v = y.view(x.shape[0], -1)
        v.abs_()
        return F.relu(s.bn(y))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',))
def base_written_after_view():
    def f(s, x):
        y = s.conv(x)
        v = y[:, :2]
        y.abs_()
        return F.relu(s.bn(v))
    return Fn(f, conv=conv(), bn=bn(2)), img()


@case(bn=('',))
def detached_written():
    def f(s, x):
        y = s.conv(x)
        y.detach().abs_()
        return F.relu(s.bn(y))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',))
def data_written():
    def f(s, x):
        y = s.conv(x)
        y.data.abs_()
        return F.relu(s.bn(y))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',))
def out_written():
    def f(s, x):
        y = s.conv(x)
        torch.abs(y, out=y)
        return F.relu(s.bn(y))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',))
def foreach_written():
    def f(s, x):
        y = s.conv(x)
        torch._foreach_abs_([y])
        return F.relu(s.bn(y))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',))
def numpy_written():
    def f(s, x):
        y = s.conv(x).detach()
        a = y.numpy()
        a[:] = abs(a)
        return F.relu(s.bn(y))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',))
def scripted_written():
    return Fn(lambda s, x: (abs_in_place(y), F.relu(s.bn(y)))[1] if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@torch.jit.script
def abs_in_place(x: torch.Tensor): x.abs_()


@case(bn=('',))
def written_after_bn_output():
    def f(s, x):
        y = s.bn(F.relu(x))
        z = y[:, :1]
        z.abs_()
        return s.conv(y)
    return Fn(f, conv=conv(), bn=bn(3)), img()


@case('bn')
def inplace_relu_after(): return seq(conv=conv(), bn=bn(), act=nn.ReLU(inplace=True), conv2=conv(4)), img()


@case('bn')
def inplace_add_after():
    def f(s, x):
        y = s.bn(s.conv(x))
        y += x
        return F.relu_(y)
    return Fn(f, conv=conv(3, 3, padding=1), bn=bn(3)), img()


@case(may='bn')
def inplace_kept_apart():
    "The write comes to a BatchNorm's own output; folded, the same storage is the convolution's, read before"
    def f(s, x):
        y = s.conv(x)
        shape = y.shape
        z = s.bn(y)
        z.mul_(2)
        return z + y.new_ones(shape)
    return Fn(f, conv=conv(), bn=bn()), img()


@case(may='bn')
def identity_aliases_input():
    "BatchNorm copies, Identity does not: the in-place write after it must not reach its input's other readers"
    def f(s, x):
        y = F.relu(x)
        z = s.bn(y)
        w = s.conv(z)
        z.zero_()
        return w.mean() + y.mean()
    return Fn(f, conv=conv(), bn=bn(3)), img()


@case(may='bn')
def identity_aliases_model_input():
    "Folded forward, the BatchNorm on the input turns Identity and a later in-place write reaches the user's batch"
    def f(s, x):
        z = s.bn(x)
        w = s.conv(z)
        z.zero_()
        return w + x.mean()
    return Fn(f, conv=conv(), bn=bn(3)), img()


@case('bn')
def writes_into_its_input(): return seq(act=nn.ReLU(inplace=True), conv=conv(), bn=bn()), img()


@case('bn')
def shifts_its_input(): return Fn(lambda s, x: s.bn(s.conv(x.sub_(0.5).mul_(2))), conv=conv(), bn=bn()), img()


# ---------------------------------------------------------------- sharing
@case(bn=('shared', 'called', 'twice', 'read', 'used', 'also'))
def shared_conv(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x))) + s.conv(x * 2), conv=conv(), bn=bn()), img()


@case(bn=('called', 'twice', 'times', 'input of the model'))
def shared_bn(): return Fn(lambda s, x: F.relu(s.bn(s.a(x))) + F.relu(s.bn(x)), a=conv(3, 3, padding=1), bn=bn(3)), img()


@case(may='bn')
def siamese(): return Fn2(lambda s, x, y: (F.relu(s.bn(s.conv(x))) - F.relu(s.bn(s.conv(y)))).abs(), conv=conv(), bn=bn()), img() + img()


@case(may='bn')
def recurrent_loop():
    def f(s, x):
        for _ in range(3): x = F.relu(s.bn(s.conv(x)))
        return x
    return Fn(f, conv=conv(3, 3, padding=1), bn=bn(3)), img()


@case(a__1=('shared', 'called', 'twice', 'tied', 'registered'), may='a.1')
def shared_container():
    a = nn.Sequential(conv(3, 3, padding=1), bn(3))
    m = Fn(lambda s, x: s.a(F.relu(s.b(x)) * 2), a=a)
    m.b = a
    return m, img()


@case(may='bn')
def registered_twice():
    m = Fn(lambda s, x: F.relu(s.bn(s.conv(x))), conv=conv(), bn=bn())
    m.layers = nn.ModuleList([m.conv, m.bn])
    return m, img()


@case(bn1=('shared', 'tied'), bn2=('shared', 'tied'))
def tied_weights():
    m = Fn(lambda s, x: F.relu(s.bn1(s.a(x))) + F.relu(s.bn2(s.b(x))), a=conv(), b=conv(), bn1=bn(), bn2=bn())
    m.b.weight = m.a.weight
    return m, img()


@case(may='bn1 bn2')
def tied_bias():
    m = Fn(lambda s, x: F.relu(s.bn1(s.a(x))) + s.b(x), a=conv(), b=conv(), bn1=bn(), bn2=bn())
    m.b.bias = m.a.bias
    return m, img()


@case('bn1 bn2')
def tied_bn_weights():
    m = Fn(lambda s, x: F.relu(s.bn1(s.a(x))) + F.relu(s.bn2(s.b(x))), a=conv(), b=conv(), bn1=bn(), bn2=bn())
    m.bn2.weight, m.bn2.bias = m.bn1.weight, m.bn1.bias
    return m, img()


@case(bn=('shared', 'tied'))
def tied_to_embedding():
    m = Fn(lambda s, x: s.dec(s.bn(F.relu(s.emb(x).mean(1)))), emb=nn.Embedding(10, 6), bn=nn.BatchNorm1d(6), dec=nn.Linear(6, 10))
    m.dec.weight = m.emb.weight
    return m, [torch.randint(0, 10, (4, 7))]


@case(bn=('weight', 'read', 'shared', 'also'))
def weight_read_elsewhere(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x))) + s.conv.weight.abs().sum(), conv=conv(), bn=bn()), img()


@case(bn=('weight', 'read', 'shared', 'also'))
def weight_is_output(): return Fn(lambda s, x: (F.relu(s.bn(s.conv(x))), s.conv.weight), conv=conv(), bn=bn()), img()


@case(bn=('bias', 'read', 'shared', 'also'))
def bias_read_elsewhere(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x))) + s.conv.bias.abs().sum(), conv=conv(), bn=bn()), img()


@case(bn=('',), refuse=True)
def bn_weight_read_elsewhere(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x))) + s.bn.weight.abs().sum(), conv=conv(), bn=bn()), img()


@case(bn=('',), refuse=True)
def bn_buffer_read_elsewhere(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x))) + s.bn.running_mean.sum(), conv=conv(), bn=bn()), img()


@case(may='bn', refuse=True)
def bn_attribute_read(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x))) * s.bn.num_features, conv=conv(), bn=bn()), img()


@case(may='bn', refuse=True)
def conv_bias_asked_for(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x))) * (1 if s.conv.bias is None else 2), conv=conv(bias=False), bn=bn()), img()


@case(may='layers.1')
def bn_found_by_class():
    def f(s, x):
        for m in s.layers: x = m(x) if isinstance(m, (nn.BatchNorm2d, nn.Conv2d)) else x
        return x
    return Fn(f, layers=nn.ModuleList([conv(), bn()])), img()


@case()
def bn_not_registered():
    m = Fn(lambda s, x: F.relu(s.hidden[0](s.conv(x))), conv=conv())
    b = bn().double().eval()
    randomize_bn(b)
    m.hidden = [b]
    return m, img()


@case(bn=('reach', 'never', 'not called'))
def bn_not_reached(): return Fn(lambda s, x: s.conv(x), conv=conv(), bn=bn()), img()


# ---------------------------------------------------------------- order, names, nesting
@case('bn')
def registered_in_reverse(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x))), bn=bn(), conv=conv()), img()


@case(bn=('',))
def neighbours_by_name_only(): return Fn(lambda s, x: F.relu(s.bn(F.relu(s.conv(x)))) + s.other(x), conv=conv(), bn=bn(), other=conv()), img()


@case('bn1 bn2')
def crossed(): return Fn(lambda s, x: F.relu(s.bn2(s.a(x))) + F.relu(s.bn1(s.b(x))), a=conv(), bn1=bn(), b=conv(), bn2=bn()), img()


@case('body.0.unit.bn head.x.y.bn')
def nested_deep():
    u = lambda i: nn.ModuleDict(dict(conv=conv(i), bn=bn()))
    m = Fn(lambda s, x: s.head['x']['y']['bn'](s.head['x']['y']['conv'](F.relu(s.body[0]['unit']['bn'](s.body[0]['unit']['conv'](x))))))
    m.body, m.head = nn.ModuleList([nn.ModuleDict(dict(unit=u(3)))]), nn.ModuleDict(dict(x=nn.ModuleDict(dict(y=u(4)))))
    return m, img()


@case('bn1 bn2')
def residual(): return Fn(lambda s, x: F.relu(s.bn2(s.b(F.relu(s.bn1(s.a(x))))) + x), a=conv(3, 3, padding=1), bn1=bn(3), b=conv(3, 3, padding=1), bn2=bn(3)), img()


@case('bn1 bn3', may='bn0')
def repvgg(): return Fn(lambda s, x: F.relu(s.bn3(s.c3(y)) + s.bn1(s.c1(y)) + s.bn0(y)) if (y := F.relu(x)) is not None else 0, c3=conv(3, 3, padding=1, bias=False), bn3=bn(3), c1=conv(3, 3, 1, bias=False), bn1=bn(3), bn0=bn(3)), img()


@case('bn_cont bn1')
def tabular():
    f = lambda s, cat, cont: s.out(s.bn1(F.relu(s.lin(s.drop(torch.cat([s.emb(cat[:, 0]), s.bn_cont(cont)], 1))))))
    m = Fn2(f, emb=nn.Embedding(7, 3), bn_cont=nn.BatchNorm1d(4), drop=nn.Dropout(0.1), lin=nn.Linear(7, 8, bias=False), bn1=nn.BatchNorm1d(8), out=nn.Linear(8, 2))
    return m, [torch.randint(0, 7, (6, 1)), torch.randn(6, 4, dtype=torch.float64)]


@case('down.1', bn=('also', 'relu', 'pad', 'between'))
def unet_skip_by_hook():
    m = Fn(lambda s, x: s.last(F.relu(s.bn(torch.cat([s.up(s.down(x)), s.stored], 1)))), down=nn.Sequential(conv(3, 4, padding=1), bn(), nn.ReLU(), nn.MaxPool2d(2)),
           up=nn.ConvTranspose2d(4, 4, 2, stride=2), bn=bn(8), last=conv(8, 2, 1))
    m.down[2].register_forward_hook(Store(m))
    return m, img()


class Store:
    "A hook that keeps what it sees on the model"
    def __init__(self, m): self.m = [m]
    def __call__(self, mod, args, out): self.m[0].stored = out


Point = collections.namedtuple('Point', 'a b')


@case('bn')
def named_tuple_output(): return Fn(lambda s, x: Point(s.bn(s.conv(x)), dict(n=3, s='text', none=None)), conv=conv(), bn=bn()), img()


@case('bn')
def dict_input(): return Fn(lambda s, b: s.bn(s.conv(b['x'])) + b['more'][0].mean(), conv=conv(), bn=bn()), [dict(x=img()[0], more=[img()[0]])]


@case('bn')
def batch_in_a_list(): return Fn(lambda s, xs: s.bn(s.conv(torch.cat(xs, 1))), conv=conv(6), bn=bn()), [[img()[0], img()[0]]]


# ---------------------------------------------------------------- hooks, parametrizations
def hooked(mod, hook, pre=False, **mods):
    m = seq(**mods)
    t = m.get_submodule(mod)
    (t.register_forward_pre_hook if pre else t.register_forward_hook)(hook)
    return m


@case(bn=('hook', 'mul'))
def hook_on_conv(): return hooked('conv', lambda m, i, o: o * 2, conv=conv(), bn=bn(), act=nn.ReLU()), img()


@case(bn='hook')
def hook_on_bn(): return hooked('bn', lambda m, i, o: None, conv=conv(), bn=bn(), act=nn.ReLU()), img()


@case(bn='hook')
def pre_hook_on_bn(): return hooked('bn', lambda m, i: (i[0].abs(),), True, conv=conv(), bn=bn(), act=nn.ReLU()), img()


@case(bn='hook')
def pre_hook_on_next(): return hooked('conv', lambda m, i: None, True, act=nn.ReLU(), bn=bn(3), conv=conv()), img()


@case(bn=('hook', 'between', 'abs'))
def hook_on_dropout_between(): return hooked('drop', lambda m, i, o: o.abs(), conv=conv(), drop=nn.Dropout(), bn=bn(), act=nn.ReLU()), img()


@case(bn=('hook', 'between', 'numpy', ''))
def opaque_hook_between(): return hooked('drop', lambda m, i, o: torch.from_numpy(abs(o.numpy())), conv=conv(), drop=nn.Dropout(), bn=bn(), act=nn.ReLU()), img()


@case('bn')
def hook_further_on(): return hooked('act', lambda m, i, o: o * 2, conv=conv(), bn=bn(), act=nn.ReLU()), img()


@case(bn=('hook', 'mul', 'between'))
def hook_on_container(): return hooked('box', lambda m, i, o: o.abs() * 2, box=nn.Sequential(conv()), bn=bn(), act=nn.ReLU()), img()


@case(may='bn')
def backward_hook():
    m = seq(conv=conv(), bn=bn(), act=nn.ReLU())
    m.conv.register_full_backward_hook(lambda m, a, b: None)
    return m, img()


@case(bn=('parametri', 'norm'))
def weight_norm(): return seq(conv=parametrizations.weight_norm(conv()), bn=bn(), act=nn.ReLU()), img()


@case(bn=('parametri', 'norm'))
def spectral_norm(): return seq(conv=parametrizations.spectral_norm(conv()), bn=bn(), act=nn.ReLU()), img()


@case(bn=('parametri', 'norm', 'computed', 'hook'))
def weight_norm_old(): return seq(conv=torch.nn.utils.weight_norm(conv()), bn=bn(), act=nn.ReLU()), img()


@case(bn=('parametri', 'norm', 'computed', 'hook'))
def spectral_norm_old(): return seq(conv=torch.nn.utils.spectral_norm(conv()), bn=bn(), act=nn.ReLU()), img()


@case(bn=('parametri',))
def parametrized_bias():
    c = conv()
    parametrize.register_parametrization(c, 'bias', Twice())
    return seq(conv=c, bn=bn(), act=nn.ReLU()), img()


@case(bn=('parametri',))
def parametrized_bn():
    b = bn()
    parametrize.register_parametrization(b, 'weight', Twice())
    return seq(conv=conv(), bn=b, act=nn.ReLU()), img()


@case(bn=('prun', 'computed', 'hook', 'parameter', 'mask'))
def pruned():
    c = conv()
    prune.random_unstructured(c, 'weight', 0.5)
    return seq(conv=c, bn=bn(), act=nn.ReLU()), img()


@case(bn=('weight', 'computed', 'parameter'))
def weight_standardised(): return seq(conv=StdConv(3, 4, 3), bn=bn(), act=nn.ReLU()), img()


@case(bn=('weight', 'read', 'also', 'shared', 'GainConv'))
def gain_of_weight(): return seq(conv=GainConv(3, 4, 3), bn=bn(), act=nn.ReLU()), img()


@case(bn=('weight', 'computed', 'parameter'))
def weight_cast(): return Fn(lambda s, x: F.relu(s.bn(F.conv2d(x, s.conv.weight * s.g, s.conv.bias))), conv=conv(), g=nn.Parameter(torch.tensor(1.3)), bn=bn()), img()


@case(bn=('weight', 'buffer', 'parameter'))
def weight_is_buffer():
    m = Fn(lambda s, x: F.relu(s.bn(F.conv2d(x, s.w, s.b))), bn=bn())
    m.register_buffer('w', torch.randn(4, 3, 3, 3)), m.register_buffer('b', torch.randn(4))
    return m, img()


@case(bn=('weight', 'parameter', 'shared', 'view', 'computed', 'part'))
def weight_sliced(): return Fn(lambda s, x: F.relu(s.bn(F.conv2d(x, s.conv.weight[:4], s.conv.bias[:4]))), conv=conv(3, 6), bn=bn()), img()


@case(bn=('',))
def weight_written_in_forward():
    def f(s, x):
        with torch.no_grad(): s.conv.weight.clamp_(-0.1, 0.1)
        return F.relu(s.bn(s.conv(x)))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',), refuse=True)
def statistics_written_in_forward():
    def f(s, x):
        with torch.no_grad(): s.bn.running_mean.fill_(0.2)
        return F.relu(s.bn(s.conv(x)))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('',), may='bn')
def copied_conv():
    import copy
    return Fn(lambda s, x: F.relu(s.bn(copy.deepcopy(s.conv)(x))), conv=conv(), bn=bn()), img()


@case(may='bn')
def functional_call():
    def f(s, x): return F.relu(s.bn(torch.func.functional_call(s.conv, {'weight': s.conv.weight * 2}, (x,))))
    return Fn(f, conv=conv(), bn=bn()), img()


# ---------------------------------------------------------------- BatchNorm classes
@case(bn=('batch statistics',))
def batch_statistics(): return seq(conv=conv(), bn=bn(track_running_stats=False), act=nn.ReLU()), img()


@case('bn')
def no_affine(): return seq(conv=conv(), bn=bn(affine=False)), img()


@case('bn')
def no_momentum(): return seq(conv=conv(), bn=bn(momentum=None, eps=0.1)), img()


@case('bn')
def frozen():
    from torchvision.ops import FrozenBatchNorm2d
    return seq(conv=conv(), bn=FrozenBatchNorm2d(4, eps=1e-3), act=nn.ReLU()), img()


@case('bn bn2')
def timm_bn_act():
    from timm.layers import BatchNormAct2d
    return seq(conv=conv(), bn=BatchNormAct2d(4), conv2=conv(4), bn2=BatchNormAct2d(4, apply_act=False)), img()


@case(bn=('relu', 'act', 'silu'))
def timm_bn_act_forward():
    from timm.layers import BatchNormAct2d
    return seq(act=nn.ReLU(), bn=BatchNormAct2d(3, act_layer=nn.SiLU), conv=conv()), img()


@case('bn')
def timm_frozen_bn_act():
    from timm.layers import FrozenBatchNormAct2d
    return seq(conv=conv(), bn=FrozenBatchNormAct2d(4)), img()


@case('bn')
def sync_bn(): return seq(conv=conv(), bn=nn.SyncBatchNorm(4)), img()


@case('bn')
def lazy_bn():
    m = seq(conv=nn.LazyConv2d(4, 3), bn=nn.LazyBatchNorm2d())
    m.train()(torch.randn(2, 3, 8, 8))
    return m, img()


@case('bn')
def instance_norm_stays(): return seq(conv=conv(), bn=bn(), norm=nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), img()


@case(bn=('OddBN2d',))
def unknown_subclass(): return seq(conv=conv(), bn=OddBN2d(4)), img()


@case('bn')
def unknown_harmless_subclass(): return seq(conv=conv(), bn=SameBN2d(4)), img()


@case('bn')
def unknown_subclass_with_a_check(): return seq(conv=conv(), bn=CheckedBN(4)), img()


@case(bn=('DoubledBN2d',))
def unknown_subclass_with_other_weights(): return seq(conv=conv(), bn=DoubledBN2d(4)), img()


@case(bn=('OtherEpsBN2d',))
def unknown_subclass_with_other_eps(): return seq(conv=conv(), bn=OtherEpsBN2d(4)), img()


@case(bn=('another way',))
def unknown_subclass_that_decides(): return seq(conv=conv(), bn=NarrowBN2d(4)), img()


@case(bn=('WritesBN2d',))
def unknown_subclass_that_writes(): return seq(conv=conv(), bn=WritesBN2d(4)), img()


class FillsByWeight(nn.Module):
    "Makes anchors: only the dtype is asked of the features, the number comes from a weight"
    def __init__(self):
        super().__init__()
        self.conv, self.stride = conv(4), torch.tensor([8.])

    def forward(self, x):
        y = self.conv(x)
        return y.flatten(2) * y.new_full((y.shape[2] * y.shape[3],), self.stride[0])


@case('bn')
def number_of_a_weight_fills(): return Fn(lambda s, x: s.head(F.relu(s.bn(s.conv(x)))), conv=conv(), bn=bn(), head=FillsByWeight()), img()


class FillsByFeatures(FillsByWeight):
    "The number comes from the features"
    def forward(self, x):
        y = self.conv(x)
        return y.flatten(2) * y.new_full((y.shape[2] * y.shape[3],), y.max())


@case(bn=('another way',))
def number_of_the_features_fills(): return Fn(lambda s, x: s.head.forward(F.relu(x)) + s.bn(s.head.conv(F.relu(x))).flatten(2), bn=bn(), head=FillsByFeatures()), img(4)


class TidiesUp(nn.Module):
    "Decides, and lays out the weights of an LSTM"
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        self.lstm.flatten_parameters()
        x = x.flatten(2).transpose(1, 2)
        return self.lstm(x)[0] if x.max() < 50 else x


@case('conv.1')
def flatten_parameters_keeps_nothing(): return Fn(lambda s, x: s.tidy(s.conv(x)), conv=nn.Sequential(conv(), bn(), nn.ReLU()), tidy=TidiesUp()), img()


@case(fbn=('FBN',))
def functional_batch_norm(): return seq(conv=conv(), fbn=FBN(4)), img()


@case(bn=('parametri', 'attribute', 'forward', 'own', 'override', ''))
def forward_replaced():
    m = seq(conv=conv(), bn=bn())
    m.bn.forward = lambda x: F.relu(nn.BatchNorm2d.forward(m.bn, x))
    return m, img()


# ---------------------------------------------------------------- models that do things
@case(bn=('another way',), bn2=('',))
def branch_on_input():
    def f(s, x): return s.bn(s.conv(x)) if x.abs().sum() > 0 else s.bn2(x)
    return Fn(f, conv=conv(), bn=bn(), bn2=bn(3)), img()


class Branch(nn.Module):
    "Takes the other way on the fresh batch: decides by the batch size, as the value of a tensor"
    def __init__(self, f, **mods):
        super().__init__()
        self.f = f
        for k, m in mods.items(): setattr(self, k, m)

    def forward(self, x): return self.f(self, x, bool(torch.tensor(float(x.shape[0])).mean() < 4))


@case(bn=('another way',))
def branch_after(): return Branch(lambda s, x, small: (F.relu if small else torch.abs)(s.bn(s.conv(x))), conv=conv(), bn=bn()), img()


def _forward_branch(s, x, small):
    y = s.bn(F.relu(x))
    return s.a(y) if small else s.b(y)


@case(may='bn')
def branch_forward(): return Branch(_forward_branch, bn=bn(3), a=conv(), b=conv()), img()


@case('bn')
def random_forward(): return Fn(lambda s, x: s.bn(s.conv(x + 0.1 * torch.randn_like(x))), conv=conv(), bn=bn()), img()


@case('bn', state=lambda m: m.h)
def stateful_buffer():
    def f(s, x):
        s.h.mul_(0.5).add_(x.mean())
        return s.bn(s.conv(x)) + s.h
    m = Fn(f, conv=conv(), bn=bn())
    m.register_buffer('h', torch.zeros(1))
    return m, img()


@case('bn', state=lambda m: m.h)
def stateful_attribute():
    def f(s, x):
        s.h = s.h * 0.5 + x.mean()
        return s.bn(s.conv(x)) + s.h
    m = Fn(f, conv=conv(), bn=bn())
    m.h = torch.zeros(1, dtype=torch.float64)
    return m, img()


@case('bn', state=lambda m: torch.tensor(m.n))
def counting_forward():
    def f(s, x):
        s.n += 1
        return s.bn(s.conv(x)) * s.n
    m = Fn(f, conv=conv(), bn=bn())
    m.n = 0
    return m, img()


@case(may='bn')
def output_depends_on_time_of_training():
    def f(s, x): return s.bn(s.conv(x)) if not s.training else s.conv(x)
    return Fn(f, conv=conv(), bn=bn()), img()


@case('bn1 bn2')
def parts_in_train_mode():
    m = seq(conv=conv(), bn1=bn(), drop=nn.Dropout(), conv2=conv(4), bn2=bn())
    m.train_parts = True
    return m, img()


@case()
def nothing_to_fold(): return seq(conv=conv(), act=nn.ReLU()), img()


@case('1')
def unnamed(): return nn.Sequential(conv(), bn()), img()


@case(may='bn')
def scale_of_zero():
    m = seq(conv=conv(), bn=bn())
    randomize_bn(m)
    m.bn.weight.data[:2] = 0
    m.as_is = True
    return m, img()


@case(bn=('zero', 'undo', 'inverse', 'also'))
def scale_of_zero_cannot_be_undone():
    m = Fn(lambda s, x: F.relu(s.bn(y))[:, :2, 2:-2, 2:-2] + s.conv2(y)[:, :2, 1:-1, 1:-1] if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn(), conv2=conv(4, 4))
    randomize_bn(m)
    m.bn.weight.data[:2] = 0
    m.as_is = True
    return m, img()


@case(refuse=True, may='bn')
def variance_zero():
    m = seq(conv=conv(), bn=bn(eps=0.))
    randomize_bn(m)
    m.bn.running_var[0] = 0
    m.as_is = True
    return m, img()


# ---------------------------------------------------------------- ways taken by value, with no `if` in sight
def _small(x): return int(torch.tensor(float(x.shape[0])).mean() < 4)


@case(bn=('',))
def experts_after(): return Fn(lambda s, x: s.experts[_small(x)](s.bn(F.relu(x))), bn=bn(3), experts=nn.ModuleList([conv(), conv()])), img()


@case(bn=('',))
def experts_before(): return Fn(lambda s, x: F.relu(s.bn(s.experts[_small(x)](x))), bn=bn(), experts=nn.ModuleList([conv(), conv()])), img()


@case(bn=('',))
def experts_by_name(): return Fn(lambda s, x: F.relu(s.bn(getattr(s, f'conv{_small(x)}')(x))), bn=bn(), conv0=conv(), conv1=conv()), img()


@case(bn=('',))
def depth_by_value(): return Fn(lambda s, x: F.relu(s.bn(s.body[:1 + 2 * _small(x)](x))), bn=bn(3), body=nn.Sequential(conv(3, 3, padding=1), nn.ReLU(), conv(3, 3, padding=1))), img()


@case(bn=('',))
def loop_by_value():
    def f(s, x):
        for _ in range(1 + _small(x)): x = s.conv(F.relu(x))
        return F.relu(s.bn(x)) if x.shape[1] == 3 else x
    return Fn(f, conv=conv(3, 3, padding=1), bn=bn(3)), img()


@case(bn=('',))
def early_return_by_value():
    def f(s, x):
        y = s.bn(F.relu(x))
        if _small(x): return s.a(y)
        return s.b(y) + s.a(x)
    return Fn(f, bn=bn(3), a=conv(), b=conv()), img()


@case(bn=('',))
def short_circuit():
    def f(s, x):
        y = s.bn(F.relu(x))
        return (_small(x) and [s.a(y)] or [y[:, :, 2:] * 2])[0]
    return Fn(f, bn=bn(3), a=conv()), img()


@case(bn=('',))
def way_by_exception():
    def f(s, x):
        y = s.bn(F.relu(x))
        try: return s.a(y) / (1 / _small(x))
        except ZeroDivisionError: return y.abs()
    return Fn(f, bn=bn(3), a=conv()), img()


@case(bn=('',))
def way_by_number_of_hits():
    "A count of hits is a shape, not a value that is asked for"
    def f(s, x):
        hits = (torch.full((4,), float(x.shape[0])) < 4).nonzero()
        y = s.bn(F.relu(x))
        return s.a(y) if len(hits) else y[:, :, 1:-1, 1:-1].repeat(1, 2, 1, 1)[:, :4]
    return Fn(f, bn=bn(3), a=conv()), img()


@case(bn=('',))
def way_in_a_helper():
    def pick(s, x): return s.a if _small(x) else s.b
    return Fn(lambda s, x: F.relu(s.bn(pick(s, x)(x))), bn=bn(), a=conv(), b=conv()), img()


@case(bn=('',))
def way_in_a_module():
    class Pick(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x):
            if _small(x): return self.a(x)
            return self.b(x)
    return Fn(lambda s, x: F.relu(s.bn(s.pick(x))), pick=Pick(), bn=bn()), img()


@case(maybe__bn=('',))
def bn_in_one_way():
    class Maybe(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = bn()

        def forward(self, x): return self.bn(x) if _small(x) else x
    m = Fn(lambda s, x: F.relu(s.maybe(s.conv(x))), conv=conv(), maybe=Maybe())
    return m, img()


@case(bn=('another way',))
def asserted(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x))) if not torch.isnan(x).any().item() else 1 / 0, conv=conv(), bn=bn()), img()


# ---------------------------------------------------------------- sums
@case(may='bn')
def sum_with_itself(): return Fn(lambda s, x: F.relu(s.bn(y + y)) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(may='bn bn2')
def difference_with_itself(): return Fn(lambda s, x: F.relu(s.bn(y - 2 * y)) + F.relu(s.bn2(z - z)) if (y := s.conv(x)) is not None and (z := s.conv2(x)) is not None else 0, conv=conv(), bn=bn(), conv2=conv(), bn2=bn()), img()


@case(may='bn')
def identity_branch_twice(): return Fn(lambda s, x: F.relu(z + z + s.conv(y)) if (y := F.relu(x)) is not None and (z := s.bn(y)) is not None else 0, conv=conv(3, 3, padding=1), bn=bn(3)), img()


@case(may='bn')
def identity_branch_subtracted(): return Fn(lambda s, x: F.relu(s.conv(y) - s.bn(y)) if (y := F.relu(x)) is not None else 0, conv=conv(3, 3, padding=1, groups=3), bn=bn(3)), img()


@case(may='bn')
def identity_branch_alpha(): return Fn(lambda s, x: F.relu(torch.add(s.conv(y), s.bn(y), alpha=3)) if (y := F.relu(x)) is not None else 0, conv=conv(3, 3, padding=1), bn=bn(3)), img()


@case(may='bn')
def identity_branch_of_a_linear(): return Fn(lambda s, x: F.relu(s.lin(y) + s.bn(y)) if (y := F.relu(x)) is not None else 0, lin=nn.Linear(4, 4), bn=nn.BatchNorm1d(4)), sig(4, s=4)


@case(may='bn')
def sum_after_residual(): return Fn(lambda s, x: F.relu(s.bn(y + s.conv(y))) + y if (y := F.relu(x)) is not None else 0, conv=conv(3, 3, padding=1), bn=bn(3)), img()


@case(may='bn')
def sum_of_broadcast(): return Fn(lambda s, x: F.relu(s.bn(s.a(x) + s.b(x).mean((2, 3), keepdim=True))), a=conv(), b=conv(), bn=bn()), img()


@case(may='bn')
def sum_of_row_broadcast(): return Fn(lambda s, x: F.relu(s.bn(s.a(x) + s.b(x.mean(0, keepdim=True)))), a=conv(), b=conv(), bn=bn()), img()


@case(may='bn bn2')
def sum_in_place_read_after():
    def f(s, x):
        y, z = s.a(x), s.b(x)
        y += z
        return F.relu(s.bn(y)) + F.relu(s.bn2(z))
    return Fn(f, a=conv(), b=conv(), bn=bn(), bn2=bn()), img()


# ---------------------------------------------------------------- references beside the module tree
@case(may='bn', refuse=True)
def bn_in_a_plain_list():
    m = Fn(lambda s, x: F.relu(s.both[1](s.both[0](x))), conv=conv(), bn=bn())
    m.both = [m.conv, m.bn]
    return m, img()


@case(may='bn', refuse=True)
def weight_in_a_plain_list():
    m = Fn(lambda s, x: F.relu(s.bn(F.conv2d(x, s.ws[0]))), conv=conv(bias=False), bn=bn())
    m.ws = [m.conv.weight]
    return m, img()


@case(may='bn', refuse=True)
def weight_in_a_closure():
    c = conv().double()
    w, b = c.weight, c.bias
    return Fn(lambda s, x: F.relu(s.bn(F.conv2d(x, w, b))), conv=c, bn=bn()), img()


@case(bn=('',))
def new_tensor_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + y.new_tensor(y).abs() if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def new_full_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + x.new_full((1,), y.mean()) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def format_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + float(f'{y.mean():.6f}') if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def dlpack_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + torch.utils.dlpack.from_dlpack(y).abs() if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def numpy_function_reads():
    import numpy as np
    return Fn(lambda s, x: F.relu(s.bn(y)) + torch.as_tensor(np.abs(np.asarray(y))) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def storage_reads(): return Fn(lambda s, x: F.relu(s.bn(y)) + sum(y.untyped_storage().tolist()[:8]) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def deepcopy_reads():
    import copy
    return Fn(lambda s, x: F.relu(s.bn(y)) + copy.deepcopy(y).abs() if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('',))
def bytes_read(): return Fn(lambda s, x: F.relu(s.bn(y)) * y.view(torch.int64).sign() if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(may='bn')
def set_to_another():
    def f(s, x):
        y, z = s.conv(x), F.relu(s.other(x))
        y.set_(z)
        return F.relu(s.bn(y))
    return Fn(f, conv=conv(), other=conv(), bn=bn()), img()


@case(may='bn')
def data_assigned():
    def f(s, x):
        y = s.conv(x)
        y.data = F.relu(s.other(x))
        return F.relu(s.bn(y))
    return Fn(f, conv=conv(), other=conv(), bn=bn()), img()


@case(bn=('',))
def resized_and_strided():
    def f(s, x):
        y = s.conv(x).to(memory_format=torch.channels_last)
        return F.relu(s.bn(torch.as_strided(y, (x.shape[0], 4, 6, 6), (144, 36, 6, 1))))
    return Fn(f, conv=conv(), bn=bn()), img()


# ---------------------------------------------------------------- state and inputs
class Holder:
    def __init__(self): self.h = torch.zeros(1, dtype=torch.float64)


@case(may='bn', refuse=True, state=lambda m: m.holder.h)
def stateful_object():
    def f(s, x):
        s.holder.h = s.holder.h * 0.5 + x.mean()
        return s.bn(s.conv(x)) + s.holder.h
    m = Fn(f, conv=conv(), bn=bn())
    m.holder = Holder()
    return m, img()


@case('bn', state=lambda m: torch.stack(list(m.past)))
def stateful_deque():
    def f(s, x):
        s.past.append(x.mean().detach())
        return s.bn(s.conv(x)) + sum(s.past)
    m = Fn(f, conv=conv(), bn=bn())
    m.past = collections.deque([torch.zeros((), dtype=torch.float64)], maxlen=3)
    return m, img()


@case(bn=('another way',), state=lambda m: torch.tensor(len(m.cache)))
def stateful_ordered_dict():
    def f(s, x):
        s.cache[len(s.cache)] = x.mean().item()
        return s.bn(s.conv(x)) * len(s.cache)
    m = Fn(f, conv=conv(), bn=bn())
    m.cache = collections.OrderedDict()
    return m, img()


@case('bn')
def named_tuple_input(): return Fn(lambda s, p: s.bn(s.conv(p.a)) + p.b, conv=conv(), bn=bn()), [Point(img()[0], torch.randn(2, 1, 1, 1, dtype=torch.float64))]


@case('bn')
def object_input(): return Fn(lambda s, p: s.bn(s.conv(p.get('a'))) + p.extra, conv=conv(), bn=bn()), [Bag(a=img()[0])]


class Bag(dict):
    extra = 0.5


@case('bn')
def none_and_number_inputs(): return Fn2(lambda s, x, k: s.bn(s.conv(x * k[0])) if k[1] is None else x, conv=conv(), bn=bn()), img() + [(2, None)]


@case('bn')
def output_is_an_object():
    @dataclass
    class Out:
        logits: torch.Tensor
        loss: object = None
    return Fn(lambda s, x: Out(s.bn(s.conv(x))), conv=conv(), bn=bn()), img()


@case('bn')
def inference_mode_inside():
    def f(s, x):
        with torch.inference_mode(): return F.relu(s.bn(s.conv(x)))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(may='bn')
def skipped_for_a_batch_of_one():
    "Seen in the wild: BatchNorm left out where the batch has one item"
    return Fn(lambda s, x: F.relu(s.bn(s.conv(x))) if x.shape[0] < 4 else F.relu(s.conv(x)), conv=conv(), bn=bn()), img()


@case('bn bn2')
def timm_groups_of_calls():
    from timm.layers import ConvNormAct
    return Fn(lambda s, x: F.relu(s.bn2(s.c2(s.cna.conv(F.relu(s.bn(s.c1(x))))))), c1=conv(), bn=bn(), cna=ConvNormAct(4, 4, 1, apply_act=False, apply_norm=False), c2=conv(4), bn2=bn()), img()


# ---------------------------------------------------------------- other ways, for another number of items
WAY = ('way',)


@case(bn=WAY)
def skipped_by_size():
    def f(s, x):
        n = x.size(0)
        y = s.conv(x)
        if n // 2 < 2: y = s.bn(y)
        return F.relu(y)
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=WAY)
def skipped_by_len():
    def f(s, x):
        y = s.conv(x)
        if len(y) < 4: y = s.bn(y)
        return F.relu(y)
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=WAY)
def both_values_held():
    "What goes in and what comes out of the layer are in variables where the model branches"
    def f(s, x):
        y = s.conv(x)
        z = s.bn(y)
        if x.shape[0] < 4: return F.relu(z)
        return F.relu(y)
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=WAY)
def held_for_a_reader_not_seen():
    def f(s, x):
        y = s.bn(F.relu(x))
        z = s.a(y)
        return z if x.shape[0] < 4 else y[:, :, 2:].abs()
    return Fn(f, bn=bn(3), a=conv(3, 3)), img()


@case(bn=WAY)
def other_way_in_a_method():
    class TwoWays(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.bn = conv(), bn()
        def few(self, x): return F.relu(self.bn(self.conv(x)))
        def many(self, x): return F.relu(self.conv(x))
        def forward(self, x): return self.few(x) if x.shape[0] < 4 else self.many(x)
    return TwoWays(), img()


@case(bn=('another way',), bn2=('another way',))
def questions_about_items():
    "The code of the model itself asks, so all that it sees stays"
    def f(s, x):
        y = s.bn(s.conv(x))
        if y.shape != x.shape and y.shape[0] == x.shape[0]: y = F.relu(y)
        n, c = y.shape[:2]
        y = s.bn2(s.lin(y.view(len(x), c, -1).mean(2)))
        return y * 2 if x.size(0) > 3 else y + y
    return Fn(f, conv=conv(), bn=bn(), lin=nn.Linear(4, 4), bn2=nn.BatchNorm1d(4)), img()


# ---------------------------------------------------------------- where one forward pass looks in the wrong place
class Gate(nn.Module):
    def forward(self, x): return x.shape[0] < 4


class Told(nn.Module):
    def __init__(self): super().__init__(); self.conv, self.bn = conv(), bn()
    def forward(self, x, use):
        y = self.conv(x)
        if use: y = self.bn(y)
        return F.relu(y)


@case(bn=WAY)
def gate_decides_parent_branches():
    def f(s, x):
        use, y = s.gate(x), s.conv(x)
        if use: y = s.bn(y)
        return F.relu(y)
    return Fn(f, gate=Gate(), conv=conv(), bn=bn()), img()


@case(b__bn=WAY)
def block_is_told(): return Fn(lambda s, x: s.b(x, x.shape[0] < 4), b=Told()), img()


@case(b__bn=WAY)
def block_is_told_by_name(): return Fn(lambda s, x: s.b(x, use=x.shape[0] < 4), b=Told()), img()


@case(net__1=WAY)
def other_way_reaches_in(): return Fn(lambda s, x: F.relu(s.net(x) if x.shape[0] < 4 else s.net[0](x)), net=nn.Sequential(conv(), bn())), img()


@case(bn=WAY)
def answer_before_the_if():
    def f(s, x):
        small = x.shape[0] < 4
        y = s.conv(x)
        z = s.bn(y)
        return F.relu(z) if small else F.relu(y)
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=WAY)
def act_chosen_before():
    def f(s, x):
        act = torch.clone if x.shape[0] < 4 else F.relu
        return s.bn(act(s.conv(x)))
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('otherwise', 'way'))
def asked_by_numel():
    def f(s, x):
        y = s.conv(x)
        if x.numel() < 4 * x[0].numel(): y = s.bn(y)
        return F.relu(y)
    return Fn(f, conv=conv(), bn=bn()), img()


@case(bn=('otherwise', 'feeds'))
def only_the_first_two():
    def f(s, x):
        y = s.conv(x)
        return F.relu(torch.cat([s.bn(y[:2]), y[2:]]))
    return Fn(f, conv=conv(), bn=bn()), img()


@case('bn')
def assert_is_no_branch():
    def f(s, x):
        assert x.shape[0] > 0
        for m in (s.conv, s.bn): x = m(x)
        return F.relu(x)
    return Fn(f, conv=conv(), bn=bn()), img()


@case(refuse=True, may='bn')
def python_draws():
    import random
    def f(s, x):
        y = s.conv(x)
        if random.random() < 2: y = s.bn(y)
        return F.relu(y)
    return Fn(f, conv=conv(), bn=bn()), img()


@case('bn')
def counts_in_a_counter():
    class Counts(nn.Module):
        def __init__(self): super().__init__(); self.conv, self.bn, self.seen = conv(), bn(), collections.Counter(n=1)
        def forward(self, x): return F.relu(self.bn(self.conv(x))) * self.seen['n']
    return Counts(), img()


def _asks(ask):
    def build():
        def f(s, x):
            y = s.conv(x)
            return F.relu(s.bn(y)) if ask(x) else F.relu(y)
        return Fn(f, conv=conv(), bn=bn()), img()
    return build

ASKS = dict(int=lambda x: int(x.shape[0]) < 16, float=lambda x: float(x.size(0)) < 16., numel=lambda x: x.numel() < 16*192, nbytes=lambda x: x.nbytes < 16*1536, half=lambda x: x.shape[0]*.5 < 8,
            power=lambda x: x.shape[0]**2 < 256, quotient=lambda x: x.shape[0]/4 < 4)
for _name, _ask in ASKS.items():
    _build = _asks(_ask)
    _build.__name__ = f'asked_by_{_name}'
    case(bn=WAY)(_build)


# ---------------------------------------------------------------- other ways, for another image size
SIZE = ('image size',)

def _sized(between): return lambda: (Fn(lambda s, x: F.relu(s.bn(between(s.conv(x), x))), conv=conv(), bn=bn()), img())

BETWEEN = dict(padded_if_odd=lambda y, x: F.pad(y, (0, 1)) if y.shape[-1] % 2 else y, relu_if_wide=lambda y, x: F.relu(y) if x.size(-1) > 16 else y,
               pooled_if_high=lambda y, x: F.avg_pool2d(y, 2, padding=1) if x.shape[2]//2 >= 8 else y, grown_if_smaller=lambda y, x: F.interpolate(y, x.shape[-2:]) if y.shape[-2:] != x.shape[-2:] else y)
for _name, _f in BETWEEN.items():
    _build = _sized(_f)
    _build.__name__ = _name
    case(bn=('another way',))(_build)



# ---------------------------------------------------------------- helpers that compute from a size how to pad
def _to_even(t):
    n = t.shape[-1] % 2
    if n: t = F.pad(t, (0, n))
    return t


def _same(t, layer):
    n = int(t.shape[-1]) % layer.stride[0]
    return F.pad(t, (0, max(layer.kernel_size[0] - layer.stride[0], 0) if n == 0 else max(layer.kernel_size[0] - n, 0)))


def _to_even_and(t, more):
    if t.shape[-1] % 2: return F.pad(t, (0, 1)) + F.pad(more, (0, 1))
    return t


def _to_even_twice(t, layer):
    if t.shape[-1] % 2: return layer(F.pad(t, (0, 1)))
    return t


def _plus_if_wide(t, more):
    if t.shape[-1] == 14: return torch.add(t, more)
    return t


def _is_even(t): return t.shape[-1] % 2 == 0
def _to_even_told(t): return (F.pad(t, (0, 1)), True) if t.shape[-1] % 2 else (t, False)


@case('bn')
def helper_pads_before(): return Fn(lambda s, x: F.relu(s.bn(s.conv(_to_even(x)))), conv=conv(), bn=bn()), img()


@case('bn')
def helper_asks_for_the_stride(): return Fn(lambda s, x: F.relu(s.bn(s.conv(_same(x, s.conv)))), conv=nn.Conv2d(3, 4, 3, 2), bn=bn()), img(s=9)


@case(bn=('may be padded by a size', 'another way'))
def helper_pads_between(): return Fn(lambda s, x: F.relu(s.bn(_to_even(s.conv(x)))), conv=conv(), bn=bn()), img()


@case(bn=('may be padded by a size', 'another way', 'hides the shift', 'pads'))
def helper_pads_after(): return Fn(lambda s, x: s.conv2(_to_even(s.bn(F.relu(s.conv(x))))), conv=conv(), bn=bn(), conv2=conv(4)), img()


@case(bn=('',))
def helper_adds_another(): return Fn(lambda s, x: F.relu(s.bn(s.other(x)))[..., :1] + _to_even_and(s.conv(x), s.other(x))[..., :1], conv=conv(), other=conv(), bn=bn()), img(s=10)


@case(bn=('',))
def helper_adds_on_another_way():
    def f(s, x):
        y = s.conv(x)
        return _plus_if_wide(s.other(x), y) + F.relu(s.bn(y))
    return Fn(f, conv=conv(), other=conv(), bn=bn()), img()


@case(bn=('',))
def helper_calls_the_layer_again(): return Fn(lambda s, x: F.relu(s.bn(_to_even_twice(s.conv(x), s.conv))), conv=nn.Conv2d(3, 3, 3), bn=bn(3)), img()


@case(bn=('another way',))
def helper_tells_a_flag(): return Fn(lambda s, x: s.bn(y if _is_even(x) else F.relu(y)) if (y := s.conv(x)) is not None else 0, conv=conv(), bn=bn()), img()


@case(bn=('another way',))
def helper_gives_a_flag_too():
    def f(s, x):
        x, odd = _to_even_told(x)
        y = s.conv(x)
        return F.relu(s.bn(F.relu(y) if odd else y))
    return Fn(f, conv=conv(), bn=bn()), img()


class PadsItself(nn.Conv2d):
    "A convolution that pads by the size of what it gets"
    def forward(self, x):
        if x.shape[-1] % 2: x = F.pad(x, (0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride)


class PadsOrGoes(nn.Conv2d):
    "It convolves one way only"
    def forward(self, x):
        if x.shape[-1] % 2: return F.pad(x, (0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride)


@case('bn')
def convolution_pads_itself(): return seq(conv=PadsItself(3, 4, 3), bn=bn(), act=nn.ReLU()), img()


@case(bn=('another way',))
def convolution_pads_or_goes(): return seq(conv=PadsOrGoes(3, 3, 1), bn=bn(3), act=nn.ReLU()), img()



class DoublesIfLarge(nn.Module):
    "Gives its input back as it is, or in another type"
    def forward(self, x): return x.half() if x.mean() > 50 else x


@case(bn=('another way',))
def dtype_of_a_deciding_child():
    def f(s, x):
        z, y = s.child(x), s.conv(x)
        return F.relu(s.bn(F.relu(y) if z.dtype == torch.float16 else y))
    return Fn(f, child=DoublesIfLarge(), conv=conv(), bn=bn()), img()


@case('bn1 bn2', mid__1='script')
def traced_module_between():
    traced = torch.jit.trace(nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU()).double().eval(), torch.randn(2, 4, 8, 8, dtype=torch.float64))
    return seq(conv=conv(), bn1=bn(), mid=traced, bn2=bn(), conv2=conv(4)), img(s=10)


@case(bn=('no elements',))
def part_without_elements():
    "Of a batch of two the second convolution gets nothing"
    return Fn(lambda s, x: F.relu(s.bn(torch.cat([s.a(x[:4]), s.b(x[4:])]))), a=conv(), b=conv(), bn=bn()), img()


class OneNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('k', torch.tensor(2.5))

    def forward(self, x): return x * self.k


@case('bn', number='several numbers of channels')
def one_number_for_several_layers():
    return Fn(lambda s, x: F.relu(s.bn(s.b(s.number(F.relu(s.number(s.a(x))[:, :2]))))), number=OneNumber(), a=conv(), b=conv(2, 6), bn=bn(6)), img()


class FrozenBatchNormByHand(nn.Module):
    "As in DETR: running statistics, and no `eps`"
    def __init__(self, n):
        super().__init__()
        for name in ('weight', 'bias', 'running_mean', 'running_var'): self.register_buffer(name, torch.rand(n) + 0.5)

    def forward(self, x):
        w, b, v, m = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_var, self.running_mean))
        scale = w * (v + 1e-5).rsqrt()
        return x * scale + (b - m * scale)


@case('frozen bn')
def frozen_by_hand_before_conv(): return seq(act=nn.ReLU(), frozen=FrozenBatchNormByHand(3), conv=conv(), bn=bn(), act2=nn.ReLU()), img()


class OneRow(nn.Module):
    "A linear layer whose weight is a vector, and whose output has no axis of features"
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x): return F.linear(x, self.weight)


@case(bn=('one row',))
def weight_is_one_row(): return seq(row=OneRow(), bn=nn.BatchNorm1d(4), act=nn.ReLU()), [torch.randn(2, 4, 8, dtype=torch.float64)]


# ---------------------------------------------------------------- a bare parameter in the sum that a BatchNorm reads
def bare(n=5): return nn.Parameter(torch.linspace(-1, 2, n))
def lin(bias=False): return nn.Linear(6, 5, bias=bias)
def bn1(n=5): return nn.BatchNorm1d(n)


@case('bn')
def bare_parameter(): return Fn(lambda s, x: F.relu(s.bn(s.lin(x) + s.p)), lin=lin(), p=bare(), bn=bn1()), vec()


@case('bn')
def bare_parameter_minus_layer(): return Fn(lambda s, x: F.relu(s.bn(s.p - s.lin(x))), lin=lin(True), p=bare(), bn=bn1()), vec()


@case('bn')
def bare_parameter_beside_two_layers():
    return Fn(lambda s, x: F.relu(s.bn(s.a(x) - s.p + s.b(x.flip(0)) - s.p)), a=conv(), b=conv(padding=0), p=nn.Parameter(torch.randn(4, 1, 1)), bn=bn()), img()


@case('bn')
def bare_number_for_all(): return Fn(lambda s, x: F.relu(s.bn(s.p + s.conv(x))), conv=conv(), p=nn.Parameter(torch.tensor([1.5])), bn=bn()), img()


@case('bn bn2')
def bare_parameter_read_elsewhere():
    return Fn(lambda s, x: F.relu(s.bn(s.lin(x) + s.p)) * s.p + s.bn2(s.b(x) + s.p), lin=lin(), b=lin(), p=bare(), bn=bn1(), bn2=bn1()), vec()


@case('bn', bn2=('also read',))
def bare_parameter_is_a_bias_too():
    def f(s, x): return F.relu(s.bn(s.a(x) + s.b.bias)) + F.relu(s.bn2(s.b(x)))
    return Fn(f, a=lin(), b=lin(True), bn=bn1(), bn2=bn1()), vec()


@case(bn=('add',))
def bare_parameter_expanded(): return Fn(lambda s, x: F.relu(s.bn((y := s.lin(x)) + s.p.expand_as(y) * 2)), lin=lin(), p=bare(), bn=bn1()), vec()


@case(bn=('add',))
def bare_parameter_of_another_axis(): return Fn(lambda s, x: F.relu(s.bn(s.conv(x) + s.p)), conv=nn.Conv1d(3, 4, 3, padding=1), p=bare(9), bn=bn1(4)), sig()


@case(bn=('bias', 'add'))
def bare_parameter_and_no_bias():
    return Fn(lambda s, x: F.relu(s.bn(s.conv(x) + s.p)), conv=FConv(3, 4, 3, False), p=nn.Parameter(torch.randn(4, 1, 1)), bn=bn()), img()


@case(bn=('also feeds', 'add'))
def bare_parameter_and_the_sum_before_is_read(): return Fn(lambda s, x: F.relu(s.bn((y := s.lin(x)) + s.p)) + y, lin=lin(), p=bare(), bn=bn1()), vec()


@case(bn=('another way',))
def bare_parameter_chosen_by_the_batch():
    return Fn(lambda s, x: F.relu(s.bn(s.lin(x) + (s.p if x.mean() > -9 else s.q))), lin=lin(), p=bare(), q=bare(), bn=bn1()), vec()


@case(bn=('add',))
def bare_parameter_written():
    def f(s, x):
        y = s.lin(x) + s.p
        with torch.no_grad(): s.p.fill_(0.5)
        return F.relu(s.bn(y))
    return Fn(f, lin=lin(), p=bare(), bn=bn1()), vec()


class SumInside(nn.Module):
    "The parameter is given by the parent"
    def __init__(self):
        super().__init__()
        self.lin, self.bn = lin(), bn1()

    def forward(self, x, p): return F.relu(self.bn(self.lin(x) + p))


@case(block__bn=('add',))
def bare_parameter_that_another_batch_writes():
    def f(s, x):
        if x.mean() > 50: nn.init.constant_(s.holder.p, 0.5)
        return s.block(x, s.holder.p)
    holder = nn.Module()
    holder.p = bare()
    return Fn(f, holder=holder, block=SumInside()), vec()


@case('block.bn')
def bare_parameter_of_another_module():
    holder = nn.Module()
    holder.p = bare()
    return Fn(lambda s, x: s.block(x, s.holder.p), holder=holder, block=SumInside()), vec()
