"Every trap of `traps`: right in float64 on all its inputs, folded and kept as it says, nothing else changed, undone."
import contextlib
import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fastai_bnfold.plan import KINDS
from models import TOL, bits, bn_layers, changed, engine, is_bn, leaves, real, rel_err, snapshot, tree_map
from traps import LOW, TRAPS, block, bn, conv, seq

pytestmark = pytest.mark.filterwarnings('ignore')
BNFolder, FoldError = engine()


# ---------------------------------------------------------------- answers of a model
def plain(t):
    "A tensor as real numbers in a plain layout"
    if t.is_nested: t = torch.cat([o.flatten() for o in t.unbind()])
    if t.layout != torch.strided: t = t.to_dense()
    return (torch.view_as_real(t) if t.is_complex() else t).detach().clone()


@torch.no_grad()
def answer(model, batch, seed):
    "What `model` gives for a batch as a list of tensors, or the class of what it raises; random numbers from `seed`"
    was = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        args, kwargs = ([], batch) if isinstance(batch, dict) else (list(batch), {})
        try: out = model(*tree_map(torch.clone, args), **tree_map(torch.clone, kwargs))
        except Exception as e: return type(e)
        finally: random.setstate(was[0]), np.random.set_state(was[1])
    return [plain(t) for t in leaves(out)]


def answers(trap, model): return [answer(model, batch, i) for i, batch in enumerate((trap.xb, *trap.others))]


def difference(a, b):
    "Relative difference of two answers; infinite where one is an exception and not both"
    if isinstance(a, type) or isinstance(b, type): return 0. if a is b else float('inf')
    return rel_err(a, b)


def wrong(want, got):
    "Number of the batch, the example first -> how far the answers are apart"
    found = {i: difference(a, b) for i, (a, b) in enumerate(zip(want, got))}
    return {i: err for i, err in found.items() if err > TOL}


# ---------------------------------------------------------------- one trap
def all_of(trap, model):
    "All that a plan must leave as it was"
    own = trap.state and trap.state(model)
    return {**snapshot(model), 'own': own, 'random': repr((random.getstate(), np.random.get_state()))}


def unexpected(trap, plan):
    "Layer -> what became of it and what should have, where they differ; every BatchNorm is in the plan once"
    want = {**dict.fromkeys(trap.folds), **trap.keeps}
    got = {e.bn: e.kind for e in plan}
    assert len(got) == len(plan) and all(bool(e.into) == (e.reason is None) == (e.kind is None) for e in plan)
    assert set(got.values()) <= {None, *KINDS}
    both = {bn: (got.get(bn, 'not in the plan'), want.get(bn, 'not expected')) for bn in got | want}
    return {bn: pair for bn, pair in both.items() if pair[0] != pair[1]}


def judge(trap, BNFolder):
    "AssertionError if the trap is not passed"
    random.seed(4)
    model, twin = trap.made(), trap.made()
    folder, (args, options) = BNFolder(model), trap.given()
    was = all_of(trap, model)
    folder.plan(*args, **options)
    assert not changed(was, all_of(trap, model)), 'plan changed something'
    report = folder.fold(*args, **options)
    bad = [k for k in changed(was, all_of(trap, model)) if k in ('own', 'rng', 'random')]
    assert not bad, f'fold changed {bad}'
    bad = wrong(answers(trap, twin), answers(trap, model))
    assert not bad, f'wrong on {bad}'
    bad = unexpected(trap, report.plan)
    assert not bad, f'got and wanted: {bad}'
    if report.bn_after < report.bn_before: folder.unfold(force=trap.force)
    now, ref = all_of(trap, model), all_of(trap, twin)
    assert now['state'] == ref['state'] and not {'params', 'modules', 'hooks'} & set(changed(was, now)), 'unfold'


@pytest.mark.parametrize('trap', TRAPS, ids=lambda t: t.name)
def test_trap(trap): judge(trap, BNFolder)


# ---------------------------------------------------------------- undone, or not
CHANGES = dict(
    one_unit=('head', lambda m: m.head.weight[1, 2, 1, 1].nextafter_(torch.tensor(9e9, dtype=torch.float64))),
    a_third=('conv', lambda m: m.conv.weight[1::3].add_(1)), one_bias=('conv', lambda m: m.conv.bias[3].add_(1e-3)),
    swapped=('conv', lambda m: m.conv.weight.copy_(m.conv.weight.flip(0))))


@pytest.mark.parametrize('name', CHANGES)
def test_unfold_tells_of_changed_weights(name):
    "Each element counts, those of layers that were not folded too"
    where, change = CHANGES[name]
    net = real(seq(conv=conv(), bn=bn(), act=nn.ReLU(), head=conv(4, 3)))
    folder = BNFolder(net)
    folder.fold(LOW)
    with torch.no_grad(): change(net)
    with pytest.raises(FoldError, match=where + '.(weight|bias)` was changed'): folder.unfold()
    assert is_bn(folder.unfold(force=True).bn)


def test_unfold_after_moves():
    "Laid out otherwise, no weight is another"
    net = real(seq(a=block(), b=block()))
    was = {k: bits(v) for k, v in net.state_dict().items()}
    folder = BNFolder(net)
    folder.fold(LOW)
    net.to(memory_format=torch.channels_last)
    assert {k: bits(v) for k, v in folder.unfold().state_dict().items()} == was


# ---------------------------------------------------------------- what surrounds a fold
@contextlib.contextmanager
def default(name, value):
    "A default of torch, for a while"
    was = getattr(torch, f'get_default_{name}')()
    getattr(torch, f'set_default_{name}')(value)
    try: yield
    finally: getattr(torch, f'set_default_{name}')(was)


AROUND = dict(inference=torch.inference_mode, grad=torch.enable_grad,
              device=lambda: default('device', 'meta'), dtype=lambda: default('dtype', torch.float16))


@pytest.mark.parametrize('name', AROUND)
def test_modes_around_a_fold(name):
    "Folded under it and unfolded under it: right, ordinary weights that train and load, on the model's own device"
    net = real(seq(a=block(), flat=nn.Flatten(), bn=nn.BatchNorm1d(192), lin=nn.Linear(192, 2)), zero=0.)
    want, folder = net(LOW), BNFolder(net)
    with AROUND[name](): report = folder.fold(LOW)
    assert report.bn_after == 0 and rel_err([want], [net(LOW)]) < TOL
    check_ordinary(net)
    with AROUND[name](): folder.unfold()
    assert torch.equal(want, net(LOW))
    check_ordinary(net)


def check_ordinary(net):
    "Do the weights train and load?"
    weights = [*net.parameters(), *net.buffers()]
    assert not any(t.is_inference() for t in weights) and {t.device.type for t in weights} == {'cpu'}
    net(LOW).sum().backward()
    net.load_state_dict(net.state_dict())
    net.zero_grad()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rounding(dtype):
    "Folded in a smaller dtype it is as near to float64 as unfolded"
    net = real(seq(a=block(3, 8), b=block(8, 8), flat=nn.Flatten(), bn=nn.BatchNorm1d(512), lin=nn.Linear(512, 4)),
               zero=0.)
    want, x = net(LOW), LOW.to(dtype)
    net.to(dtype)
    before = rel_err([want], [net(x).double()])
    assert BNFolder(net).fold(x).bn_after == 0 and {p.dtype for p in net.parameters()} == {dtype}
    assert rel_err([want], [net(x).double()]) < 3 * before


def test_a_module_is_kept():
    net = real(seq(a=block(), b=block()))
    assert [e.kind for e in BNFolder(net).plan(LOW, keep=net.b)] == [None, 'keep']


def test_layers_whose_output_changed():
    "`bn` goes back into its convolution, and gives what it gave; `norm` goes forward, and an Identity gives another"
    net = real(seq(conv=conv(), bn=bn(), act=nn.ReLU(), norm=bn(), head=conv(4, 2, 1)), zero=0.)
    assert BNFolder(net).fold(LOW).changed == ('conv', 'norm')


# ---------------------------------------------------------------- can the bed fail?
class Drops:
    "A wrong folder: takes every BatchNorm away"
    def __init__(self, model): self.model = model
    def plan(self, *xb, **kw): return []
    def unfold(self, force=False): pass
    def change(self):
        for path in bn_layers(self.model): self.model.set_submodule(path, nn.Identity())
    def fold(self, *xb, **kw):
        self.change()
        return SimpleNamespace(plan=[], bn_before=1, bn_after=0)


class Timid(Drops):
    "Changes nothing, and has no reasons"
    def change(self): pass


class Sloppy(Drops):
    "Takes nothing away, and leaves a parameter changed by one unit in the last place"
    def plan(self, *xb, **kw):
        p = next(self.model.parameters())
        p.data.view(-1)[0].nextafter_(torch.tensor(9e9, dtype=p.dtype))


@pytest.mark.parametrize('folder', [Drops, Timid, Sloppy])
def test_a_wrong_folder_is_caught(folder):
    missed = []
    for trap in TRAPS:
        try: judge(trap, folder)
        except AssertionError: continue
        missed.append(trap.name)
    assert not missed and len(TRAPS) > 120


def test_dropping_every_batchnorm_changes_the_answer():
    "By the numbers alone, whatever the plan says"
    missed = []
    for trap in TRAPS:
        model, twin = trap.made(), trap.made()
        Drops(model).change()
        if not wrong(answers(trap, twin), answers(trap, model)): missed.append(trap.name)
    assert set(missed) <= {'never_called', 'called_for_nothing', 'beside_a_scripted_block', 'bn_by_hand'}


def joined(model, pair):
    "`model` with two layers folded into one another, as one forward of the example would have it"
    a, b = map(model.get_submodule, pair)
    fuse = fuse_linear_bn_eval if isinstance(a, nn.Linear) else fuse_conv_bn_eval
    if is_bn(b): new = {pair[0]: fuse(a, b), pair[1]: nn.Identity()}
    else: new = {pair[0]: nn.Identity(), pair[1]: absorbed(a, b)}
    for path, m in new.items(): model.set_submodule(path, m)
    return model


@torch.no_grad()
def absorbed(bn, layer):
    "The layer after a BatchNorm, with its map on the inputs"
    new, s = copy.deepcopy(layer), bn.weight / (bn.running_var + bn.eps).sqrt()
    new.bias += torch.einsum('oi...,i->o', layer.weight, bn.bias - bn.running_mean * s)
    new.weight *= s.view(1, -1, *[1] * (layer.weight.dim() - 2))
    return new


PAIRS = [t for t in TRAPS if t.pair]


@pytest.mark.parametrize('trap', PAIRS, ids=lambda t: t.name)
def test_a_trap_is_one(trap):
    "The fold that it is about is right on the example and wrong on another input"
    bad = wrong(answers(trap, trap.made()), answers(trap, joined(trap.made(), trap.pair)))
    assert bad and 0 not in bad


def test_a_trap_is_right_as_it_is():
    "Nothing is asked that the unfolded model does not hold: two of them agree"
    for trap in TRAPS: assert not wrong(answers(trap, trap.made()), answers(trap, trap.made())), trap.name
