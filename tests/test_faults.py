"Whatever goes wrong in a fold, the Learner is bit for bit as before, and works; what cannot be folded right is refused."
import os, sys, threading
from copy import deepcopy

import numpy as np
import pytest, torch
from torch import nn

import fastai_bnfold
from fastai.basics import AvgMetric, L, tensor
from fastai_bnfold import changes as C_, check as H_, fold as F_, learner as L_, looks as K_, plan as P_, trace as T_
from fastai_bnfold.all import *
from learners import learner_state, odd_scales, outputs, trained
from models import bn_layers, changed, leaves, randomize_bn, rel_err, run, snapshot

pytestmark = pytest.mark.filterwarnings('ignore')
EXCS = [ValueError, KeyboardInterrupt, torch.OutOfMemoryError]

# ---------------------------------------------------------------- a fault at each step
class At:
    "Raise `exc` in the `n`-th call of a function, before or after it is made"
    def __init__(self, mp, owner, name, exc, n=1, after=False):
        self.count, self.n, self.exc, self.after, f = 0, n, exc, after, getattr(owner, name)
        mp.setattr(owner, name, lambda *a, **k: self.call(f, *a, **k))
    def call(self, f, *a, **k):
        self.count += 1
        if self.count == self.n and not self.after: raise self.exc('injected')
        r = f(*a, **k)
        if self.count == self.n: raise self.exc('injected')
        return r

STEPS = {'batch': (L_, '_batch'), 'metrics': (L_, '_metrics'), 'copy': (L_, 'twin'), 'times': (L_, 'bench'), 'make_plan': (F_, 'make_plan'), 'statistics': (K_, 'check_statistics'), 'trace': (K_, 'trace'), 'register': (T_, '_register'),
         'escaped': (T_, '_note_escaped'), 'graph': (K_, 'Graph'), 'decide': (K_, 'decide'), 'unseen': (F_, 'unseen'), 'changes_for': (F_, 'changes_for'), 'absorb': (C_, 'absorb'), 'round_to': (C_, 'round_to'), 'replacing': (C_, '_replacing'),
         'n_params': (F_, '_n_params'), 'do': (C_.Change, 'do'), 'check': (F_, 'check_fold'), 'compare': (H_, 'compare'), 'difference': (H_, 'difference'), 'report': (F_, 'FoldReport'),
         'checksums': (F_, 'checksums'), 'kept state': (L_, '_Folded')}
# a step: (name, which call, after it?)
POINTS = [(n, 1, after) for n in STEPS for after in (False, True)] + [(n, i, False) for n, i in dict(n_params=2, absorb=2, round_to=3, metrics=2).items()]

@pytest.fixture(scope='module', params=['vision', 'tabular'])
def learn(request, tmp_path_factory):
    "One Learner for all faults of a kind: each must leave it as it was"
    return trained(request.param, tmp_path_factory.mktemp(request.param))

def survives(learn, s, before):
    "Bit for bit as before, and working: it predicts the same, folds and unfolds"
    assert not changed(s, learner_state(learn))
    assert torch.equal(before, outputs(learn))

def folds(learn, before):
    "After all faults: a fold gets through, and back"
    r = learn.fold_bn()
    assert r.bn_after < r.bn_before and rel_err([before], [outputs(learn)]) < 1e-4
    assert torch.equal(before, outputs(learn.unfold_bn()))

@pytest.mark.parametrize('exc', EXCS, ids=lambda o: o.__name__)
def test_fault_at_each_step(learn, exc):
    s, before = learner_state(learn), outputs(learn)
    s = learner_state(learn)
    for name, n, after in POINTS:
        kw = dict(validate=True) if name == 'metrics' else dict(timeit=True) if name in ('copy', 'times') else {}
        with pytest.MonkeyPatch.context() as mp:
            at = At(mp, *STEPS[name], exc, n, after)
            with pytest.raises((exc, FoldError)) as e: learn.fold_bn(**kw)
        assert 'injected' in str(e.value), (name, n, after)
        assert changed(s, learner_state(learn)) == [], (name, n, after)
    folds(learn, before)

@pytest.mark.parametrize('exc', EXCS, ids=lambda o: o.__name__)
def test_fault_at_each_change(learn, exc):
    "Each assignment of the commit, before and after it is made"
    s, before = learner_state(learn), outputs(learn)
    s = learner_state(learn)
    with pytest.MonkeyPatch.context() as mp:
        at = At(mp, C_.Change, 'do', exc, 10**6)
        learn.fold_bn()
        learn.unfold_bn()
    assert at.count > 4
    for i in range(1, at.count+1):
        for after in (False, True):
            with pytest.MonkeyPatch.context() as mp:
                At(mp, C_.Change, 'do', exc, i, after)
                with pytest.raises(exc, match='injected'): learn.fold_bn()
            assert changed(s, learner_state(learn)) == [], (i, after)
    folds(learn, before)

@pytest.mark.parametrize('exc', EXCS, ids=lambda o: o.__name__)
def test_fault_in_each_forward(learn, exc):
    "The recorded forward, and the folded one that is checked: in the first layer and in the last"
    s, before = learner_state(learn), outputs(learn)
    s = learner_state(learn)
    layers = [m for m in learn.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for m in (layers[0], layers[-1]):
        each = sum(type(o) is type(m) for o in layers)
        with pytest.MonkeyPatch.context() as mp:
            at = At(mp, type(m), 'forward', exc, 10**6)
            learn.fold_bn()
            learn.unfold_bn()
        assert at.count >= 2*each
        for n in ((1, at.count-each+1) if m is layers[0] else (each, at.count)):
            with pytest.MonkeyPatch.context() as mp:
                At(mp, type(m), 'forward', exc, n)
                with pytest.raises((exc, FoldError), match='injected'): learn.fold_bn()
            assert changed(s, learner_state(learn)) == [], (m, n)
    folds(learn, before)

@pytest.mark.parametrize('exc', EXCS, ids=lambda o: o.__name__)
def test_fault_in_the_second_look(learn, exc):
    "A model that cannot take another number of items is decided on the one look; no memory and an interrupt are not taken for that"
    s, before = learner_state(learn), outputs(learn)
    s, n = learner_state(learn), [0]
    trace = K_.trace
    def second(*a, **k):
        n[0] += 1
        if n[0] > 1: raise exc('injected')
        return trace(*a, **k)
    with pytest.MonkeyPatch.context() as mp:
        mp.setattr(K_, 'trace', second)
        try: learn.fold_bn()
        except (KeyboardInterrupt, torch.OutOfMemoryError) as e: assert exc is not ValueError and 'injected' in str(e)
        else: assert exc is ValueError
    if learn.model is not None and getattr(learn, '_bn_folded', None): learn.unfold_bn()
    assert changed(s, learner_state(learn)) == []
    folds(learn, before)

def test_fault_is_seen(learn, monkeypatch):
    "The control: what the tests above compare by shows one change left undone"
    s = learner_state(learn)
    with pytest.MonkeyPatch.context() as mp:
        At(mp, C_.Change, 'do', ValueError, 2)
        mp.setattr(F_.History, 'rewind', lambda self, n=0: None)
        with pytest.raises(ValueError): learn.fold_bn()
    assert 'params' in changed(s, learner_state(learn))
    layer, name, p = next((m, n, p) for m in learn.model.modules() for n, p in m._parameters.items() if p is not None and id(p) not in {i for _, i, _ in s['params']})
    old = next(q for g in learn.opt.param_lists for q in g if id(q) in {i for _, i, _ in s['params']} and q.shape == p.shape and id(q) not in {id(o) for o in learn.model.parameters()})
    layer._parameters[name] = old
    assert not changed({'params': s['params']}, {'params': snapshot(learn.model)['params']})

class Lines:
    "Counts the executed lines of the library, and raises at the `n`-th"
    root = os.path.dirname(fastai_bnfold.__file__) + os.sep
    def __init__(self, at=None): self.at, self.n, self.fired = at, 0, None
    def frames(self, frame, event, arg): return self.line if frame.f_code.co_filename.startswith(self.root) else None
    def line(self, frame, event, arg):
        if event == 'line':
            self.n += 1
            if self.n == self.at:
                self.fired = f'{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}'
                raise KeyboardInterrupt(self.fired)
        return self.line
    def __enter__(self): self.was = sys.gettrace(); sys.settrace(self.frames); return self
    def __exit__(self, *a): sys.settrace(self.was)

def test_interrupt_at_any_line(tmp_path, n=60):
    "Ctrl-C lands between any two lines: `n` of them, spread over a fold"
    from torch.nn.modules import module
    learn = trained('tabular', tmp_path)
    before = outputs(learn)
    for _ in range(2):  # what the first fold does once is not counted
        with Lines() as l: learn.fold_bn()
        learn.unfold_bn()
    s, hit = learner_state(learn), 0
    for at in np.linspace(1, l.n-1, n).astype(int):
        done = False
        try:
            with Lines(at) as li:
                learn.fold_bn()
                done = True
        except KeyboardInterrupt: hit += 1
        if done: learn.unfold_bn()  # it came where torch drops what is raised: in a finalizer
        assert changed(s, learner_state(learn)) == [], li.fired
        assert not module._global_forward_hooks and not module._global_forward_pre_hooks, li.fired
    assert hit > n*.8
    folds(learn, before)

def test_metrics_fail_after_the_fold(tmp_path):
    "`undo=False` must not have burnt the way back"
    learn, n = trained('vision', tmp_path), [0]
    s = snapshot(learn.model)
    def once(*a):
        n[0] += 1
        if n[0] > 1: raise ValueError('metric')
        return tensor(0.)
    learn.metrics = L(AvgMetric(once))
    with pytest.raises(ValueError, match='metric'): learn.fold_bn(validate=True, undo=False)
    assert not changed(s, snapshot(learn.model))

def test_interrupt_after_the_commit(tmp_path, monkeypatch):
    learn = trained('vision', tmp_path)
    s, n = snapshot(learn.model), [0]
    def stop(o):
        n[0] += 1
        raise KeyboardInterrupt
    monkeypatch.setattr(P_.FoldPlan, 'kept', property(stop))
    with pytest.raises(KeyboardInterrupt): learn.fold_bn()
    assert n[0] == 1 and not changed(s, snapshot(learn.model))

# ---------------------------------------------------------------- a broken rule
def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
def real_net(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return randomize_bn(net(), seed).to(dtype).eval()
def batch(n=2, dtype=torch.float32): return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)

@pytest.mark.parametrize('which,at', [(1, '1'), (2, '4')])
def test_broken_rule(which, at, monkeypatch):
    "The largest difference, and the layer where it starts"
    m, n, absorb = real_net(), [0], C_.absorb
    x, s = batch(), snapshot(m)
    before = run(m, [x])
    def broken(*a, **k):
        n[0] += 1
        w, b = absorb(*a, **k)
        return (w, b + 1) if n[0] == which else (w, b)
    monkeypatch.setattr(C_, 'absorb', broken)
    with pytest.raises(FoldError, match=rf'change the model.s output by [\d.e+-]+ \(relative [\d.e+-]+, allowed 1e-03\), starting at `{at}`. Nothing was changed'): BNFolder(m).fold(x)
    assert not changed(s, snapshot(m)) and rel_err(before, run(m, [x])) == 0
    monkeypatch.undo()
    BNFolder(m).fold(x)
    assert rel_err(before, run(m, [x])) < 1e-4

def test_difference_is_the_real_one(monkeypatch):
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    randomize_bn(m).eval()
    absorb = C_.absorb
    monkeypatch.setattr(C_, 'absorb', lambda *a, **k: (lambda w, b: (w, b+.25))(*absorb(*a, **k)))
    with pytest.raises(FoldError, match=r'by 0\.25 '): BNFolder(m).fold(batch())

def test_broken_rule_in_a_learner(tmp_path, monkeypatch):
    learn = trained('vision', tmp_path)
    s, absorb = learner_state(learn), C_.absorb
    monkeypatch.setattr(C_, 'absorb', lambda *a, **k: tuple(o*1.1 for o in absorb(*a, **k)))
    with pytest.raises(FoldError, match='starting at `'): learn.fold_bn()
    assert not changed(s, learner_state(learn))

# ---------------------------------------------------------------- odd numbers
def right_or_refused(m, xb, tol, match=None):
    "Folded, and right; or FoldError, and as before"
    s, before = snapshot(m), run(m, xb)
    try: r = BNFolder(m).fold(*xb)
    except FoldError as e:
        assert not changed(s, snapshot(m))
        return str(e)
    assert rel_err(before, run(m, xb)) <= tol
    return r

@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('name', ['running_mean', 'running_var', 'weight', 'bias'])
def test_statistics_not_finite(name, bad):
    m = real_net()
    getattr(m[4], name).data[1] = bad
    msg = right_or_refused(m, [batch()], 0)
    assert isinstance(msg, str) and f'{name} of `4` holds {bad}' in msg

@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_weight_not_finite(bad):
    m = real_net()
    m[3].weight.data[0, 0, 0, 0] = bad
    msg = right_or_refused(m, [batch()], 0)
    assert isinstance(msg, str) and 'wider' not in msg and '`3`' in msg

@pytest.mark.parametrize('var,gamma', [(0., 1.), (0., 1e-3), (1e-30, 1.), (1e30, 1.), (1., 1e20), (1., 1e-20), (1., 0.), (0., 0.), (1e30, 1e20), (0., 1e30)])
def test_extreme_statistics(var, gamma):
    m = real_net(torch.float64)
    m[4].running_var.fill_(var)
    m[4].weight.data.fill_(gamma)
    r = right_or_refused(m, [batch(dtype=torch.float64)], 1e-8)
    assert not isinstance(r, str) and r.bn_after == 0, r

@pytest.mark.parametrize('gamma', [1e38, 1e30, 1e-30, 1e-42])
def test_extreme_gamma_in_single_precision(gamma):
    m = real_net()
    m[4].running_var.fill_(1e-4)
    m[4].weight.data.fill_(gamma)
    r = right_or_refused(m, [batch()], 1e-3)
    assert not isinstance(r, str) or 'wider' in r or 'finite' in r, r

def test_negative_variance():
    m = real_net()
    m[1].running_var[0] = -1.
    assert 'must be positive' in right_or_refused(m, [batch()], 0)

@pytest.mark.parametrize('dtype,tol', [(torch.float16, 5e-2), (torch.bfloat16, 2e-1)], ids=str)
def test_half_precision(dtype, tol):
    m, x = real_net(dtype), batch(dtype=dtype)
    exact = run(deepcopy(m).double(), [x.double()])
    r = right_or_refused(m, [x], tol)
    assert r.bn_after == 0 and {p.dtype for p in m.parameters()} == {dtype}
    assert rel_err(exact, [o.double() for o in run(m, [x])]) < tol/2

def test_half_precision_overflow():
    m = real_net(torch.float16)
    m[4].weight.data.fill_(6e4)
    m[4].running_var.fill_(1e-4)
    msg = right_or_refused(m, [batch(dtype=torch.float16)], 0)
    assert isinstance(msg, str) and 'wider' in msg

def test_channels_last():
    m = real_net().to(memory_format=torch.channels_last)
    x = batch().to(memory_format=torch.channels_last)
    assert right_or_refused(m, [x], 1e-4).bn_after == 0
    for i in (0, 3): assert m[i].weight.is_contiguous(memory_format=torch.channels_last) and not m[i].weight.is_contiguous()

def test_channels_last_learner(tmp_path):
    learn = trained('vision', tmp_path)
    learn.model.to(memory_format=torch.channels_last)
    before = outputs(learn)
    learn.fold_bn()
    assert learn.model[0][0][0].weight.is_contiguous(memory_format=torch.channels_last) and rel_err([before], [outputs(learn)]) < 1e-4

@pytest.mark.parametrize('n', [0, 1])
def test_small_batches(n):
    "An empty batch shows nothing to check by: refused"
    m, other = real_net(), batch(3)
    before, s = run(m, [other]), snapshot(m)
    if n == 0:
        with pytest.raises(FoldError, match=r'the batch is empty, with shape \(0, 3, 8, 8\): pass at least one item'): BNFolder(m).fold(batch(n))
        assert not changed(s, snapshot(m))
    else: assert right_or_refused(m, [batch(n)], 1e-4).bn_after == 0 and rel_err(before, run(m, [other])) < 1e-4

def test_no_batch():
    with pytest.raises(FoldError, match='example batch'): BNFolder(real_net()).fold()

@pytest.mark.parametrize('x, says', [(batch()[0], r'got one item of shape \(3, 8, 8\), without a batch axis: pass `x\[None\]`'), (batch().byte(), r'the batch is uint8: pass `x.float\(\)/255`'),
                                     (batch().long(), r'the batch is int64: pass `x.float\(\)`'), (batch().numpy(), 'got a numpy array'), (torch.zeros(0, 3, 8, 8), 'the batch is empty')], ids=['item', 'uint8', 'int64', 'numpy', 'empty'])
def test_what_is_no_batch(x, says):
    m = real_net()
    s = snapshot(m)
    for verb in (BNFolder(m).plan, BNFolder(m).fold):
        with pytest.raises(FoldError, match=says): verb(x)
    assert not changed(s, snapshot(m))

def test_wrong_batch():
    m = real_net()
    s = snapshot(m)
    with pytest.raises(FoldError, match=r'cannot run on this batch \(\(2, 5\)'): BNFolder(m).fold(torch.zeros(2, 5))
    assert not changed(s, snapshot(m))

@pytest.mark.parametrize('also, says', [([torch.zeros(2, 5, 8, 8)], r'^the model cannot run on batch 1 of also= \(\(2, 5, 8, 8\) torch.float32\): RuntimeError'),
                                        ([batch(), (batch(), torch.zeros(4))], 'batch 2 of also=: got 2 inputs, and the model takes 1: pass the inputs without the targets'),
                                        ([dict(inp=batch())], 'batch 1 of also= .*unexpected keyword'), ((batch(), torch.zeros(4)), r'got a tuple of 2 tensors: one batch is `also=\[x\]`, without the targets')])
def test_wrong_batch_of_also(also, says):
    m = real_net()
    s = snapshot(m)
    for verb in (BNFolder(m).plan, BNFolder(m).fold):
        with pytest.raises(FoldError, match=says): verb(batch(), also=also)
    assert not changed(s, snapshot(m))

def test_the_example_fails_first():
    with pytest.raises(FoldError, match=r'cannot run on this batch \(\(2, 5, 8, 8\)'): BNFolder(real_net()).fold(torch.zeros(2, 5, 8, 8), also=[torch.zeros(2, 6, 8, 8)])

@pytest.mark.parametrize('kw, says', [(dict(keeep='1.*'), '^fold has no option `keeep`, and the model takes no such input: did you mean `keep`'),
                                      (dict(colapse=True), 'did you mean `collapse`'), (dict(validate=True), 'there are `check`, `undo`, `collapse`')])
def test_misspelled_option(kw, says):
    m = real_net()
    s = snapshot(m)
    with pytest.raises(FoldError, match=says): BNFolder(m).fold(batch(), **kw)
    with pytest.raises(FoldError, match=says):
        with BNFolder(m).folding(batch(), **kw): pass
    with pytest.raises(FoldError, match=f'^plan has no option `{next(iter(kw))}`'): BNFolder(m).plan(batch(), **kw)
    assert not changed(s, snapshot(m))

@pytest.mark.parametrize('forward', [lambda self, x, scale=1.: self.bn(self.conv(x)), lambda self, x, **kw: self.bn(self.conv(x)), lambda self, x, *, scale: self.bn(self.conv(x))])
def test_inputs_by_name_are_no_options(forward):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    Named.forward = forward
    assert BNFolder(Named().eval()).fold(batch(), scale=2.).bn_after == 0

# ---------------------------------------------------------------- forwards that are not the same twice
class Own(nn.Module):
    "Adds noise of a generator that it keeps, or of the world's"
    def __init__(self, kind):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.g, self.r, self.kind = torch.Generator(), np.random.default_rng(0), kind
    def noise(self): return dict(torch=lambda: torch.randn((), generator=self.g), numpy=lambda: float(self.r.normal()), world=lambda: torch.randn(()), legacy=lambda: float(np.random.randn()))[self.kind]()
    def forward(self, x): return self.bn(self.conv(x)) + self.noise()

@pytest.mark.parametrize('kind', ['torch', 'numpy', 'world', 'legacy'])
def test_random_forward(kind):
    "Its generators are set back between the runs, so that it can be checked; or it is refused, and the model is blamed"
    m = randomize_bn(Own(kind)).eval()
    g, r, w = m.g.get_state().clone(), repr(m.r.bit_generator.state), torch.get_rng_state().clone()
    x = batch()
    before = [m.bn(m.conv(x)).detach()]
    try: BNFolder(m).fold(x)
    except FoldError as e: assert ('draws random numbers' if kind == 'legacy' else 'changes from call to call') in str(e) and isinstance(m.bn, nn.BatchNorm2d)
    assert rel_err(before, [m.bn(m.conv(x)).detach()]) < 1e-4
    assert torch.equal(g, m.g.get_state()) and r == repr(m.r.bit_generator.state) and torch.equal(w, torch.get_rng_state())

calls = iter(range(10**9))
class Drifts(nn.Module):
    "Random in a way that nobody can set back"
    def __init__(self): super().__init__(); self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    def forward(self, x): return self.bn(self.conv(x)) + next(calls)

def test_forward_that_drifts():
    m = randomize_bn(Drifts()).eval()
    s = snapshot(m)
    with pytest.raises(FoldError, match='changes from call to call'): BNFolder(m).fold(batch())
    assert not changed(s, snapshot(m))

class Counts(nn.Module):
    "State that changes between calls: a buffer, a number, a list and a tensor of the last call"
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.n, self.seen, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), 0, [], None
        self.register_buffer('total', torch.zeros(()))
    def forward(self, x):
        self.n += 1; self.total += x.sum(); self.seen.append(self.n)
        h = self.bn(self.conv(x)) * self.n + self.total + (0 if self.last is None else self.last.mean())
        self.last = h.detach()[:, :1].clone()
        return h

def test_stateful_forward():
    m = randomize_bn(Counts()).eval()
    m(batch())
    twin, state = deepcopy(m), (m.n, list(m.seen), m.total.clone(), m.last.clone())
    r = BNFolder(m).fold(batch())
    assert r.bn_after == 0 and (m.n, m.seen) == state[:2] and torch.equal(m.total, state[2]) and torch.equal(m.last, state[3])
    for i in range(3): assert rel_err([twin(batch()).detach()], [m(batch()).detach()]) < 1e-4

# ---------------------------------------------------------------- what cannot be folded as it is
WRAPPED = dict(script=(lambda m: torch.jit.script(m), 'before scripting'), trace=(lambda m: torch.jit.trace(m, batch()), 'before scripting'),
               parallel=(nn.DataParallel, r'model\.module'), compiled=(lambda m: torch.compile(m, backend='eager'), 'then compile'))

def compiled_in_place(m):
    m.compile(backend='eager')
    return m
WRAPPED['compiled in place'] = (compiled_in_place, 'then compile')
WRAPPED['compiled inside'] = (lambda m: nn.Sequential(torch.compile(m, backend='eager')), 'then compile')

@pytest.mark.parametrize('how', WRAPPED)
def test_wrapped_models(how):
    wrap, match = WRAPPED[how]
    m = wrap(real_net())
    s = m.state_dict()
    before = {k: v.clone() for k, v in s.items()}
    with pytest.raises(FoldError, match=match): BNFolder(m).fold(batch())
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())

def test_scripted_layer_inside_is_kept():
    m = nn.Sequential(nn.Conv2d(3, 3, 1), torch.jit.script(nn.BatchNorm2d(3))).eval()
    plan = BNFolder(m).plan(batch())
    assert len(plan) == 1 and not plan.folded and plan[0].reason

# ---------------------------------------------------------------- threads
def test_two_threads():
    "Deeper nets, folded at once a few times: each right, none with anything of the other"
    def deep(seed):
        torch.manual_seed(seed)
        return randomize_bn(nn.Sequential(*[o for i in range(12) for o in (nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]), seed).double().eval()
    ms, x = [deep(i) for i in range(2)], batch(dtype=torch.float64)
    before, errs, start = [run(m, [x]) for m in ms], [], threading.Barrier(2)
    def work(i):
        try:
            for _ in range(4):
                f = BNFolder(ms[i])
                start.wait(60)
                assert f.fold(x).bn_after == 0
                assert rel_err(before[i], run(ms[i], [x])) < 1e-8
                f.unfold()
            f.fold(x)
        except BaseException as e:
            errs.append(e)
            start.abort()
    ts = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in ts: t.start()
    for t in ts: t.join()
    if errs: raise errs[0]
    assert not any(bn_layers(m) for m in ms) and rel_err(before[0], before[1]) > 1e-2

def test_two_learners_in_two_threads(tmp_path):
    learns = [trained('vision', tmp_path/'a'), trained('tabular', tmp_path/'b')]
    before, errs, start = [outputs(o) for o in learns], [], threading.Barrier(2)
    def work(learn):
        try:
            start.wait(60)
            learn.fold_bn()
        except BaseException as e: errs.append(e)
    ts = [threading.Thread(target=work, args=(o,)) for o in learns]
    for t in ts: t.start()
    for t in ts: t.join()
    if errs: raise errs[0]
    for o, b in zip(learns, before): assert rel_err([b], [outputs(o)]) < 1e-4
    assert not bn_layers(learns[0].model)

# ---------------------------------------------------------------- an unsteady model
class Unsteady(nn.Module):
    "Makes rounding a hundred million times larger"
    def __init__(self, by=1e9): super().__init__(); self.conv, self.bn, self.by = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), by
    def forward(self, x): return torch.sin(self.by*self.bn(self.conv(x)))

def unsteady(by): return randomize_bn(Unsteady(by)).double().eval(), batch(dtype=torch.float64)

def test_unsteady_model_is_folded():
    "What an unsteady model makes of rounding is no fault of the fold: it is as near to float64 as before, and the report says so"
    m = randomize_bn(Unsteady(4e3)).eval()
    r = BNFolder(m).fold(batch())
    assert r.bn_after == 0 and r.max_rel_err > r.tolerance and max(r.exact) < 5e-3

def test_unsteady_model_in_float64():
    "There the model is asked how far it moves when its input does"
    m, x = unsteady(1e9)
    r = BNFolder(m).fold(x)
    assert r.bn_after == 0 and r.tolerance < r.max_rel_err <= 1e-5 and r.exact

@pytest.mark.parametrize('off', [1e-6, 1e-3])
def test_broken_rule_in_an_unsteady_model(off, monkeypatch):
    m, x = unsteady(1e3)
    s, absorb = snapshot(m), C_.absorb
    monkeypatch.setattr(C_, 'absorb', lambda *a, **k: (lambda w, b: (w, b+off))(*absorb(*a, **k)))
    with pytest.raises(FoldError, match='would change'): BNFolder(m).fold(x)
    assert not changed(s, snapshot(m))

def test_chaos_is_refused():
    m, x = unsteady(1e14)
    s = snapshot(m)
    with pytest.raises(FoldError, match='would change'): BNFolder(m).fold(x)
    assert not changed(s, snapshot(m))
