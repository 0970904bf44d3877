"Each case of `breakers` is folded and asked again: refused with nothing changed, or right on all its other inputs."
import contextlib
import copy
import random
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from breakers import CASES, LIMITS, SCRIPTS
from models import TOL, bits, changed, engine, is_bn, leaves, rel_err, snapshot, tree_map
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

pytestmark = pytest.mark.filterwarnings('ignore')


# ---------------------------------------------------------------- answers of a model
@contextlib.contextmanager
def seeded(seed):
    "All random numbers from `seed`, and as they were afterwards"
    was = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        try: yield
        finally: random.setstate(was[0]), np.random.set_state(was[1])


def plain(t):
    "A tensor as real numbers in a plain layout"
    if t.is_nested: t = torch.cat([o.flatten() for o in t.unbind()])
    if t.layout != torch.strided: t = t.to_dense()
    return (torch.view_as_real(t) if t.is_complex() else t).detach().clone()


@torch.no_grad()
def answer(model, o, seed):
    "What `model` gives for the inputs `o`, as a list of tensors; the class of what it raises"
    with seeded(seed):
        try:
            if callable(o): out = o(model)
            elif isinstance(o, dict): out = model(**tree_map(torch.clone, o))
            else: out = model(*tree_map(torch.clone, list(o)))
        except Exception as e: return type(e)
        return [plain(t) for t in leaves(out)]


def differ(a, b):
    "Relative difference of two answers; infinite where one is an exception and not both"
    if isinstance(a, type) or isinstance(b, type): return 0. if a is b else float('inf')
    return rel_err(a, b)


def answers(c, model): return [answer(model, o, i) for i, o in enumerate((c.xb, *c.others))]
def wrong(c, want, got): return {i - 1: e for i, (a, b) in enumerate(zip(want, got)) if (e := differ(a, b)) > TOL}


# ---------------------------------------------------------------- what must be as it was
def numbers(t): return bits(t if t.layout == torch.strided else t.detach().to_dense())


def all_of(c, model):
    "All that plan and a refused fold must leave as it was"
    both = *model.named_parameters(), *model.named_buffers()
    with mock.patch.object(model, 'state_dict', dict): tree = snapshot(model)  # its bits need a plain layout
    return {**tree, 'state': [(k, numbers(v)) for k, v in both if not nn.parameter.is_lazy(v)],
            'own': c.state and c.state(model), 'random': repr((random.getstate(), np.random.get_state()))}


def check_same(c, model, was, when, of=None):
    "Is all as it was; or, after a fold, what a fold has no business with?"
    bad = [k for k in changed(was, all_of(c, model)) if of is None or k in of]
    assert not bad, f'{when} changed {bad}'


def check_plan(c, plan):
    "Does the plan say what the case wants?"
    got = {e.bn: e.reason for e in plan}
    assert all(bool(e.into) == (e.reason is None) for e in plan)
    kept = {b: got.get(b, 'not in the plan') for b in c.folds if got.get(b, '') is not None}
    assert not kept, f'should fold: {kept}'
    folded = [b for b in c.keeps if not got.get(b)]
    assert not folded, f'should stay: {folded}'


# ---------------------------------------------------------------- one case
def judge(c, BNFolder, FoldError):
    "AssertionError if the case is not right"
    model, twin = c.made(), c.made()
    was = all_of(c, model)
    folder, (args, kw) = BNFolder(model), c.given()
    try:
        folder.plan(*args, **kw)
        check_same(c, model, was, 'plan')
        report = folder.fold(*args, **kw)
    except FoldError as e:
        check_same(c, model, was, 'refused')
        assert not c.folds, f'refused: {e}'
        return 'refused'
    check_same(c, model, was, 'fold', ('own', 'rng', 'random'))
    bad = wrong(c, answers(c, twin), answers(c, model))
    assert not bad, f'wrong on {bad}'
    check_plan(c, report.plan)
    if not written(c, twin): check_undone(c, folder, model, twin, was)
    return f'{report.bn_before - report.bn_after} folded'


def written(c, twin):
    "Does the model's own forward change its Parameters? Then `unfold` may blame that"
    pairs = zip(twin.parameters(), c.made().parameters())
    return not all(torch.equal(plain(p), plain(q)) for p, q in pairs if not nn.parameter.is_lazy(p))


def check_undone(c, folder, model, twin, was):
    "Every number and every layer is back; what forward calls have written since is that of the twin"
    folder.unfold()
    now, ref = all_of(c, model), all_of(c, twin)
    assert now['state'] == ref['state'] and not {'params', 'modules', 'hooks'} & set(changed(was, now)), 'unfold'


def known(c):
    "A case, expected to fail where it is a limit that the documentation names"
    marks = [pytest.mark.xfail(strict=True, reason='a limit, said on the plan page')] if c.name in LIMITS else []
    return pytest.param(c, marks=marks, id=f'{c.group}-{c.name}')


@pytest.mark.parametrize('c', map(known, CASES))
def test_breaker(c): judge(c, *engine())


@pytest.mark.parametrize('f', SCRIPTS, ids=lambda f: f.__name__)
def test_script(f): f(*engine())


# ---------------------------------------------------------------- can the bed fail?
def joined(model, pair):
    "`model` with the two layers of a trap folded into one another, as one forward of the example would have it"
    a, b = map(model.get_submodule, pair)
    fuse = fuse_linear_bn_eval if isinstance(a, nn.Linear) else fuse_conv_bn_eval
    if is_bn(b): new = {pair[0]: fuse(a, b), pair[1]: nn.Identity()}
    else: new = {pair[0]: nn.Identity(), pair[1]: absorbed(a, b)}
    with torch.no_grad():
        for p, m in new.items():
            old = model.get_submodule(p)
            if is_bn(old): model.get_submodule(p.rpartition('.')[0])._modules[p.rpartition('.')[2]] = m
            else: old.weight.copy_(m.weight), old.bias.copy_(m.bias)
    return model


def absorbed(bn, layer):
    "The layer after a BatchNorm, with its map on the inputs"
    new, s = copy.deepcopy(layer), bn.weight / (bn.running_var + bn.eps).sqrt()
    t = bn.bias - bn.running_mean * s
    with torch.no_grad():
        new.bias += torch.einsum('oi...,i->o', layer.weight, t)
        new.weight *= s.view(1, -1, *[1] * (layer.weight.dim() - 2))
    return new


TRAPS = [c for c in CASES if c.trap]


@pytest.mark.parametrize('c', TRAPS, ids=lambda c: c.name)
def test_a_trap_is_one(c):
    "The fold that the case is about is right on the example and wrong on another input"
    want, got = answers(c, c.made()), answers(c, joined(c.made(), c.trap))
    bad = wrong(c, want, got)
    assert c.group == 'draws' or -1 not in bad, f'{c.name}: shown by the example itself'
    assert bad, c.name


class Naive:
    "A wrong folder: believes one forward"
    def __init__(self, model): self.model = model
    def changes(self, c): joined(self.model, c.trap)
    def plan(self, *xb, **kw): return []
    def unfold(self): pass

    def fold(self, *xb, **kw):
        self.changes(self.case)
        return SimpleNamespace(plan=[], bn_before=1, bn_after=0)


class Drops(Naive):
    "A wrong folder: takes every BatchNorm away"
    def changes(self, c):
        for p, m in list(self.model.named_modules()):
            if is_bn(m): self.model.set_submodule(p, nn.Identity())


class Timid(Naive):
    "Changes nothing, and has no reasons"
    def changes(self, c): pass


class Refuses(Naive):
    def fold(self, *xb, **kw): raise ValueError('refused')


class Sloppy(Refuses):
    "Refuses with a parameter changed by one unit in the last place"
    def fold(self, *xb, **kw):
        p = next(p for p in self.model.parameters() if not nn.parameter.is_lazy(p) and p.layout == torch.strided)
        p.data = p.detach().clone(memory_format=torch.contiguous_format)
        p.data.view(-1)[0].nextafter_(torch.tensor(9e9, dtype=p.dtype))
        raise ValueError('refused')


def caught(c, folder):
    "Is the folder found out on the case?"
    try: judge(c, type(folder.__name__, (folder,), dict(case=c)), ValueError)
    except AssertionError: return True
    return False


@pytest.mark.parametrize('folder, cases, all_but', [
    (Naive, TRAPS, 0), (Drops, CASES, 0), (Sloppy, CASES, 0), (Timid, [c for c in CASES if c.folds or c.keeps], 0),
    (Refuses, [c for c in CASES if c.folds], 0)], ids=lambda o: getattr(o, '__name__', None))
def test_the_bed_can_fail(folder, cases, all_but):
    "A wrong folder is found out on every case that is made for it"
    missed = [c.name for c in cases if not caught(c, folder)]
    assert len(missed) <= all_but and len(cases) > 60, missed


def test_a_case_is_right_as_it_is():
    "Nothing is asked that the unfolded model does not hold: two of them agree"
    for c in CASES: assert not wrong(c, answers(c, c.made()), answers(c, c.made())), c.name
