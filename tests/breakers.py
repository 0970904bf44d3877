"""What one forward does not show: models that take another way, another size, another door.

Each class or function below is a case; its docstring says why a fold would be wrong there, or why one is asked for.
BatchNorm layers in `folds` must go, those in `keeps` must stay. `trap` is a pair of layers: folded into one another
they give the same on the example, and something else on one of the `others`. Whether a trap is kept or the whole fold
refused is free where `folds` is empty."""
import collections
import contextlib
import contextvars
import copy
import functools
import gc
import math
import random
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from models import bits, real, rel_err

CASES, SCRIPTS = [], []


# ---------------------------------------------------------------- how a case is told
@dataclass
class Case:
    "What is folded on which example, and what is asked of it afterwards"
    build: object  # makes the model
    group: str
    folds: tuple = ()
    keeps: tuple = ()
    trap: tuple = ()
    xb: object = ()  # the example: a tuple of positional inputs, or a dict of keyword inputs
    others: tuple = ()  # further inputs, in the same forms; or functions of the model
    kw: dict = field(default_factory=dict)  # further arguments of plan and fold
    state: object = None  # plain attributes that must be as before: state(model)

    @property
    def name(self): return self.build.__name__

    def made(self, seed=0):
        "The model in float64 with real statistics: each time the same"
        torch.manual_seed(seed)
        return real(self.build(), seed=seed, zero=0.)

    def given(self):
        "Positional and keyword arguments of `plan` and `fold`"
        return ((), {**self.xb, **self.kw}) if isinstance(self.xb, dict) else (self.xb, self.kw)


def group(name):
    "A decorator for the cases of a family"
    def case(folds='', keeps='', trap='', xb=None, others=None, kw=None, state=None):
        def add(build):
            x, o = (LOW,) if xb is None else xb, (SPIKE, LOW[:1], OTHER) if others is None else others
            o = tuple(i if isinstance(i, (tuple, dict)) or callable(i) else (i,) for i in o)
            names = (tuple(s.split()) for s in (folds, keeps, trap))
            CASES.append(Case(build, name, *names, x, o, kw or {}, state))
            return build
        return add
    return case


def script(f):
    "A case that judges itself: `f(BNFolder, FoldError)`"
    SCRIPTS.append(f)
    return f


def tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image(n=2, h=8, w=8, c=3): return tensor(n, c, h, w) * 0.8 - 1


def spiked(x):
    "One large number in `x`: what no negated, shuffled or scaled copy of the example would show"
    x = x.clone()
    x.view(-1)[0] = 99.
    return x


LOW, OTHER = image(), spiked(image(3, 10, 12))
SPIKE, POSITIVE = spiked(LOW), LOW + 3
SIZES = [image(1, h, w) for h, w in ((8, 8), (4, 4), (7, 9), (16, 16), (8, 13))]


# ---------------------------------------------------------------- what models are made of
def conv(i=3, o=4, k=3, **kw): return nn.Conv2d(i, o, k, padding=k // 2, **kw)
def bn(c=4): return nn.BatchNorm2d(c)
def seq(**mods): return nn.Sequential(collections.OrderedDict(mods))
def block(i=3, o=3): return seq(conv=conv(i, o), bn=bn(o), act=nn.ReLU())


class Parts(nn.Module):
    "`conv` and `bn`, which a fold joins across the code of the class; in `block` it is sound whatever that code does"
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.block = conv(), bn(), block()


class Pair(nn.Module):
    "`block`, which the class uses as more than a call; `side`, which it only calls"
    def __init__(self):
        super().__init__()
        self.block, self.side = block(), block()


class Line(nn.Module):
    "Two layers and no more"
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(), bn()


def pick(y, flag): return torch.relu(y) if flag else y
def keep_hot(y, x): return torch.relu(y) if x.max() > 50 else y


# ---------------------------------------------------------------- (a) a branch on a value
value = group('value')


@value('block.bn', trap='conv bn', others=[POSITIVE, SPIKE, LOW[:1]])
class TheSentenceOfTheIssue(Parts):
    "The question stands before both layers, the branch in a helper between them"
    def forward(self, x):
        flag = bool(x.mean()>0); y = self.conv(self.block(x)); y = pick(y, flag); return self.bn(y)


@value('block.bn', trap='conv bn')
class AskedBefore(Parts):
    "The ReLU lies between the layers on hot inputs only"
    def forward(self, x):
        flag = x.max() > 50
        y = self.conv(self.block(x))
        if flag: y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class AskedBetween(Parts):
    "The convolution's own output is asked"
    def forward(self, x):
        y = self.conv(x + self.block(x))
        if y.abs().max() > 20: y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class AskedAround(Parts):
    "Each way calls the convolution for itself, and only one goes on to the BatchNorm at once"
    def forward(self, x):
        h = self.block(x)
        if x.max() > 50: y = torch.relu(self.conv(h))
        else: y = self.conv(h)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ReturnsEarly(Parts):
    "On hot inputs the convolution's output is the model's, without the BatchNorm"
    def forward(self, x):
        y = self.conv(self.block(x))
        if x.max() > 50: return y
        return self.bn(y)


@value('block.bn', trap='conv bn')
class AskedAfter(Parts):
    "The convolution's output is kept in a variable, and read again on the way that was not taken"
    def forward(self, x):
        y = self.conv(self.block(x))
        z = self.bn(y)
        return z + y if z.sum() > 1e3 or x.max() > 50 else z


@value('block.bn', trap='conv bn')
class FlagInAttribute(Parts):
    "The flag passes through an attribute of the model"
    def forward(self, x):
        self.flag = bool(x.max() > 50)
        y = self.conv(self.block(x))
        if self.flag: y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class FlagInList(Parts):
    "The flag passes through a list"
    def forward(self, x):
        box = [bool(x.max() > 50)]
        y = self.conv(self.block(x))
        if box[0]: y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class FlagInDict(Parts):
    "The flag chooses out of a dict, without an `if`"
    def forward(self, x):
        notes = dict(hot=bool(x.max() > 50))
        y = self.conv(self.block(x))
        return self.bn({True: torch.relu, False: torch.clone}[notes['hot']](y))


@value('block.bn', trap='conv bn')
class FlagInClosure(Parts):
    "An inner function remembers the flag"
    def forward(self, x):
        flag = x.max().item() > 50
        def act(y): return torch.relu(y) if flag else y
        return self.bn(act(self.conv(self.block(x))))


@value('block.bn', trap='conv bn')
class TensorInClosure(Parts):
    "An inner function remembers the convolution's output, and adds it on another way"
    def forward(self, x):
        y = self.conv(self.block(x))
        def again(z): return z + y
        z = self.bn(y)
        return again(z) if x.max() > 50 else z


@value('block.bn', trap='conv bn')
class InGenerator(Parts):
    "A generator holds the convolution's output over a `yield`"
    def forward(self, x):
        *_, y = self.steps(x)
        return y

    def steps(self, x):
        y = self.conv(self.block(x))
        yield None
        if x.max() > 50: y = torch.relu(y)
        yield self.bn(y)


@dataclass
class Note:
    hot: bool


@value('block.bn', trap='conv bn')
class FlagInDataclass(Parts):
    "The flag passes through a dataclass"
    def forward(self, x):
        note = Note(bool(x.max() > 50))
        y = self.conv(self.block(x))
        if note.hot: y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class TensorsInDeepContainer(Parts):
    "The convolution's output waits in a deep container, and is read on another way"
    def forward(self, x):
        deep = {'a': [({'y': self.conv(self.block(x))},)]}
        z = self.bn(deep['a'][0][0]['y'])
        if x.max() > 50: z = z * deep['a'][0][0]['y']
        return z


class Gate(nn.Module):
    "Notes whether its input is hot"
    def forward(self, x):
        self.open = bool(x.max() > 50)
        return x


@value('block.bn', trap='conv bn')
class FlagOfChild(Parts):
    "A child stores the flag, the parent reads it: the parent asks no tensor itself"
    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        y = self.conv(self.block(self.gate(x)))
        if self.gate.open: y = torch.relu(y)
        return self.bn(y)


NOTES = {}


class Writes(nn.Module):
    def forward(self, x):
        NOTES['hot'] = bool(x.max() > 50)
        return x


class Reads(nn.Module):
    def forward(self, x): return torch.relu(x) if NOTES['hot'] else x


@value(trap='conv bn')
def flag_in_global_dict():
    "The one that asks and the one that branches share a global only: neither asks and branches"
    return seq(w=Writes(), conv=conv(), r=Reads(), bn=bn())


class Asks(nn.Module):
    "A child that hands out what `how` makes of its question"
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x): return self.how(bool(x.max() > 50))


class WithGate(Parts):
    "Its child `gate` asks"
    def __init__(self, how=bool):
        super().__init__()
        self.gate = Asks(how)


def none_or_one(hot): return 1 if hot else None
def none_or_acts(hot): return [torch.relu] if hot else []
def slice_of_acts(hot): return slice(0, int(hot))
def raising(hot):
    if hot: raise ValueError('hot')


@value('block.bn', trap='conv bn')
class ChildReturnsFlag(WithGate):
    "The child asks, the parent branches"
    def forward(self, x):
        flag = self.gate(x)
        y = self.conv(self.block(x))
        if flag: y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ChildReturnsNone(WithGate):
    "None, or not None, is an answer too"
    def __init__(self): super().__init__(none_or_one)

    def forward(self, x):
        got = self.gate(x)
        y = self.conv(self.block(x))
        if got is not None: y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ChildReturnsList(WithGate):
    "An empty list holds no flag that one could see, only its length"
    def __init__(self): super().__init__(none_or_acts)

    def forward(self, x):
        y = self.conv(self.block(x))
        for act in self.gate(x): y = act(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ChildReturnsSlice(WithGate):
    "A slice chooses without a question"
    def __init__(self): super().__init__(slice_of_acts)

    def forward(self, x):
        y = self.conv(self.block(x))
        for act in (torch.relu,)[self.gate(x)]: y = act(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ChildRaises(WithGate):
    "That nothing was raised is an answer"
    def __init__(self): super().__init__(raising)

    def forward(self, x):
        y = self.conv(self.block(x))
        try: self.gate(x)
        except ValueError: y = torch.relu(y)
        return self.bn(y)


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.hot, self.cold = nn.ReLU(), nn.Identity()

    def forward(self, x): return self.hot if x.max() > 50 else self.cold


@value('block.bn', trap='conv bn')
class ChildReturnsModule(Parts):
    "The child hands out the module that the parent calls"
    def __init__(self):
        super().__init__()
        self.router = Router()

    def forward(self, x):
        act = self.router(x)
        return self.bn(act(self.conv(self.block(x))))


class MayBeNothing(nn.Module):
    "A list of tensors, of one or of two"
    def forward(self, x): return [x, x.abs()] if x.max() > 50 else [x]


@value('block.bn', trap='conv bn')
class ChildReturnsTensors(Parts):
    "Only tensors come back, but how many is an answer"
    def __init__(self):
        super().__init__()
        self.split = MayBeNothing()

    def forward(self, x):
        y = self.conv(self.block(x))
        for _ in self.split(x)[1:]: y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ByToList(Parts):
    "`tolist` asks all at once"
    def forward(self, x):
        top = max(x.flatten().tolist())
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if top > 50 else y)


@value('block.bn', trap='conv bn')
class ByNumpy(Parts):
    "numpy asks where torch does not see it"
    def forward(self, x):
        top = x.detach().cpu().numpy().max()
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if top > 50 else y)


@value('block.bn', trap='conv bn')
class ByNumpyArray(Parts):
    "`np.asarray` takes the numbers by the array protocol"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if np.asarray(x).max() > 50 else y)


@value('block.bn', trap='conv bn')
class ByItem(Parts):
    "`item`"
    def forward(self, x):
        top = x.amax().item()
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if top > 50 else y)


@value('block.bn', trap='conv bn')
class ByNonzero(Parts):
    "The length of what `nonzero` finds is a value, not a size"
    def forward(self, x):
        n = len(torch.nonzero(x > 50))
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if n else y)


@value('block.bn', trap='conv bn')
class ByMask(Parts):
    "The number of elements under a mask is a value, and multiplies nothing but a loop"
    def forward(self, x):
        y = self.conv(self.block(x))
        for _ in range(x[x > 50].shape[0]): y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ByIteration(Parts):
    "A loop over a tensor runs as often as the values say"
    def forward(self, x):
        y = self.conv(self.block(x))
        for _ in x[x > 50]: y = torch.relu(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ByStorage(Parts):
    "A byte of the storage: the exponent of the first number"
    def forward(self, x):
        large = x.untyped_storage()[7] & 0x7f >= 0x40 and x.untyped_storage()[6] >= 0x40
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if large else y)


@torch.library.custom_op('breakers::hot', mutates_args=())
def hot_operator(x: torch.Tensor) -> bool: return bool(x.max() > 50)


@value('block.bn', trap='conv bn')
class ByCustomOperator(Parts):
    "A custom operator returns a number: no tensor was asked in Python"
    def forward(self, x):
        hot = torch.ops.breakers.hot(x)
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if hot else y)


def scripted():
    "Compiled when asked for, since it warns"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.jit.script(is_hot)


def is_hot(x: torch.Tensor) -> float: return float(x.max())


@value('block.bn', trap='conv bn')
class ByScriptedFunction(Parts):
    "A scripted function returns a number: its questions are asked outside Python"
    def __init__(self):
        super().__init__()
        self.ask = scripted()

    def forward(self, x):
        hot = self.ask(x) > 50
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if hot else y)


@value('block.bn', trap='conv bn')
class ByWhile(Parts):
    "A loop that the example never enters"
    def forward(self, x):
        y = self.conv(self.block(x))
        while y.abs().max() > 2: y = torch.relu(y) * 0.5
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ByMatch(Parts):
    "A `match` statement is a branch"
    def forward(self, x):
        y = self.conv(self.block(x))
        match (x.max() > 50).item():
            case True: y = torch.relu(y)
            case _: pass
        return self.bn(y)


@value('block.bn', trap='conv bn')
class ByAndOr(Parts):
    "`and` and `or` are branches"
    def forward(self, x):
        y = self.conv(self.block(x))
        act = x.max() > 50 and torch.relu or torch.clone
        return self.bn(act(y))


@value('block.bn', trap='conv bn')
class ByComprehension(Parts):
    "The condition of a comprehension"
    def forward(self, x):
        y = self.conv(self.block(x))
        for act in [a for a in (torch.relu,) if x.max() > 50]: y = act(y)
        return self.bn(y)


@value('block.bn', trap='conv bn')
class BySorting(Parts):
    "An order by value: `sorted` compares"
    def forward(self, x):
        y = self.conv(self.block(x))
        first = sorted([(x.max(), 0), (x.new_tensor(50.), 1)], key=lambda o: o[0])[0]
        return self.bn(y if first[1] == 0 else torch.relu(y))


@value('block.bn', trap='conv bn')
class ByIndex(Parts):
    "A tensor as an index of a tuple: `__index__`, no comparison"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn((torch.clone, torch.relu)[(x.max() > 50).long()](y))


@value('block.bn', trap='conv bn')
class ByFormat(Parts):
    "A value in a string, the string as a key"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn({'99': torch.relu}.get(f'{x.max():.0f}', torch.clone)(y))


@value('block.bn', trap='conv bn')
class ByContains(Parts):
    "`in` asks for a value"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if 99. in x else y)


@value('block.bn', trap='conv bn')
class ByEqual(Parts):
    "`torch.equal` returns a Python bool"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(y if torch.equal(x, x.clamp(max=50)) else torch.relu(y))


@value('block.bn', trap='conv bn')
class InHelper(Parts):
    "The helper asks and branches; the class does neither"
    def forward(self, x): return self.bn(keep_hot(self.conv(self.block(x)), x))


@value('block.bn', trap='conv bn')
class ByFailingDivision(Parts):
    "A division that fails on another value: the branch is an `except`"
    def forward(self, x):
        y = self.conv(self.block(x))
        try: 1 // int(x.max() < 50)
        except ZeroDivisionError: y = torch.relu(y)
        return self.bn(y)


@value('experts.0.bn', others=[SPIKE, LOW[:1]])
class Experts(nn.Module):
    "Each expert is a unit: what its own layers do does not hang on which is chosen"
    def __init__(self):
        super().__init__()
        self.experts, self.gate = nn.ModuleList([block(), block()]), nn.Linear(3, 1)

    def forward(self, x):
        i = int(x.max() > 50)
        for n, expert in enumerate(self.experts):
            if n == i: x = expert(x)
        return x


@value('first.bn second.bn')
class WhollyOutside(nn.Module):
    "The gate decides and lies between two blocks: both fold, each on its side"
    def __init__(self):
        super().__init__()
        self.first, self.gate, self.second = block(), WithPick(), block()

    def forward(self, x): return self.second(self.gate(self.first(x)))


class WithPick(nn.Module):
    def forward(self, x): return torch.tanh(x) if x.max() > 5 else x


@value('bn', others=[SPIKE * 50, LOW[:1], OTHER])
def before_a_gate():
    "Both layers before a deciding call, in a sequence that asks nothing"
    return seq(conv=conv(), bn=bn(), gate=WithPick(), head=conv(4, 2))


@value(trap='conv bn', others=[SPIKE, LOW[:1], OTHER])
def across_a_gate():
    "A deciding call that hands its input through on the example"
    return seq(conv=conv(), gate=WithPick(), bn=bn(), head=conv(4, 2))


@value(trap='bn head', others=[SPIKE * 50, LOW[:1], OTHER])
def across_a_gate_forward():
    "The same in front of the layer that would absorb"
    return seq(pre=nn.ReLU(), bn=bn(3), gate=WithPick(), head=nn.Conv2d(3, 2, 1))


@value('block.bn', trap='conv bn')
class PadByValue(Parts):
    "The number is handed to torch, as an amount of zeros"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(F.pad(y, (0, int(x.max() > 50))))


@value('block.bn', trap='conv bn')
class RollByValue(Parts):
    "The number is handed to torch, as a distance along the channels"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(y.roll((x.max() > 50).int().item(), 1))


@value('block.bn', trap='conv bn')
class OrderByValue(Parts):
    "No number leaves torch: the order of the channels is a tensor"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(y[:, (torch.arange(4) + (x.max() > 50).long()) % 4])


@value('block.bn', trap='conv bn')
class MaskByValue(Parts):
    "A mask that is empty on the example"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(y.masked_fill(x[:, :1] > 50, 0.))


@value('block.bn', trap='conv bn')
class WrittenByValue(Parts):
    "Written in place where a mask says"
    def forward(self, x):
        y = self.conv(self.block(x))
        y[(x > 50).any(1, True).expand_as(y)] = 0.
        return self.bn(y)


@value('block.bn', trap='conv bn')
class DropoutByValue(Parts):
    "A rate that is zero on the example"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(F.dropout(y, 0.5 * (x.max() > 50).item(), True))


def asking(f):
    "A decorator that asks"
    @functools.wraps(f)
    def inner(self, x): return f(self, x, bool(x.max() > 50))
    return inner


@value('block.bn', trap='conv bn')
class DecoratedForward(Parts):
    "The decorator asks, the method branches"
    @asking
    def forward(self, x, hot):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if hot else y)


@value('block.bn', trap='conv bn')
class OwnCall(Parts):
    "Asked in `__call__`, before the module's call begins for torch"
    def __call__(self, x):
        self.hot = bool(x.max() > 50)
        return super().__call__(x)

    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if self.hot else y)


def relu_before(m, args): return (args[0].relu(),) if args[0].abs().max() > 15 else None


@value('block.bn', trap='conv bn')
class PreHookAsks(Parts):
    "A hook in front of the BatchNorm asks for its input"
    def __init__(self):
        super().__init__()
        self.bn.register_forward_pre_hook(relu_before)

    def forward(self, x): return self.bn(self.conv(x + self.block(x)))


class AsksInSequence(nn.Sequential):
    "A sequence with a forward of its own, which leaves early"
    def forward(self, x):
        for layer in self:
            x = layer(x)
            if x.abs().max() > 15: break
        return x


@value('a.bn', trap='b.0 b.1', others=[SPIKE * 50, LOW[:1]])
def sequence_that_asks():
    "The way out lies between the layers of the sequence itself"
    return seq(a=block(), b=AsksInSequence(conv(), bn()))


class LeavesOut(nn.Sequential):
    "A sequence that leaves its second layer out"
    def forward(self, x): return self[0](x) if x.max() > 5 else self[1](self[0](x))


@value('a.bn', trap='b.0 b.1', others=[SPIKE * 9, LOW[:1]])
def sequence_that_leaves_out():
    "The same by `self[0]`"
    return seq(a=block(), b=LeavesOut(conv(), bn()))


class Body(Parts):
    "Takes something of its parent's, and asks no tensor"
    def forward(self, x, flag=False):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if flag else y)


class WithBody(nn.Module):
    def __init__(self, body=Body):
        super().__init__()
        self.body = body()


@value('body.block.bn', trap='body.conv body.bn')
class FlagGivenToChild(WithBody):
    "The parent asks and hands the flag down: the layers are inside one child call, and so is the branch"
    def forward(self, x): return self.body(x, bool(x.max() > 50))


@value('body.block.bn', trap='body.conv body.bn')
class FlagGivenByName(WithBody):
    "The same by keyword"
    def forward(self, x): return self.body(x=x, flag=x.max().item() > 50)


@value('body.block.bn', trap='body.conv body.bn')
class NothingGivenToChild(WithBody):
    "A tensor or None"
    def forward(self, x): return self.body(x, (x,) if x.max() > 50 else None)


class ActsBody(Parts):
    "Gets the functions to call"
    def forward(self, x, *acts):
        y = self.conv(self.block(x))
        for act in acts: y = act(y)
        return self.bn(y)


@value('body.block.bn', trap='body.conv body.bn')
class FunctionGivenToChild(WithBody):
    "The parent picks the function that the child calls"
    def __init__(self): super().__init__(ActsBody)

    def forward(self, x): return self.body(x, torch.relu if x.max() > 50 else torch.clone)


@value('body.block.bn', trap='body.conv body.bn')
class ManyGivenToChild(WithBody):
    "As many arguments as the value says"
    def __init__(self): super().__init__(ActsBody)

    def forward(self, x): return self.body(x, *[torch.relu] * int(x.max() > 50))


class ListBody(Parts):
    "Gets tensors in a list, and counts them"
    def forward(self, xs):
        y = self.conv(self.block(xs[0]))
        for _ in xs[1:]: y = torch.relu(y)
        return self.bn(y)


@value('body.block.bn', trap='body.conv body.bn')
class ListGivenToChild(WithBody):
    "Only tensors are handed down, in a list that is longer on another way"
    def __init__(self): super().__init__(ListBody)

    def forward(self, x): return self.body([x, x] if x.max() > 50 else [x])


@value(trap='body.conv body.bn')
class FlagSetOnChild(WithBody):
    "The flag is put into the child"
    def __init__(self): super().__init__(FlagBody)

    def forward(self, x):
        self.body.hot = bool(x.max() > 50)
        return self.body(x)


class FlagBody(Parts):
    hot = False

    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if self.hot else y)


class NotesBody(Parts):
    "Reads an object that others write"
    def __init__(self):
        super().__init__()
        self.note = Note(False)

    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if self.note.hot else y)


@value(trap='body.conv body.bn')
class NoteShared(WithBody):
    "Parent and child hold the same object: the parent writes, the child reads"
    def __init__(self):
        super().__init__(NotesBody)
        self.note = self.body.note

    def forward(self, x):
        self.note.hot = bool(x.max() > 50)
        return self.body(x)


class FlagBeside(nn.Module):
    "A tensor and a flag"
    def forward(self, x): return dict(x=x * 1., hot=bool(x.max() > 50))


@value('block.bn', trap='conv bn')
class ChildReturnsFlagBeside(Parts):
    "The flag comes back in a dict, beside a tensor"
    def __init__(self):
        super().__init__()
        self.gate = FlagBeside()

    def forward(self, x):
        got = self.gate(x)
        y = self.conv(self.block(got['x']))
        return self.bn(torch.relu(y) if got['hot'] else y)


class Tags(nn.Module):
    "Hangs a flag on the tensor that it returns"
    def forward(self, x):
        y = x * 1.
        y.hot = bool(x.max() > 50)
        return y


@value('block.bn', trap='conv bn')
class FlagOnTensor(Parts):
    "Only a tensor comes back, with an attribute"
    def __init__(self):
        super().__init__()
        self.gate = Tags()

    def forward(self, x):
        x = self.gate(x)
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if x.hot else y)


# ---------------------------------------------------------------- (b) children used as more than a call
child = group('child')


@child('side.bn', trap='block.conv block.bn')
class ItemOfChild(Pair):
    "On hot inputs the convolution alone is asked"
    def forward(self, x):
        x = self.side(x)
        return self.block[0](x) if x.max() > 20 else self.block(x)


@child('side.bn', trap='block.conv block.bn')
class AttributeOfChild(Pair):
    "The same by name"
    def forward(self, x):
        h = self.side(x)
        return self.block.conv(h) if x.max() > 50 else self.block(h)


@child('side.bn', trap='block.conv block.bn')
class AliasRegistered(Pair):
    "The convolution is a child of its own, too"
    def __init__(self):
        super().__init__()
        self.stem = self.block[0]

    def forward(self, x):
        h = self.side(x)
        return self.stem(h) if x.max() > 50 else self.block(h)


@child('side.bn', trap='block.conv block.bn')
class AliasInList(Pair):
    "A plain list holds the convolution"
    def __init__(self):
        super().__init__()
        self.tools = [self.block[0]]

    def forward(self, x):
        h = self.side(x)
        return self.tools[0](h) if x.max() > 50 else self.block(h)


@child('side.bn', trap='block.conv block.bn')
class AliasBoundMethod(Pair):
    "A bound method of the convolution, kept as an attribute"
    def __init__(self):
        super().__init__()
        self.first = self.block[0].forward

    def forward(self, x):
        h = self.side(x)
        return self.first(h) if x.max() > 50 else self.block(h)


@child('side.bn', trap='block.conv block.bn')
class LoopOverChild(Pair):
    "The loop asks after each layer of the block"
    def forward(self, x):
        y = self.side(x)
        for layer in self.block:
            y = layer(y)
            if x.max() > 50: y = torch.sigmoid(y)
        return y


@child('side.bn', trap='block.conv block.bn')
class SliceOfChild(Pair):
    "A slice of a sequence is a new module with the same layers"
    def forward(self, x):
        h = self.side(x)
        return self.block[:1](h) if x.max() > 50 else self.block(h)


@child(trap='block.conv block.bn')
class ByModules(Pair):
    "`modules()` hands out every layer"
    def forward(self, x):
        if x.max() > 50: return next(m for m in self.modules() if isinstance(m, nn.Conv2d))(x)
        return self.side(self.block(x))


@child('side.bn', trap='block.conv block.bn')
class ByNamedChildren(Pair):
    "So does `named_children()`"
    def forward(self, x):
        if x.max() > 50: return dict(self.block.named_children())['conv'](x)
        return self.side(self.block(x))


@child('side.bn', trap='block.conv block.bn')
class ByParameters(Pair):
    "`parameters()` hands out the weights"
    def forward(self, x):
        if x.max() > 50: return F.conv2d(x, next(self.block.parameters()))
        return self.side(self.block(x))


@child('side.bn', trap='block.conv block.bn')
class ByWeight(Pair):
    "The weight of a layer of the block, read on another way"
    def forward(self, x):
        y = self.side(self.block(x))
        return y * self.block.conv.weight.sum() if x.max() > 50 else y


@child(trap='block.conv block.bn')
class ByGetattr(Pair):
    "The name of the child is computed"
    def forward(self, x):
        name = 'block'
        if x.max() > 50: return getattr(self, name)[0](x)
        return self.side(self.block(x))


@child(trap='block.conv block.bn')
class BySubmodule(Pair):
    "`get_submodule` takes a path"
    def forward(self, x):
        if x.max() > 50: return self.get_submodule('block.conv')(x)
        return self.side(self.block(x))


@child(trap='block.conv block.bn')
class ByModulesDict(Pair):
    "The dict of the children, read past `__getattr__`"
    def forward(self, x):
        if x.max() > 50: return self._modules['block'][0](x)
        return self.side(self.block(x))


def first_layer(block, x): return block[0](x)
def first_of(net): return net.block[0]


@child('side.bn', trap='block.conv block.bn')
class GivenToHelper(Pair):
    "The child is handed to a function, which takes it apart"
    def forward(self, x):
        h = self.side(x)
        return first_layer(self.block, h) if x.max() > 50 else self.block(h)


@child(trap='block.conv block.bn')
class SelfGivenToHelper(Pair):
    "The model itself is handed to a function: the class mentions no child"
    def forward(self, x):
        h = self.side(x)
        return first_of(self)(h) if x.max() > 50 else self.block(h)


class Borrows(nn.Module):
    "Holds a layer of somebody else's, not registered"
    def __init__(self, layer):
        super().__init__()
        self.held = [layer]

    def forward(self, x): return self.held[0](x) if x.max() > 50 else x


@child('side.bn', trap='block.conv block.bn')
class LayerOfSibling(Pair):
    "A child holds a layer of its sibling, and calls it on another way; the parent asks nothing"
    def __init__(self):
        super().__init__()
        self.gate = Borrows(self.block[0])

    def forward(self, x): return self.side(self.block(self.gate(x)))


class TailOfBase(Pair):
    def forward(self, x): return self.tail(x) if x.max() > 50 else self.side(self.block(x))


@child('side.bn', trap='block.conv block.bn')
class MethodOfSubclass(TailOfBase):
    "The class that asks mentions no child; its subclass does"
    def tail(self, x): return self.block[0](x)


@child('side.bn', trap='block.conv block.bn')
class ByProperty(Pair):
    "A property hands out the layer"
    @property
    def first(self): return self.block[0]

    def forward(self, x):
        h = self.side(x)
        return self.first(h) if x.max() > 50 else self.block(h)


@child('side.bn', trap='block.conv block.bn')
class ByLocalName(Pair):
    "The child under a local name"
    def forward(self, x):
        b = self.block
        h = self.side(x)
        return b[0](h) if x.max() > 50 else b(h)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def first(self, x): return self.block[0](x)
    def forward(self, x): return self.block(x)


@child('side.bn', trap='inner.block.conv inner.block.bn')
class MethodOfChild(nn.Module):
    "Another method of the child, which calls the convolution alone"
    def __init__(self):
        super().__init__()
        self.inner, self.side = Inner(), block()

    def forward(self, x):
        h = self.side(x)
        return self.inner.first(h) if x.max() > 50 else self.inner(h)


@child('layers.0.bn layers.1.bn')
class LoopThatCalls(nn.Module):
    "A loop over a ModuleList that only calls its items: each item is a unit, an early exit lies between them"
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([block(), block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if x.max() > 20: break
        return x


@child('layers.0.bn layers.1.bn')
class LoopThatCountsAndCalls(nn.Module):
    "The same with `enumerate`"
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([block(), block()])

    def forward(self, x):
        hot = x.max() > 50
        for i, layer in enumerate(self.layers): x = x + layer(x) if i and hot else layer(x)
        return x


@child('ways.a.bn ways.b.bn')
class LoopOverValues(nn.Module):
    "The same over the values of a ModuleDict"
    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleDict(dict(a=block(), b=block()))

    def forward(self, x):
        for layer in self.ways.values(): x = layer(x)
        return x * 2 if x.max() > 20 else x


@child(trap='layers.0 layers.1')
class LoopOverBareLayers(nn.Module):
    "The items are the layers themselves: the way out lies between them"
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv(), bn()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if x.abs().max() > 15: break
        return x


@child('side.bn', trap='a.0 a.1')
class SharedBetweenChildren(nn.Module):
    "Two sequences, both only called, with the same convolution in them; the example shows one"
    def __init__(self):
        super().__init__()
        shared = conv(3, 3)
        self.a, self.b, self.side = nn.Sequential(shared, bn(3)), nn.Sequential(shared, nn.ReLU()), block()

    def forward(self, x):
        h = self.side(x)
        return self.b(h) if x.max() > 50 else self.a(h)


@child(trap='block.conv block.bn')
class WeightRegisteredTwice(Pair):
    "The weight is a Parameter of the model, too, and read on another way"
    def __init__(self):
        super().__init__()
        self.weight = self.block.conv.weight

    def forward(self, x):
        h = self.side(x)
        return F.conv2d(h, self.weight) if x.max() > 50 else self.block(h)


@child(trap='block.conv block.bn')
class TiedTwin(Pair):
    "Another convolution has the same weight, and is called on another way"
    def __init__(self):
        super().__init__()
        self.twin = conv(3, 3)
        self.twin.weight = self.block.conv.weight

    def forward(self, x):
        h = self.side(x)
        return self.twin(h) if x.max() > 50 else self.block(h)


def forward_of_instance(self, x): return self.block[0](x) if x.max() > 50 else self.side(self.block(x))


@child(trap='block.conv block.bn')
class ForwardOnInstance(Pair):
    "The forward that runs is not the one in the class's source"
    def __init__(self):
        super().__init__()
        self.forward = functools.partial(forward_of_instance, self)


def forward_put_in(self, x): return self.block[0](x) if x.max() > 50 else self.side(self.block(x))


@child(trap='block.conv block.bn')
class ForwardPutIn(Pair):
    "Nor need the class's own forward stand in its source"
    forward = forward_put_in


NO_SOURCE = """
class NoSource(Pair):
    def forward(self, x): return self.block[0](x) if x.max() > 50 else self.side(self.block(x))
"""


@child(trap='block.conv block.bn')
def no_source():
    "A class made at run time: there is nothing to read"
    made = dict(Pair=Pair, __name__='made')
    exec(NO_SOURCE, made)
    return made['NoSource']()


# ---------------------------------------------------------------- (c) conditions whose other way only raises
raises = group('raises')


@raises('bn')
class Asserts(Line):
    "Who gets past the assertion takes the one way there is"
    def forward(self, x):
        assert x.max() < 1e6, f'too hot: {x.max().item()}'
        y = self.bn(self.conv(x))
        assert not y.isnan().any()
        return y


@raises('bn')
class IfRaises(Line):
    "The same spelled out"
    def forward(self, x):
        y = self.conv(x)
        if x.max() > 1e6 or x.min() < -1e6:
            top = float(x.max())
            raise ValueError(f'too hot: {top}')
        return self.bn(y)


@raises('block.bn', trap='conv bn')
class AssertsTheMap(Parts):
    "What is asserted is what the fold would change: other inputs would raise"
    def forward(self, x):
        y = self.conv(x + self.block(x))
        assert y.abs().max() < 25
        return self.bn(y)


@raises('bn')
class TorchAssert(Line):
    "The same by `torch._assert`"
    def forward(self, x):
        torch._assert(x.max() < 1e6, 'too hot')
        y = self.conv(x)
        torch._assert(y.shape[0] == x.shape[0], 'lost items')
        return self.bn(y)


def verify(x, channels=3):
    if x.dim() != 4 or x.shape[1] != channels: raise ValueError(f'images of {channels} channels are needed')
    if not bool(torch.isfinite(x).all()): raise ValueError('not finite')


@raises('bn')
class HelperRaises(Line):
    "The same in a helper"
    def forward(self, x):
        verify(x)
        y = self.bn(self.conv(x))
        verify(y, 4)
        return y


@raises('bn')
class AssertsSizes(Line):
    "Sizes that are only checked"
    def forward(self, x):
        n, c, h, w = x.shape
        assert c == 3 and h >= 2 and w >= 2 and n > 0, f'too small: {h}x{w}'
        if h * w > 10 ** 6: raise ValueError('too large')
        return self.bn(self.conv(x))


@raises('layers.1')
class CastToFloat(nn.Module):
    "`float()` of a tensor is a cast, a loop over a ModuleList no branch"
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv(), bn(), nn.ReLU()])

    def forward(self, x):
        x = x.float().double()
        for layer in self.layers: x = layer(x)
        return x


@raises('bn', xb=(LOW, torch.ones(2, 1, 8, 8)), others=[(SPIKE, (SPIKE > -1).any(1, True).double())])
class CastOfMask(Line):
    "`bool()`, `int()` and `long()` of a tensor are casts"
    def forward(self, x, mask):
        x = x * mask.bool() + mask.int() - mask.long()
        return self.bn(self.conv(x.double())) * mask.bool()


@raises('block.bn', trap='conv bn')
class AssertIsCaught(Parts):
    "Here the assertion's other way does not end"
    def forward(self, x):
        y = self.conv(self.block(x))
        try: assert x.max() < 50
        except AssertionError: y = torch.relu(y)
        return self.bn(y)


@raises('block.bn', trap='conv bn')
class RaiseIsSuppressed(Parts):
    "Caught by a context manager: there is no `except` to be seen"
    def forward(self, x):
        y, act = self.conv(self.block(x)), torch.relu
        with contextlib.suppress(ValueError):
            if x.max() > 50: raise ValueError('hot')
            act = torch.clone
        return self.bn(act(y))


class Refuses(nn.Module):
    def forward(self, x):
        if x.max() > 50: raise ValueError('hot')
        return x


@raises('block.bn', trap='conv bn')
class RaiseOfChildIsCaught(Parts):
    "The child only raises, and the parent catches"
    def __init__(self):
        super().__init__()
        self.check = Refuses()

    def forward(self, x):
        y = self.conv(self.block(x))
        try: y = self.check(x).mean() * 0 + y
        except ValueError: y = torch.relu(y)
        return self.bn(y)


@raises('block.bn', trap='conv bn')
class HelperIsCaught(Parts):
    "The helper only raises, and its caller catches"
    def forward(self, x):
        y = self.conv(self.block(x))
        try: verify_cold(x)
        except ValueError: y = torch.relu(y)
        return self.bn(y)


def verify_cold(x):
    if x.max() > 50: raise ValueError('hot')


@raises('block.bn', trap='conv bn')
class ReturnInFinally(Parts):
    "A `return` in `finally` swallows what was raised"
    def forward(self, x):
        y = self.conv(self.block(x))
        z = torch.relu(y)
        try:
            assert x.max() < 50
            z = y
        finally: return self.bn(z)


# ---------------------------------------------------------------- (d) sizes
size = group('size')


@size('block.bn', trap='conv bn', others=[image(5), LOW[:1]])
class ByItems(Parts):
    "More items than the example had"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if len(x) > 4 else y)


@size('block.bn', trap='conv bn', others=[image(1), image(3)])
class ByOneItem(Parts):
    "One item only"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if x.shape[0] == 1 else y)


@size('block.bn', trap='conv bn', others=[image(150, 2, 2), image(1)])
class ByManyItems(Parts):
    "A number of items that no look at a few more would show"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if x.size(0) >= 128 else y)


@size('block.bn', trap='conv bn', others=SIZES)
class ByHeight(Parts):
    "A larger image"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if x.shape[2] > 12 else y)


@size('block.bn', trap='conv bn', others=SIZES)
class BySmallHeight(Parts):
    "A smaller image"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if x.shape[-2] < 6 else y)


@size('block.bn', trap='conv bn', others=SIZES)
class ByOblongImage(Parts):
    "An image that is not square"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(y if x.shape[-1] == x.shape[-2] else torch.relu(y))


@size('block.bn', trap='conv bn', others=[*SIZES, image(1, 224, 224)])
class ByExactWidth(Parts):
    "A width that no look would hit by chance"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if x.shape[-1] == 224 else y)


class Sequence(nn.Module):
    "Layers for input of shape (items, length, features)"
    def __init__(self):
        super().__init__()
        self.lin, self.conv, self.bn = nn.Linear(6, 5), nn.Conv1d(5, 4, 1), nn.BatchNorm1d(4)


WORDS = [tensor(2, n, 6) for n in (5, 3, 9, 1)]


@size(trap='conv bn', xb=(WORDS[0],), others=WORDS)
class ByLength(Sequence):
    "The length is on axis 1, where images have their channels"
    def forward(self, x):
        y = self.conv(self.lin(x).transpose(1, 2))
        if x.shape[1] > 6: y = torch.relu(y)
        return self.bn(y)


@size(trap='conv bn', xb=(WORDS[0],), others=WORDS)
class ByShortLength(Sequence):
    "A shorter one"
    def forward(self, x):
        y = self.conv(self.lin(x).transpose(1, 2))
        if x.shape[1] < 4: y = torch.relu(y)
        return self.bn(y)


@size(trap='lin bn', xb=(WORDS[3],), others=WORDS)
class SequenceOfOne(nn.Module):
    "A `reshape` where `transpose` was meant: the same for a length of one only"
    def __init__(self):
        super().__init__()
        self.lin, self.bn = nn.Linear(6, 4), nn.BatchNorm1d(4)

    def forward(self, x): return self.bn(self.lin(x).reshape(len(x), 4, -1))


@size(trap='bn head', xb=(image(2, 1, 1),), others=SIZES)
class MapsOfOne(nn.Module):
    "No zeros are put in for maps of 1x1 only"
    def __init__(self):
        super().__init__()
        self.bn, self.head = bn(3), nn.Conv2d(3, 2, 1)

    def forward(self, x): return self.head(F.pad(self.bn(x), (0, x.shape[-1] - 1)))


@size('bn', others=SIZES)
class ConstantChannels(Line):
    "The channels of a layer's output are no size that could be another"
    def forward(self, x):
        y = self.conv(x)
        if y.shape[1] != 4: y = torch.relu(y)
        return self.bn(y)


@size('block.bn', others=[*SIZES, image(2, c=1)])
class GreyImages(Parts):
    "`if x.shape[1] != 3` before the layers: in the block the fold is sound, and so it is beside it"
    def forward(self, x):
        if x.shape[1] != 3: x = x.repeat(1, 3, 1, 1)
        return self.bn(self.conv(self.block(x)))


@size('block.bn', trap='conv bn', others=[*SIZES, image(2, c=1)])
class GreyImagesOtherwise(Parts):
    "The channels of an input are no constant where the model takes others"
    def forward(self, x):
        y = self.conv(self.block(x if x.shape[1] == 3 else x.repeat(1, 3, 1, 1)))
        return self.bn(torch.relu(y) if x.shape[1] == 1 else y)


@size('bn', others=SIZES)
class ThreeChannelsOnly(Line):
    "`if x.shape[1] != 3` that only raises"
    def forward(self, x):
        if x.shape[1] != self.conv.in_channels: raise ValueError(f'{x.shape[1]} channels')
        return self.bn(self.conv(x))


@size('bn2', others=SIZES)
class WhereChannelsDiffer(nn.Module):
    "A residual connection with a projection where channels differ: they always do"
    def __init__(self):
        super().__init__()
        self.conv2, self.bn2, self.down = conv(), bn(), conv(k=1)

    def forward(self, x):
        y = self.bn2(self.conv2(x))
        if x.shape[1] != y.shape[1]: x = self.down(x)
        return torch.relu(x + y)


@size('block.bn', trap='conv bn', others=SIZES)
class PadToMultiple(Parts):
    "The example needs no zeros, and another width does; nothing asks"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(F.pad(y, (0, -y.shape[-1] % 4)))


@size('block.bn', trap='conv bn', others=SIZES)
class PadOdd(Parts):
    "The same with `&`"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(F.pad(y, (0, y.shape[-1] & 1, 0, y.shape[-2] & 1)))


@size('block.bn', trap='conv bn', others=SIZES)
class PadByDivmod(Parts):
    "The same with `divmod`"
    def forward(self, x):
        y = self.conv(self.block(x))
        _, rest = divmod(y.shape[-1], 4)
        return self.bn(F.pad(y, (rest, rest)))


@size('block.bn', trap='conv bn', others=SIZES)
class PadToLeast(Parts):
    "Zeros for images that are smaller than the example"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(F.pad(y, (0, max(0, 8 - y.shape[-1]))))


@size('block.bn', trap='conv bn', others=SIZES)
class ByRange(Parts):
    "A loop over a size"
    def forward(self, x):
        y = self.conv(self.block(x))
        for _ in range(x.shape[-1] // 8 - 1): y = torch.relu(y)
        return self.bn(y)


@size('block.bn', trap='conv bn', others=SIZES)
class BySizeAsIndex(Parts):
    "A size as the index of a list"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn([torch.clone, torch.relu][x.shape[-1] // 16](y))


@size('block.bn', trap='conv bn', others=SIZES)
class BySizeAsKey(Parts):
    "A size as the key of a dict"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn({8: torch.clone}.get(x.shape[-1], torch.relu)(y))


@size('block.bn', trap='conv bn', others=SIZES)
class BySizeAsName(Parts):
    "A size in a name"
    act_8 = staticmethod(torch.clone)
    act_16 = act_4 = act_9 = act_13 = staticmethod(torch.relu)

    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(getattr(type(self), f'act_{x.shape[-1]}')(y))


@size('block.bn', trap='conv bn', others=SIZES)
class BySplit(Parts):
    "How many pieces of eight there are"
    def forward(self, x):
        first, *rest = self.conv(self.block(x)).split(8, -1)
        return self.bn(torch.cat([first, *map(torch.relu, rest)], -1))


@size('block.bn', trap='conv bn', others=[image(5), image(1)])
class ByIntOfSize(Parts):
    "`int` of a size"
    def forward(self, x):
        n = int(x.shape[0])
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if n > 2 else y)


@size('block.bn', trap='conv bn', others=SIZES)
class ByLog(Parts):
    "A size through `math`"
    def forward(self, x):
        depth = int(math.log2(x.shape[-1]))
        y = self.conv(self.block(x))
        for _ in range(depth - 3): y = torch.relu(y)
        return self.bn(y)


@size('block.bn', trap='conv bn', others=[*SIZES, image(1, 64, 64)])
class ByNumel(Parts):
    "The number of elements, where memory is spared"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if x.numel() > 10000 else y)


@functools.lru_cache(None)
def act_for(n): return torch.relu if n > 12 else torch.clone


@size('block.bn', trap='conv bn', others=SIZES)
class ByCache(Parts):
    "The branch is in a function that has answered before, and is not run again"
    def forward(self, x):
        act_for(8)
        y = self.conv(self.block(x))
        return self.bn(act_for(x.shape[-1])(y))


@size('block.bn', trap='conv bn', others=SIZES)
class InPlaceBeyond(Parts):
    "Written in place is only what lies beyond the width of the example"
    def forward(self, x):
        y = self.conv(self.block(x))
        y[..., 8:].relu_()
        return self.bn(y)


@size('block.bn', trap='conv bn', others=[image(5), image(1)])
class ItemsBeyond(Parts):
    "The same with items"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.cat([y[:2], y[2:].relu()]))


@size('bn', others=SIZES)
class SizesForTorch(Line):
    "Sizes that only torch gets decide nothing"
    def forward(self, x):
        n, c, h, w = x.shape
        y = self.bn(self.conv(x)).view(n, 4, h * w).transpose(1, 2)
        return F.interpolate(y.transpose(1, 2).reshape(n, -1, h, w), size=x.shape[2:])


@size('block.bn', others=SIZES)
class RestOnTheWay(Parts):
    "A size asked between two blocks: inside them all is sound"
    def forward(self, x):
        x = self.block(x)
        if x.shape[-1] % 2: x = F.pad(x, (0, 1))
        return self.bn(torch.relu(self.conv(x)))


@size('block.bn', trap='conv bn', others=SIZES)
class PadToFixed(Parts):
    "Zeros for smaller images, a crop for larger ones, nothing for the example"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(F.pad(y, (0, 8 - y.shape[-1])))


@size('block.bn', trap='conv bn', others=SIZES)
class RollBySize(Parts):
    "A distance along the channels, zero for the example"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(y.roll(x.shape[-1] % 8, 1))


@size('block.bn', trap='conv bn', others=SIZES)
class MaxPoolBySize(Parts):
    "The maximum of one number is that number; of two it is another where a scale is negative"
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(3, 12), bn(12)

    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(F.max_pool2d(y, max(1, y.shape[-1] // 8)))


@size('block.bn', trap='conv bn', others=SIZES)
class ErrorBySize(Parts):
    "torch raises on another size, and that is caught"
    def forward(self, x):
        y = self.conv(self.block(x))
        try: y.view(-1, 4, 64)
        except RuntimeError: y = torch.relu(y)
        return self.bn(y)


@size('body.block.bn', trap='body.conv body.bn', others=SIZES)
class SizeGivenToChild(WithBody):
    "The parent asks for the size, the child branches"
    def forward(self, x): return self.body(x, x.shape[-1] > 8)


@size('body.block.bn', trap='body.conv body.bn', others=SIZES)
class LengthGivenToChild(WithBody):
    "A size is handed down as it is: zero is false"
    def forward(self, x): return self.body(x, x.shape[-1] % 8)


# ---------------------------------------------------------------- (e) doors
door = group('door')


class Modes(Parts):
    "Its second input, a plain bool, picks the way"
    def __init__(self):
        super().__init__()
        self.side = block()

    def forward(self, x, more=False): return self.side(self.block(x)) if more else self.block(x)


@door('block.bn side.bn', others=[(SPIKE,), (SPIKE, True), (LOW[:1], True)], kw=dict(also=[(LOW, True)]))
def reached_by_another_example():
    "`side` is called only where the second example leads"
    return Modes()


@door('block.bn', keeps='side.bn', others=[(SPIKE,), (SPIKE, True)])
def reached_by_none():
    "Without it, nothing is known of `side`"
    return Modes()


@door('block.bn', keeps='bn', trap='conv bn', others=[(SPIKE,), (SPIKE, True)], kw=dict(also=[(LOW, True)]))
class ExamplesDisagree(Parts):
    "The second example shows a ReLU between the layers"
    def forward(self, x, more=False):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if more else y)


@door('bn', xb=(LOW, None), others=[(SPIKE, None), (SPIKE, LOW[:, :1])], kw=dict(also=[(LOW, LOW[:, :1])]))
class ExamplesAgree(Line):
    "With a mask or without: the layers fold the same"
    def forward(self, x, mask):
        y = self.bn(self.conv(x))
        return y if mask is None else y * mask


@door('bn', xb=dict(pixel_values=LOW), others=[dict(pixel_values=SPIKE), dict(pixel_values=OTHER)])
class KeywordInput(Line):
    "The model takes its input by name only"
    def forward(self, *, pixel_values): return self.bn(self.conv(pixel_values))


@door('bn', xb=dict(x=LOW, mask=LOW[:, :1]), others=[dict(x=SPIKE, mask=LOW[:, :1]), (SPIKE, LOW[:, :1])])
class KeywordInputs(Line):
    "Inputs by name or by place"
    def forward(self, x, mask=None): return self.bn(self.conv(x)) * mask


def nested(x): return {'image': x, 'more': {'mask': [x[:, :1]]}}


@door('bn', xb=(nested(LOW),), others=[(nested(SPIKE),), (nested(OTHER),)])
class NestedInputs(Line):
    "A dict in a dict"
    def forward(self, b): return self.bn(self.conv(b['image'])) * b['more']['mask'][0]


@door('bn', xb=dict(batch={'image': LOW, 'n': 3}), others=[dict(batch={'image': SPIKE, 'n': 1})])
class NestedKeyword(Line):
    "The same by name"
    def forward(self, batch): return self.bn(self.conv(batch['image'])) * batch['n']


class Embeds(nn.Module):
    "`embed` and `forward` share layers; `embed` ends in a BatchNorm, which `forward` gives to `head`"
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act, self.norm, self.head = conv(), bn(), nn.ReLU(), bn(), nn.Conv2d(4, 2, 1)

    def embed(self, x): return self.norm(self.act(self.bn(self.conv(x))))
    def stem(self, x): return self.conv(x)
    def forward(self, x): return self.head(self.embed(x))


@script
def report_names_what_changed(BNFolder, FoldError):
    "`embed` gives other vectors, and so does `conv`: the report says so; `bn`, which is folded back, gives the same"
    net = real(Embeds(), zero=0.)
    was = {p: answer_of(net, p) for p in ('conv', 'bn', 'act', 'norm', 'head', '')}
    report = BNFolder(net).fold(LOW)
    assert report.bn_after == 0 and isinstance(report.changed, tuple)
    now = {p: answer_of(net, p) for p in was}
    assert {p for p in was if rel_err([was[p]], [now[p]]) > 1e-8} == set(report.changed) == {'conv', 'norm'}


def answer_of(net, path):
    "The output of module `path` in a forward of `net`"
    got = []
    hook = net.get_submodule(path).register_forward_hook(lambda m, i, o: got.append(o.detach().clone()))
    try: net(LOW)
    finally: hook.remove()
    return got[0]


@script
def another_module_with_the_same_layers(BNFolder, FoldError):
    "`Sequential(*net.children())` is off afterwards: the report notices the live module, and none where there is none"
    gc.collect()
    net = real(Embeds(), zero=0.)
    assert not BNFolder(copy.deepcopy(net)).fold(LOW).shared
    features = nn.Sequential(*list(net.children())[:-1])
    report = BNFolder(net).fold(LOW)
    assert report.shared and len(features) == 4


@script
def weight_tied_to_another_model(BNFolder, FoldError):
    "Another live model holds the same Parameter: noticed, too"
    net, other = real(seq(conv=conv(), bn=bn()), zero=0.), conv().double()
    other.weight = net.conv.weight
    want = other(LOW)
    report = BNFolder(net).fold(LOW)
    assert report.shared or rel_err([want], [other(LOW)]) < 1e-8


# ---------------------------------------------------------------- (f) state
state = group('state')


class Counter:
    "A callable with a state"
    def __init__(self): self.n, self.seen = 0, []

    def __call__(self, x):
        self.n += 1
        self.seen.append(x.shape)
        return x


def deep(m): return repr(m.store)
def counted(m): return repr((m.count.n, m.count.seen))


@state('bn', state=deep)
class ContainersFourDeep(Line):
    "The forward counts in a list in a dict in a tuple in a dict"
    def __init__(self):
        super().__init__()
        self.store = {'a': ({'b': [[0]]},)}

    def forward(self, x):
        self.store['a'][0]['b'][0][0] += 1
        return self.bn(self.conv(x))


@state('bn', state=counted)
class CallableWithState(Line):
    "An object with `__call__` counts"
    def __init__(self):
        super().__init__()
        self.count = Counter()

    def forward(self, x): return self.bn(self.conv(self.count(x)))


class Running(nn.Module):
    "Keeps a running mean in a buffer, in eval mode too"
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(()))

    def forward(self, x):
        self.mean.mul_(0.9).add_(x.mean().to(self.mean) * 0.1)
        return x


@state('bn', state=lambda m: bits(m.held[0].mean))
class UnregisteredBuffer(Line):
    "A module in a plain list has a buffer"
    def __init__(self):
        super().__init__()
        self.held = [Running()]

    def forward(self, x): return self.bn(self.conv(self.held[0](x)))


@state('bn', state=lambda m: bits(m.running.mean))
class RegisteredBuffer(Line):
    "And a registered one"
    def __init__(self):
        super().__init__()
        self.running = Running()

    def forward(self, x): return self.bn(self.conv(self.running(x)))


@state('block.bn', state=lambda m: bits(m.scale))
class ParameterThatForwardWrites(Parts):
    "A Parameter as a memory"
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x):
        with torch.no_grad(): self.scale.add_(1)
        return self.bn(self.conv(self.block(x)))


@state('bn', state=lambda m: bits(m.gen.get_state()))
class OwnGenerator(Line):
    "A torch generator of the model's own"
    def __init__(self):
        super().__init__()
        self.gen = torch.Generator().manual_seed(3)

    def forward(self, x):
        return self.bn(self.conv(x + torch.rand(x.shape, generator=self.gen, dtype=x.dtype)))


@state('bn', state=lambda m: repr((m.py.getstate(), m.np.bit_generator.state)))
class OwnPythonGenerators(Line):
    "Generators of Python and numpy, of the model's own"
    def __init__(self):
        super().__init__()
        self.py, self.np = random.Random(3), np.random.default_rng(3)

    def forward(self, x): return self.bn(self.conv(x * (1 + self.py.random() + self.np.random())))


@state('bn', state=lambda m: repr((m.array, m.tally, m.last)))
class ArraysAndCounters(Line):
    "numpy arrays, Counters, deques"
    def __init__(self):
        super().__init__()
        self.array, self.tally, self.last = np.zeros(3), collections.Counter(), collections.deque(maxlen=2)

    def forward(self, x):
        self.array += 1
        self.tally['calls'] += 1
        self.last.append(self.tally['calls'])
        return self.bn(self.conv(x))


@dataclass
class Memory:
    step: int = 0
    last: object = None


@state('bn', state=lambda m: (m.memory.step, bits(m.memory.last)))
class DataclassState(Line):
    "A dataclass with a count and a tensor"
    def __init__(self):
        super().__init__()
        self.memory = Memory(0, torch.zeros(4))

    def forward(self, x):
        self.memory.step += 1
        self.memory.last = self.memory.last + 1
        return self.bn(self.conv(x))


@state('bn', state=lambda m: repr(sorted(vars(m).keys() - {'training'})))
class AttributeThatAppears(Line):
    "An attribute that there was not before the first call"
    def forward(self, x):
        if not hasattr(self, 'calls'): self.calls = 0
        self.calls += 1
        return self.bn(self.conv(x))


def wide(n=3000):
    "A layer with many rows, and what it was folded from"
    net = real(nn.Sequential(nn.Linear(4, n), nn.BatchNorm1d(n)), zero=0.)
    return net, tensor(2, 4)


def refuses_to_unfold(BNFolder, FoldError, net, x, change, name):
    "Does `unfold` say which parameter was changed?"
    folder = BNFolder(net)
    folder.fold(x)
    with torch.no_grad(): change(net)
    try: folder.unfold()
    except FoldError as e:
        assert name in str(e), e
        folder.unfold(force=True)
        return
    raise AssertionError(f'{name} was changed, and unfolded without a word')


@script
def a_third_of_the_rows_was_changed(BNFolder, FoldError):
    "All elements count: rows 1, 4, 7, ... were trained"
    net, x = wide()
    refuses_to_unfold(BNFolder, FoldError, net, x, lambda m: m[0].weight[1::3].add_(1), '0.weight')


@script
def one_element_was_changed(BNFolder, FoldError):
    "One of 12,000"
    net, x = wide()
    refuses_to_unfold(BNFolder, FoldError, net, x, lambda m: m[0].weight[1234, 3].add_(1e-3), '0.weight')


@script
def one_bias_was_changed(BNFolder, FoldError):
    "By one unit in the last place"
    net, x = wide()
    step = lambda m: m[0].bias[2999].nextafter_(torch.tensor(1e9, dtype=torch.float64))
    refuses_to_unfold(BNFolder, FoldError, net, x, step, '0.bias')


@script
def two_elements_were_swapped(BNFolder, FoldError):
    "The sum of all is as before"
    net, x = wide()
    refuses_to_unfold(BNFolder, FoldError, net, x, lambda m: m[0].weight.copy_(m[0].weight.flip(0)), '0.weight')


@script
def a_layer_that_was_not_folded_was_changed(BNFolder, FoldError):
    "The head was trained: the layers from before would stand beside it"
    net = real(seq(conv=conv(), bn=bn(), act=nn.ReLU(), head=conv(4, 2)), zero=0.)
    refuses_to_unfold(BNFolder, FoldError, net, LOW, lambda m: m.head.weight[1, 2, 1, 1].add_(1e-3), 'head.weight')


@state('block.bn', trap='conv bn', others=[SPIKE, LOW], state=lambda m: repr(m.last))
class RemembersLast(Parts):
    "The convolution's output waits for the next call: the first one does not read it"
    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        y = self.conv(self.block(x))
        z = self.bn(y) if self.last is None else self.bn(y) + self.last
        self.last = y.detach()
        return z


# ---------------------------------------------------------------- (g) modes of torch around the fold
@script
def inference_mode_around_the_fold(BNFolder, FoldError):
    "Weights made there must be ordinary tensors: backward and load_state_dict work afterwards"
    net = real(seq(conv=conv(), bn=bn(), act=nn.ReLU(), head=conv(4, 2)), zero=0.)
    want = net(LOW)
    with torch.inference_mode(): BNFolder(net).fold(LOW)
    assert not any(t.is_inference() for t in (*net.parameters(), *net.buffers()))
    got = net(LOW)
    got.sum().backward()
    assert net.conv.weight.grad is not None and rel_err([want], [got]) < 1e-8
    net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()})


@script
def unfolded_in_inference_mode(BNFolder, FoldError):
    "And what is put back there, too"
    net = real(seq(conv=conv(), bn=bn(), act=nn.ReLU()), zero=0.)
    folder = BNFolder(net)
    folder.fold(LOW)
    with torch.inference_mode(): folder.unfold()
    net.train()(LOW).sum().backward()
    net.load_state_dict(net.state_dict())


@script
def default_device_around_the_fold(BNFolder, FoldError):
    "What the fold makes for itself lies where the model is"
    net = real(seq(b=block(), lin=nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 2))), zero=0.)
    want, was = net(LOW), torch.get_default_device()
    torch.set_default_device('meta')
    try: report = BNFolder(net).fold(LOW)
    finally: torch.set_default_device(None if was == torch.device('cpu') else was)
    assert report.bn_after == 0 and all(p.device.type == 'cpu' for p in net.parameters())
    assert rel_err([want], [net(LOW)]) < 1e-8


@script
def default_dtype_around_the_fold(BNFolder, FoldError):
    "Nor does the default dtype matter"
    net = real(seq(conv=conv(), bn=bn(), act=nn.ReLU()), zero=0.)
    want, was = net(LOW), torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try: BNFolder(net).fold(LOW)
    finally: torch.set_default_dtype(was)
    assert net.conv.weight.dtype == torch.float64 and rel_err([want], [net(LOW)]) < 1e-8


# ---------------------------------------------------------------- (h) one odd layer never stops the rest
odd = group('odd')


@odd('block.bn')
class ReadsNumFeatures(Parts):
    "An Identity has no `num_features`"
    def forward(self, x):
        y = self.bn(self.conv(self.block(x)))
        return y.view(len(x), self.bn.num_features, -1)


@odd('block.bn')
class ReadsDtypeOfWeight(Parts):
    "Nor a weight"
    def forward(self, x): return self.bn(self.conv(self.block(x.to(self.bn.weight.dtype))))


@odd('block.bn')
class ReadsEps(Parts):
    "Nor an `eps` to compute with"
    def forward(self, x): return self.bn(self.conv(self.block(x))) / (1 + self.bn.eps)


@odd('block.bn')
class AsksForItsClass(nn.Module):
    "An Identity is no BatchNorm: the loop would take another way with it"
    def __init__(self):
        super().__init__()
        self.block, self.layers = block(), nn.ModuleList([conv(), bn()])

    def forward(self, x):
        x = self.block(x)
        for layer in self.layers: x = torch.relu(layer(x)) if isinstance(layer, nn.BatchNorm2d) else layer(x)
        return x


@odd('block.bn')
class CalledFromList(Parts):
    "The list goes on holding the layer that was replaced"
    def __init__(self):
        super().__init__()
        self.plain = [self.conv, self.bn]

    def forward(self, x):
        x = self.block(x)
        for layer in self.plain: x = layer(x)
        return x


@odd('block.bn bn', keeps='unused')
class UnusedLazyLayer(Parts):
    "A lazy layer that no batch has reached has no numbers yet"
    def __init__(self):
        super().__init__()
        self.unused, self.lazy = nn.LazyBatchNorm2d(), nn.LazyLinear(3)

    def forward(self, x): return self.bn(self.conv(self.block(x)))


class Cond(nn.Module):
    def forward(self, x): return torch.cond(x.max() > 2, torch.relu, torch.clone, (x,))


@odd('block.bn', trap='conv bn')
class TorchCond(Parts):
    "The ways of `torch.cond` are both to be had; the other layers do not mind"
    def __init__(self):
        super().__init__()
        self.cond = Cond()

    def forward(self, x): return self.bn(self.cond(self.conv(self.block(x))))


@odd('block.bn', keeps='bn')
class HookedBatchNorm(Parts):
    "A hook on the layer would see an Identity"
    def __init__(self):
        super().__init__()
        self.bn.register_forward_hook(double_output)

    def forward(self, x): return self.bn(self.conv(self.block(x)))


def double_output(m, i, o): return o * m.num_features


@odd('block.bn')
def scripted_child():
    "A scripted child with a BatchNorm in it"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        inner = torch.jit.script(seq(conv=conv(), bn=bn()).eval())
    return seq(block=block(), inner=inner)


@odd('a.bn', keeps='b.bn', kw=dict(keep=['b.bn']))
def kept_by_path():
    "What the user wants to stay, stays"
    return seq(a=block(), b=block())


@odd('a.bn', keeps='b.bn c.bn', kw=dict(keep=['[bc].*']))
def kept_by_pattern():
    "A pattern of paths"
    return seq(a=block(), b=block(), c=block())


@odd('a.bn', keeps='flat.1', kw=dict(keep=[nn.BatchNorm1d]))
def kept_by_class():
    "A class"
    flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 2))
    return seq(a=block(), pool=nn.AdaptiveAvgPool2d(2), flat=flat)


@odd('a.bn', keeps='b.bn', kw=dict(keep='b'))
def kept_below_a_path():
    "A path of a block, and a single one: all that is in it stays"
    return seq(a=block(), b=block())


# ---------------------------------------------------------------- (i) random draws in eval
draws = group('draws')
MANY = [LOW] * 6


@draws('block.bn bn', others=MANY)
class DrawThatDoesNotMatter(Parts):
    "Stochastic depth as it stands in real models: `or not self.training` wins in eval"
    def forward(self, x):
        y = self.conv(self.block(x))
        if 1. > random.random() or not self.training: return self.bn(y)
        return y


@draws('bn', others=MANY)
class LayerDrop(Line):
    "Drawn first, asked for training then"
    def forward(self, x):
        p = np.random.uniform(0, 1)
        if self.training and p < 0.5: return x
        return self.bn(self.conv(x))


@draws(trap='conv bn', others=MANY)
class DrawPicksTheWay(Parts):
    "Half of the calls have a ReLU between the layers"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if random.random() < 0.6 else y)


@draws(trap='conv bn', others=MANY)
class NumpyPicksTheWay(Parts):
    "The same with numpy"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if np.random.rand() < 0.6 else y)


@draws(trap='conv bn', others=MANY)
class ChoicePicksTheWay(Parts):
    "`random.choice` draws no number between 0 and 1"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(random.choice([torch.relu, torch.clone])(y))


@draws(trap='conv bn', others=MANY)
class ShufflePicksTheWay(Parts):
    "Nor does `random.shuffle`"
    def forward(self, x):
        acts = [torch.relu, torch.clone]
        random.shuffle(acts)
        return self.bn(acts[0](self.conv(self.block(x))))


@draws(trap='conv bn', others=MANY)
class MiddlePicksTheWay(Parts):
    "Draws forced low and high take the same way; one between them does not"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if 0.2 < random.random() < 0.8 else y)


@draws('block.bn', trap='conv bn', others=MANY)
class TorchPicksTheWay(Parts):
    "A draw of torch is a tensor, and a question of it a branch"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if torch.rand(()) < 0.6 else y)


# ---------------------------------------------------------------- (j) a clean FoldError, or a right fold
clean = group('clean')


@clean()
class SparseOutput(Line):
    "Outputs that the check must be able to compare"
    def forward(self, x): return self.bn(self.conv(x)).to_sparse()


@clean()
class ComplexOutput(Line):
    "The same"
    def forward(self, x): return torch.fft.rfft(self.bn(self.conv(x)))


@clean()
class NestedOutput(Line):
    "The same"
    def forward(self, x): return torch.nested.nested_tensor(list(self.bn(self.conv(x))))


@clean(others=[LOW, OTHER])
class NestedInside(Line):
    "Nested tensors on the way"
    def forward(self, x): return torch.nested.nested_tensor(list(self.bn(self.conv(x)))).to_padded_tensor(0.)


def expanded():
    "A convolution whose weights are one element many times"
    c = conv()
    c.weight = nn.Parameter(torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64).expand(4, 3, 3, 3))
    return c


@clean()
def expanded_parameter():
    "One element many times cannot take a scale for each channel, unless it is made anew"
    return seq(conv=expanded(), bn=bn())


@clean()
class SparseParameter(Line):
    "A sparse weight beside the layers"
    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.eye(8, dtype=torch.float64).to_sparse())

    def forward(self, x):
        y = self.bn(self.conv(x))
        return y + torch.sparse.mm(self.mix, y.new_ones(8, 8)).sum()


class SparseLinear(nn.Module):
    "A linear layer with a sparse weight"
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(tensor(4, 6).to_sparse_csr())

    def forward(self, x): return F.linear(x, self.weight)


@clean(xb=(tensor(2, 6),), others=[tensor(3, 6, seed=1)])
def sparse_absorber():
    "The layer that would absorb has a sparse weight"
    return seq(lin=SparseLinear(), bn=nn.BatchNorm1d(4))


@clean()
class ListsOfText(Line):
    "Outputs with text and None among the tensors"
    def forward(self, x): return dict(y=self.bn(self.conv(x)), name='text', more=[None, {'n': 3}])


# ---------------------------------------------------------------- (k) moved and laid out otherwise
@script
def channels_last_after_the_fold(BNFolder, FoldError):
    "Laid out otherwise, no weight is another: unfold works, and blames no training"
    net = real(seq(a=block(), b=block()), zero=0.)
    want, weights = net(LOW), {k: bits(v) for k, v in net.state_dict().items()}
    folder = BNFolder(net)
    folder.fold(LOW)
    net.to(memory_format=torch.channels_last)
    folder.unfold()
    assert {k: bits(v) for k, v in net.state_dict().items()} == weights
    assert rel_err([want], [net(LOW)]) < 1e-8


@script
def channels_last_before_the_fold(BNFolder, FoldError):
    "Nor does a fold lose the layout"
    net = real(seq(a=block(3, 8), b=block(8, 3)), zero=0.).to(memory_format=torch.channels_last)
    want = net(LOW)
    BNFolder(net).fold(LOW)
    assert net.b.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert rel_err([want], [net(LOW)]) < 1e-8


# ---------------------------------------------------------------- beyond values and sizes
beyond = group('beyond')  # no tensor and no size becomes a Python value here that one could see


SHARED = contextvars.ContextVar('hot', default=False)


class SetsVar(nn.Module):
    def forward(self, x):
        SHARED.set(bool(x.max() > 50))
        return x


class GetsVar(nn.Module):
    def forward(self, x): return torch.relu(x) if SHARED.get() else x


@beyond(trap='conv bn')
def flag_in_context_variable():
    "As with a global, through a context variable"
    return seq(w=SetsVar(), conv=conv(), r=GetsVar(), bn=bn())


@beyond('block.bn', trap='conv bn')
class ErrorOfTorch(Parts):
    "torch itself asks for the value and raises: an index beyond the table"
    def forward(self, x):
        y = self.conv(self.block(x))
        try: F.embedding((x.max() > 50).long(), y.new_zeros(1, 1))
        except IndexError: y = torch.relu(y)
        return self.bn(y)


@beyond('block.bn', trap='conv bn', others=[LOW, LOW[0], LOW[1]])
class ByRank(Parts):
    "A single image without an axis for items"
    def forward(self, x):
        y = self.conv(self.block(x)) if x.dim() == 4 else self.conv(x)
        if y.dim() == 3: y = torch.relu(y)[None]
        return self.bn(y)


@beyond('block.bn', trap='conv bn', others=[LOW, LOW.contiguous(memory_format=torch.channels_last)])
class ByLayout(Parts):
    "Neither a value nor a size: how the input lies in memory"
    def forward(self, x):
        y = self.conv(self.block(x))
        return self.bn(y if x.stride(-1) == 1 else torch.relu(y))


@beyond('block.bn', trap='conv bn', others=[SPIKE, LOW, LOW], state=lambda m: m.calls)
class EveryThirdCall(Parts):
    "No tensor is asked: a count of the calls picks the way"
    each = 3

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if self.calls % self.each == 0 else y)


@beyond(trap='conv bn', others=[SPIKE, LOW, LOW, SPIKE, LOW], state=lambda m: m.calls)
class EveryFifthCall(EveryThirdCall):
    "Further away than the calls that are looked at"
    each = 5


class MaybeCopies(nn.Module):
    def forward(self, x): return x.clone() if x.max() > 50 else x


@beyond('block.bn', trap='conv bn')
class IdentityAsked(Parts):
    "Only a tensor comes back: whether it is the same one is an answer"
    def __init__(self):
        super().__init__()
        self.gate = MaybeCopies()

    def forward(self, x):
        got = self.gate(x)
        y = self.conv(self.block(x))
        return self.bn(y if got is x else torch.relu(y))


# ---------------------------------------------------------------- (l) what code could do out of sight of its source
sight = group('sight')


@sight(trap='conv bn')
class RaisesOrReturns(Line):
    "The body that ends in `raise` has another way out"
    flag = True

    def forward(self, x):
        if x.max() > 50:
            if self.flag: return self.conv(x)
            raise ValueError('hot')
        return self.bn(self.conv(x))


@sight('block.bn', trap='conv bn')
class RaisesOrBreaks(Parts):
    "The same in a loop"
    def forward(self, x):
        y = self.conv(self.block(x))
        for flag in (True,):
            if x.max() > 50:
                if flag:
                    y = torch.relu(y)
                    break
                raise ValueError('hot')
        return self.bn(y)


@sight('block.bn', trap='conv bn')
class FinallyOnly(Parts):
    "A `try` without `except`: `return` in its `finally` swallows what was raised, and the convolution's output is read once"
    def forward(self, x):
        y, hot = self.conv(self.block(x)), True
        try:
            assert x.max() < 50
            hot = False
        finally: return self.bn(torch.relu(y) if hot else y)


class AppendsToGiven(nn.Module):
    def forward(self, x, log):
        if x.max() > 50: log.append(1)
        return x


@sight('block.bn', trap='conv bn')
class ListGivenToGate(Parts):
    "The child gives back a tensor only, and writes into the list that it was given"
    def __init__(self):
        super().__init__()
        self.gate = AppendsToGiven()

    def forward(self, x):
        log = []
        x = self.gate(x, log)
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if log else y)


class NotesHot(nn.Module):
    "Notes in a dict that others hold too, by `how`"
    def __init__(self, notes):
        super().__init__()
        self.notes = notes

    def forward(self, x):
        if x.max() > 50: self.notes['hot'] = True
        return x


def note(notes, hot):
    if hot: notes['hot'] = True


class NotesByHelper(NotesHot):
    def forward(self, x):
        note(self.notes, x.max() > 50)
        return x


def note_by_another(notes, hot): note(hot=hot, notes=notes)


class NotesByTwoHelpers(NotesHot):
    def forward(self, x):
        note_by_another(self.notes, x.max() > 50)
        return x


class NotesByGetattr(NotesHot):
    def forward(self, x):
        notes = getattr(self, 'notes')
        if x.max() > 50: notes['hot'] = True
        return x


class WithNotes(Parts):
    "Clears the notes, and reads them after the gate"
    def __init__(self, gate=NotesHot):
        super().__init__()
        self.notes = {}
        self.gate = gate(self.notes)

    def forward(self, x):
        self.notes.clear()
        x = self.gate(x)
        y = self.conv(self.block(x))
        return self.bn(torch.relu(y) if self.notes.get('hot') else y)


@sight('block.bn', trap='conv bn')
def notes_in_a_shared_dict(): return WithNotes()


@sight('block.bn', trap='conv bn')
def notes_by_a_helper(): return WithNotes(NotesByHelper)


@sight('block.bn', trap='conv bn')
def notes_by_two_helpers(): return WithNotes(NotesByTwoHelpers)


@sight('block.bn', trap='conv bn')
def notes_by_getattr(): return WithNotes(NotesByGetattr)


@sight(trap='block.conv block.bn')
class BySuper(Pair):
    "`super()` is `self` too"
    def forward(self, x):
        if x.max() > 20: return next(super().children())[0](x)
        return self.side(self.block(x))


@sight(trap='block.conv block.bn')
class ByDunderGetattr(Pair):
    "A child by `__getattr__`"
    def forward(self, x):
        if x.max() > 20: return self.__getattr__('block')[0](x)
        return self.side(self.block(x))


@sight(trap='block.conv block.bn')
class ByLocals(Pair):
    "`self` by its name"
    def forward(self, x):
        if x.max() > 20: return locals()['self'].block[0](x)
        return self.side(self.block(x))


@sight(trap='block.conv block.bn')
class ByNameOfMethod(Pair):
    "The method that takes the block apart is named by a string that is put together"
    def apart(self, x): return self.block[0](x)

    def forward(self, x):
        if x.max() > 20: return getattr(self, 'ap' + 'art')(x)
        return self.side(self.block(x))


@sight(trap='layers.0.0.conv layers.0.0.bn')
class ListOfLists(nn.Module):
    "A list of modules in a list of modules"
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([block()])])

    def forward(self, x): return self.layers[0][0][0](x) if x.max() > 20 else self.layers[0][0](x)


@sight('block.bn', trap='conv bn')
class BranchInLambda(Parts):
    "The line that decides is the statement that makes a lambda"
    def forward(self, x):
        act = lambda y: torch.relu(y) if x.max() > 50 else y
        return self.bn(act(self.conv(self.block(x))))


# helpers that pad by a size, and do one thing more; 14 is a width that no look hits by chance
WIDE = [image(1, 8, 14), image(1, 8, 16)]


def pads_and_sets(t, layer):
    n = (t.shape[-1] == 14) * 1
    setattr(layer, 'wide', n)
    if n: t = F.pad(t, (0, n))
    return t


@sight(trap='conv bn', others=WIDE)
class PadderSetsFlag(Line):
    "By `setattr`"
    def forward(self, x):
        y = self.conv(pads_and_sets(x, self.conv))
        return self.bn(torch.relu(y) if self.conv.wide else y)


def convolves_or_not(t, w, b):
    if t.shape[-1] == 14: return t
    return F.conv2d(t, w, b)


class OneByOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), bn(3)


@sight(trap='conv bn', others=WIDE)
class PadderGoes(OneByOne):
    "It convolves one way only, with a weight that it was given"
    def forward(self, x): return self.bn(convolves_or_not(x, self.conv.weight, self.conv.bias))


def convolves_without_bias(t, w, b):
    n = (t.shape[-1] == 14) * 1
    return F.conv2d(t, w, None if n else b)


@sight(trap='conv bn', others=WIDE)
class PadderDropsBias(OneByOne):
    "It leaves out the bias on another way"
    def forward(self, x): return self.bn(convolves_without_bias(x, self.conv.weight, self.conv.bias))


def nothing_if_wide(t):
    if t.shape[-1] != 14: return t


@sight(trap='conv bn', others=WIDE)
class PadderGivesNothing(Line):
    "It falls off its end on another way"
    def forward(self, x):
        got, y = nothing_if_wide(x), self.conv(x)
        return self.bn(torch.relu(y) if got is None else y)


def noted(n):
    NOTES['wide'] = n
    return n


def amount(n):
    k = noted(n)
    return k


def pads_and_notes(t):
    n = amount((t.shape[-1] == 14) * 1)
    return F.pad(t, (0, n))


@sight(trap='conv bn', others=WIDE)
class PadderNotes(Line):
    "The helper of its helper keeps the number"
    def forward(self, x):
        y = self.conv(pads_and_notes(x))
        return self.bn(torch.relu(y) if NOTES['wide'] else y)


# What nothing seen in one forward tells, and no look; the plan page shows each of them
LIMITS = 'ErrorOfTorch', 'ByRank', 'EveryFifthCall', 'IdentityAsked'


# ---------------------------------------------------------------- (m) what one call leaves to the next
leaves_behind = group('leaves behind')


class Remembers(Line):
    "Goes through the BatchNorm only where `way` says so, by what an earlier call left"
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) if self.way() else y


@leaves_behind(trap='conv bn')
class FlagOfTheFirstCall(Remembers):
    "A flag that the first call sets"
    seen = False

    def way(self):
        was, self.seen = self.seen, True
        return not was


@leaves_behind(trap='conv bn')
class TensorOfTheFirstCall(Remembers):
    "A tensor where none was"
    cache = None

    def way(self):
        if self.cache is not None: return False
        self.cache = torch.ones(1)
        return True


class WithBox(Remembers):
    "Keeps something in a box"
    made = list

    def __init__(self):
        super().__init__()
        self.box = self.made()


@leaves_behind(trap='conv bn')
class CountsInAList(WithBox):
    "The length of a list"
    def way(self):
        self.box.append(1)
        return len(self.box) % 2


@leaves_behind(trap='conv bn')
class TensorsInADict(WithBox):
    "A dict that gets a tensor"
    made = dict

    def way(self):
        if self.box: return False
        self.box['k'] = torch.ones(1)
        return True


@leaves_behind(trap='conv bn')
class TurnsADeque(WithBox):
    "A deque that is turned"
    def made(self): return collections.deque([True, False])

    def way(self):
        self.box.rotate(1)
        return not self.box[0]


class OneCounter:
    n = 0


@leaves_behind(trap='conv bn')
class CountsInAnObject(WithBox):
    "A counter in a plain object"
    made = OneCounter

    def way(self):
        self.box.n += 1
        return self.box.n % 2


class CountsCalls(nn.Module):
    n = 0

    def forward(self, x):
        self.n += 1
        return x


@leaves_behind(trap='conv bn')
class CountsInAChild(WithBox):
    "A counter in a child"
    made = CountsCalls

    def way(self):
        self.box(torch.zeros(1))
        return self.box.n % 2


@leaves_behind(trap='conv bn')
class ShapeOfTheLastCall(Line):
    "The shape of the last batch"
    shape = None

    def forward(self, x):
        y, was, self.shape = self.conv(x), self.shape, x.shape
        return self.bn(y) if was != x.shape else y


@leaves_behind(trap='conv bn')
class FeaturesOfTheLastCall(Line):
    "What the last batch gave"
    last = None

    def forward(self, x):
        y = self.conv(x)
        if self.last is None: y = self.bn(y)
        self.last = y.detach().mean()
        return y


@leaves_behind('block.bn bn')
class CachesWhatItNeeds(Parts):
    "A table is made once; the layers are called the same way each time"
    def __init__(self):
        super().__init__()
        self.tables = {}

    def forward(self, x):
        if 'table' not in self.tables: self.tables['table'] = torch.linspace(0, 1, 4, dtype=x.dtype).view(4, 1, 1)
        return self.bn(self.conv(self.block(x))) + self.tables['table']


# ---------------------------------------------------------------- what a batch unlike the example shows
unlike = group('unlike')  # nothing in the code says so; a negated or a shuffled batch does


class WritesSign(nn.Module):
    def forward(self, x):
        NOTES['hot'] = bool(x.mean() > 0)
        return x


@unlike(trap='conv bn', others=[-LOW, POSITIVE, LOW[:1]])
def negated_batch():
    "As `flag_in_global_dict`, where the negated example takes the other way"
    return seq(w=WritesSign(), conv=conv(), r=Reads(), bn=bn())


class WritesOrder(nn.Module):
    def forward(self, x):
        NOTES['hot'] = bool(x[0].mean() > x[-1].mean())
        return x


LEAST_FIRST = torch.cat([LOW - 1, LOW])[[0, 2]]


@unlike(trap='conv bn', xb=(LEAST_FIRST,), others=[LEAST_FIRST.flip(0), LOW[:1]])
def shuffled_batch():
    "The same where it is the order of the items"
    return seq(w=WritesOrder(), conv=conv(), r=Reads(), bn=bn())


# ---------------------------------------------------------------- what holds today, and goes on holding
holds = group('holds')


@holds('3.bn', others=[SPIKE, LOW[:1], OTHER])
def plain_sequence():
    "No question at all"
    return nn.Sequential(nn.Identity(), nn.ReLU(), nn.Identity(), block())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.act = nn.Sequential(conv(3, 4), bn(4), nn.ReLU(), conv(4, 3), bn(3)), nn.ReLU()

    def forward(self, x): return self.act(x + self.body(x))


class SkipsWhole(nn.Module):
    "Runs its residual block or leaves it out, by value"
    def __init__(self):
        super().__init__()
        self.res = Residual()

    def forward(self, x): return x if x.max() > 50 else self.res(x)


@holds('stem.bn skip.res.body.1 skip.res.body.4 last.bn')
def branch_around_a_block():
    "The whole block or none of it"
    return seq(stem=block(), skip=SkipsWhole(), last=block())


@holds('block.bn')
class Recurrent(nn.Module):
    "The same block three times"
    def __init__(self):
        super().__init__()
        self.block = block()

    def forward(self, x):
        for _ in range(3): x = self.block(x)
        return x


@holds('block.bn')
class HookOnBlock(Pair):
    "A hook sees the output of a block, which is as before"
    def __init__(self):
        super().__init__()
        self.block.register_forward_hook(scaled)

    def forward(self, x): return self.block(x)


def scaled(m, i, o): return o * 2


@holds(trap='block.conv block.bn', others=[SPIKE])
class HookOnConvolution(Pair):
    "A hook changes what the convolution gives"
    def __init__(self):
        super().__init__()
        self.block[0].register_forward_hook(relu_when_hot)

    def forward(self, x): return self.side(self.block(x))


def relu_when_hot(m, i, o): return o.relu() if o.abs().max() > 15 else None


@holds('a.bn b.bn')
class DenseList(nn.Module):
    "A list that grows and is concatenated"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = block(3, 4), block(7, 4), conv(11, 2)

    def forward(self, x):
        got = [x]
        for layer in (self.a, self.b): got.append(layer(torch.cat(got, 1)))
        return self.head(torch.cat(got, 1))


class Stores:
    def __init__(self): self.out = None
    def __call__(self, m, i, o): self.out = o


@holds('enc.bn mid.bn dec.bn')
class UnetByHooks(nn.Module):
    "The skip connection is kept by a hook, as fastai's are"
    def __init__(self):
        super().__init__()
        self.enc, self.mid, self.dec, self.store = block(3, 4), block(4, 4), block(8, 3), Stores()
        self.enc.register_forward_hook(self.store)

    def forward(self, x):
        y = F.interpolate(self.mid(F.max_pool2d(self.enc(x), 2)), size=x.shape[-2:])
        return self.dec(torch.cat([y, self.store.out], 1))


class PadEven(nn.Module):
    "Pads to a multiple of four: asks for sizes, alone"
    def forward(self, x):
        h, w = x.shape[-2:]
        return F.pad(x, (0, -w % 4, 0, -h % 4)) if h % 4 or w % 4 else x


@holds('a.bn b.bn', others=SIZES)
def pads_in_a_module():
    "What asks for sizes lies between the blocks"
    return seq(a=block(), pad=PadEven(), b=block())


@holds('b.1', xb=(tensor(4, 6),), others=[tensor(3, 6, seed=1)])
def tabular_head():
    "A BatchNorm after the activation, folded forward"
    return seq(a=nn.Linear(6, 5), b=nn.Sequential(nn.ReLU(), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2)))


@holds('block.bn bn')
class SqueezeExcite(Line):
    "A product with what pooling gives"
    def __init__(self):
        super().__init__()
        self.block, self.fc = block(), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.bn(self.conv(self.block(x)))
        return y * torch.sigmoid(self.fc(y.mean((2, 3), keepdim=True)))


@holds('dw.1 pw.1')
def depthwise():
    "Depthwise and pointwise"
    dw = nn.Sequential(conv(3, 6, groups=3, bias=False), bn(6), nn.ReLU6())
    return seq(dw=dw, pw=nn.Sequential(conv(6, 4, 1), bn()))


class Shuffle(nn.Module):
    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@holds('bn2', others=SIZES)
def channel_shuffle():
    "Sizes that only torch gets, on the way of a map"
    return seq(conv=conv(), shuffle=Shuffle(), bn2=bn())


@holds('bn', others=SIZES)
class PatchTokens(Line):
    "Maps to tokens"
    def forward(self, x): return self.bn(self.conv(x)).flatten(2).transpose(1, 2)


@holds('bn')
class ManyOutputs(Line):
    "Outputs in a dict"
    def forward(self, x):
        y = self.bn(self.conv(x))
        return dict(y=y, parts=[y.mean(), (y.amax(1), 3)])


@holds('bn', others=SIZES)
def pooled_head():
    "Pool, flatten, BatchNorm, linear"
    return seq(conv=conv(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), bn=nn.BatchNorm1d(4), lin=nn.Linear(4, 2))


@holds('bn')
def transposed():
    "A transposed convolution in groups"
    return seq(pre=conv(3, 4), act=nn.ReLU(), up=nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), bn=bn(6))


@holds('bn')
class AsksForTraining(Line):
    "`self.training` and settings of the model's own are no questions to the batch"
    def __init__(self):
        super().__init__()
        self.use_act = True

    def forward(self, x):
        y = self.conv(x)
        if self.training: y = y + torch.randn_like(y)
        y = self.bn(y)
        return torch.relu(y) if self.use_act else y


@holds('block.bn')
class Checkpointed(Pair):
    "Activations are computed again in training"
    def forward(self, x): return checkpoint(self.block, x, use_reentrant=False) if self.training else self.block(x)


@holds('layers.0.bn layers.1.bn')
class EnumeratedResiduals(nn.Module):
    "A loop over a ModuleList, numbers asked"
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([block(), block()])

    def forward(self, x):
        for i, layer in enumerate(self.layers): x = x + layer(x) if i else layer(x)
        return x


@holds('ways.a.bn ways.b.bn')
class ByNames(nn.Module):
    "Children by name, with no question to the batch"
    def __init__(self):
        super().__init__()
        self.ways = nn.ModuleDict(dict(a=block(), b=block()))

    def forward(self, x): return sum(self.ways[k](x) for k in ('a', 'b'))


@holds(keeps='bn')
class ConvolutionIsReadTwice(Line):
    "The convolution's output goes elsewhere too"
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + torch.sigmoid(y)


@holds('bn')
class BothFromOne(Line):
    "One convolution, one BatchNorm, on two inputs"
    def forward(self, x): return torch.cat([self.bn(self.conv(x)), self.bn(self.conv(-x))])


@holds('bn', others=[(SPIKE,), (LOW[:1],)])
class DetachedCopies(Line):
    "What copies and hands through"
    def forward(self, x): return self.bn(self.conv(x.clone()).contiguous().detach()).to(torch.float64)


@holds('a.bn b.bn', others=SIZES)
class Pyramid(nn.Module):
    "Sizes of one map given to the other"
    def __init__(self):
        super().__init__()
        self.a, self.b = block(), block()

    def forward(self, x):
        top = self.a(x)
        low = self.b(F.avg_pool2d(top, 2))
        return top + F.interpolate(low, size=top.shape[-2:], mode='nearest')


@holds('bn')
class AsksForModes(Line):
    "Modes of torch are no questions to the batch"
    def forward(self, x):
        if torch.is_grad_enabled() and not torch.jit.is_tracing() and isinstance(x, torch.Tensor): x = x.clone()
        y = self.conv(x)
        return self.bn(y) if torch.compiler.is_compiling() or not self.training else y
