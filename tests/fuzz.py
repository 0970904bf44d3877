"""Random networks against the folder: `python tests/fuzz.py -n 1000`. Each net is folded on one batch and compared in
float64 on fresh inputs of another batch size, and on inputs that take other ways (negated, scaled, one item, other
sizes, another door); its plan must be complete and its undo exact. `--peer fx` and `--peer fasterai` put the other
tools through the same nets; `--peer drop` and `--peer naive`, wrong folders, show that the bed catches one."""
import argparse
import collections
import copy
import gc
import inspect
import re
import sys
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fastai_bnfold.plan import KINDS
from models import PEERS, TOL, bits, bn_layers, changed, engine, evaluating, is_bn, rel_err, run, snapshot
from nets import Invalid, Net, build, doors, generate, literal, looks, shrink, source, usable

BAD = ('wrong', 'crashed', 'refused', 'plan', 'touched', 'undo', 'report', 'seen', 'stock', 'slower', 'way')


@dataclass
class Result:
    "What became of one net: `status` is 'ok' or one of BAD"
    status: str = 'ok'
    detail: str = ''
    bns: int = 0
    folded: int = 0
    kept: list = field(default_factory=list)
    seed: int = None


class Fail(Exception):
    def __init__(self, status, detail=''): self.status, self.detail = status, str(detail)


def need(ok, status, detail=''):
    if not ok: raise Fail(status, detail)


# ---------------------------------------------------------------- what is looked at
class Calls(TorchFunctionMode):
    "Counts the torch calls of a forward, attribute reads aside"
    def __init__(self): super().__init__(); self.n = 0

    def __torch_function__(self, f, types, args=(), kwargs=None):
        if getattr(f, '__name__', '') != '__get__': self.n += 1
        return f(*args, **(kwargs or {}))


def calls(model, xb):
    with Calls() as c: run(model, xb)
    return c.n


def seen(model):
    "What the reading hooks of a net saw, by module"
    return {f'{n}/{k}': v for n, m in model.named_modules() if isinstance(m, Net) for k, v in m.store.get('seen', {}).items()}


def entries(plan): return [(e.bn, tuple(e.into), e.reason) for e in plan]


def check_plan(plan, layers, model):
    "Every BatchNorm once; into empty iff kept, reason None iff folded; entries beyond are kept calls of other modules"
    es = entries(plan)
    mods = [model.get_submodule(bn) for bn, _, _ in es]
    for m in layers.values(): need(sum(m is x for x in mods) == 1, 'plan', f'{sum(m is x for x in mods)} entries for a layer: {es}')
    for (bn, into, reason), m in zip(es, mods):
        need(bool(into) == (reason is None), 'plan', f'{bn}: into {into}, reason {reason!r}')
        need(is_bn(m) or reason is not None, 'plan', f'{bn} is no BatchNorm')
        need(reason is None or (isinstance(reason, str) and reason.strip() and '\n' not in reason), 'plan', f'{bn}: reason {reason!r}')
        for p in into: model.get_submodule(p)
    unknown = {k for e in plan if (k := getattr(e, 'kind', None)) and k not in KINDS}
    need(not unknown, 'plan', f'kinds of reasons that are not among KINDS: {unknown}')
    return es


def check_folded(model, before, es):
    "The tree is as it was but for BatchNorm turned Identity (or what is left of it)"
    now = dict(model.named_modules())
    gone = {bn for bn, into, _ in es if into}
    for n, k, t in before:
        if n in gone: need(not is_bn(model.get_submodule(n)), 'stock', f'{n} folded but still there')
        elif not any(n.startswith(g + '.') for g in gone): need(n in now and type(now[n]) is t, 'stock', f'{n} was {t.__name__}')
    for n in gone: need(type(model.get_submodule(n)) in (nn.Identity, nn.Sequential), 'stock', f'{n} is {type(model.get_submodule(n))}')


def check_report(rep, es, n):
    need(rep.bn_before - rep.bn_after == sum(bool(i) for _, i, _ in es), 'report', f'bn {rep.bn_before} -> {rep.bn_after}')
    need(rep.bn_before >= n, 'report', f'{rep.bn_before} layers, {n} there')
    need([bn for bn, i, _ in entries(rep.plan) if i] == [bn for bn, i, _ in es if i], 'report', 'fold and plan differ')
    need(rep.max_rel_err <= TOL, 'report', f'max_rel_err {rep.max_rel_err}')


# ---------------------------------------------------------------- one net
def examine(model, xb, fresh, train=False, ops=True, others=(), told=()):
    """Fold, compare, undo; `Fail` at the first thing that is not right. Returns the plan's entries. `others` are inputs
    to compare on besides, `told` batches that the fold is told of"""
    BNFolder, FoldError = engine()
    model.eval()
    ref0, ref, saw, layers = run(model, xb), run(model, fresh), seen(model), bn_layers(model)
    n0 = calls(model, fresh) if ops else 0
    others = on_others(model, others)
    also = dict(also=[tuple(x) for x in told]) if told else {}
    if train: model.train()
    state, tree = snapshot(model), [(n, id(m), type(m)) for n, m in model.named_modules()]
    given = [bits(x) for x in xb if isinstance(x, torch.Tensor)]
    folder = BNFolder(model)
    es = check_plan(refusing(folder.plan, xb, state, model, FoldError, **also), layers, model)
    need(not changed(state, snapshot(model)), 'touched', f'plan changed {changed(state, snapshot(model))}')
    rep = refusing(folder.fold, xb, state, model, FoldError, **also)
    check_folded(model, tree, es)
    check_report(rep, es, len(layers))
    need(snapshot(model)['rng'] == state['rng'], 'touched', 'fold changed the RNG')
    need(given == [bits(x) for x in xb if isinstance(x, torch.Tensor)], 'touched', 'the batch was changed')
    check_modes(model, state, es)
    with evaluating(model):
        err = max(rel_err(ref, run(model, fresh)), rel_err(ref0, run(model, xb)))
        need(err <= TOL, 'wrong', f'relative error {err:.2g}, folded {[(a, b) for a, b, _ in es if b]}')
        run(model, fresh)
        check_seen(saw, seen(model))
        check_others(model, others)
        if ops: need(calls(model, fresh) <= n0, 'slower', f'{n0} calls before, {calls(model, fresh)} after')
    if rep.bn_after < rep.bn_before: folder.unfold()
    need(not changed(state, snapshot(model)), 'undo', f'unfold left {changed(state, snapshot(model))} changed')
    with evaluating(model): need(all(torch.equal(a, b) for a, b in zip(ref, run(model, fresh))), 'undo', 'outputs differ after unfold')
    return es


def on_others(model, others):
    "(label, inputs, outputs) for the other inputs that the model takes, and whose outputs hang on no rounding"
    good = []
    for label, xb in others:
        near = [x * (1 + 1e-13) if isinstance(x, torch.Tensor) else x for x in xb]
        try: ref, near = run(model, xb), run(model, near)
        except Exception: continue
        if usable(ref) and rel_err(ref, near) < TOL / 100: good.append((label, xb, ref))
    return good


def check_others(model, others):
    for label, xb, ref in others:
        try: err = rel_err(ref, run(model, xb))
        except Exception as e: raise Fail('way', f'{label}: raises {type(e).__name__}: {e}') from e
        need(err <= TOL, 'way', f'{label}: relative error {err:.2g}')


def tells():
    "Does the engine take further example batches?"
    return 'also' in inspect.signature(engine()[0].fold).parameters


def refusing(f, xb, state, model, FoldError, **kw):
    "A refusal is a failure here, and must leave no trace"
    try: return f(*xb, **kw)
    except FoldError as e:
        need(not changed(state, snapshot(model)), 'undo', f'a refusal left {changed(state, snapshot(model))} changed')
        raise Fail('refused', e) from e


def check_modes(model, state, es):
    was, gone = {n: t for n, _, _, t in state['modules']}, {bn for bn, i, _ in es if i}
    for n, m in model.named_modules(remove_duplicate=False):
        if n in was and n not in gone: need(m.training == was[n], 'touched', f'{n}.training was {was[n]}')


def check_seen(a, b):
    for k in a: need(k in b and rel_err([a[k]], [b[k]]) <= TOL, 'seen', f'the hook on {k} sees other values')


def rounded(model, xb, fresh, dtype):
    "Folded in a smaller dtype: against float64, as close as the unfolded model is, and not refused"
    BNFolder, FoldError = engine()
    ref = run(model, fresh)
    model = model.to(dtype)
    xb, fresh = [x.to(dtype) for x in xb], [x.to(dtype) for x in fresh]
    try: before = rel_err(ref, [o.double() for o in run(model, fresh)])
    except RuntimeError as e: raise Invalid(f'does not run in {dtype}') from e
    folder = BNFolder(model)
    es = entries(refusing(folder.plan, xb, state := snapshot(model), model, FoldError))
    refusing(folder.fold, xb, state, model, FoldError)
    after = rel_err(ref, [o.double() for o in run(model, fresh)])
    need(after <= 20 * before + 10 * torch.finfo(dtype).eps, 'wrong', f'error against float64 {before:.2g} before, {after:.2g} after')
    return es


def check(spec, peer=None, dtype=None):
    "The Result of one spec, by our folder or a peer"
    model, xb, fresh = build(spec)
    res = Result(bns=len(bn_layers(model)))
    try:
        if dtype:
            es = rounded(model, xb, fresh, dtype)
            res.folded = sum(bool(i) for _, i, _ in es)
        elif peer: res.folded = peer_check(model, xb, fresh, ALL_PEERS[peer], res.bns, others_of(spec, True))
        else:
            told = doors(spec) if tells() else ()
            es = examine(model, xb, fresh, spec.get('train', False), others=others_of(spec), told=told)
            res.folded, res.kept = sum(bool(i) for _, i, _ in es), [r for _, i, r in es if not i]
    except Invalid: raise
    except Fail as e: res.status, res.detail = e.status, e.detail
    except Exception as e: res.status, res.detail = 'crashed', f'{type(e).__name__}: {e} {where(e)}'
    return res


def where(e):
    tb = traceback.extract_tb(e.__traceback__)
    ours = [f for f in tb if 'fastai_bnfold' in f.filename or 'misc/bn_fold' in f.filename] or tb
    return f'[{ours[-1].filename.rsplit("/", 1)[-1]}:{ours[-1].lineno} {ours[-1].name}]'


def others_of(spec, all_doors=False):
    "Inputs beyond the example; by another door only if the engine can be told of it"
    return list(looks(spec)) + ([('another door', x) for x in doors(spec, 5)] if all_doors or tells() else [])


def peer_check(model, xb, fresh, tool, n, others):
    ref, others = run(model, fresh), on_others(model, others)
    out = tool(model, xb) if tool is naive else tool(model)
    err = rel_err(ref, run(out, fresh))
    need(err <= TOL, 'wrong', f'relative error {err:.2g}')
    check_others(out, others)
    return n - len(bn_layers(out))


def naive(model, xb):
    "A wrong folder: believes that every forward is like the one it sees, and takes what a neighbour can absorb there"
    import oracle  # which imports this module
    model = copy.deepcopy(model)
    ref = run(model, xb)
    for name, bn in bn_layers(model).items():
        if type(bn).__module__ != 'torch.nn.modules.batchnorm' or bn.running_mean is None: continue
        tries = [(a, side) for _, a in oracle.layers(model) for side in ('out', 'in')]
        for a, side in tries:
            new = oracle.absorbed(a, *oracle.affine(bn), side)
            if new and oracle.works(model, name, a, new, ref, xb):
                model.set_submodule(name, nn.Identity())
                a.weight, a.bias = (nn.Parameter(t) for t in new)
                break
    return model


def rounding(model):
    "What rounding does: every weight off by a hair. A net that is told wrong here would be for nothing"
    model = copy.deepcopy(model)
    with torch.no_grad():
        for t in {*model.parameters()}: t.mul_(1 + 1e-14)
    return model


ALL_PEERS = PEERS | dict(naive=naive, rounding=rounding)


# ---------------------------------------------------------------- many nets
def settle():
    "A worker's start: one thread, and what is loaded left out of every later garbage collection"
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    gc.collect(), gc.freeze()


def one(seed, peer=None, dtype=None):
    try: res = check(generate(seed), peer, dtype)
    except Invalid as e: res = Result('invalid', str(e))
    res.seed = seed
    return res


def cause(res):
    "A rough name for why a net failed, to group by"
    if res.status == 'way': return 'way: ' + res.detail.split(':')[0]
    return res.status if res.status == 'wrong' else res.status + ': ' + re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d+(\.\d+)?(e-?\d+)?|0x\w+", '#', res.detail.split(', starting at')[0])[:90]


def smallest(seed, peer=None, dtype=None):
    "The shrunk spec of a failing seed"
    want = one(seed, peer, dtype)
    return shrink(generate(seed), lambda s: same(check(s, peer, dtype), want))


def same(a, b): return a.status == b.status and (b.status in ('wrong', 'way') or cause(a) == cause(b))


def sweep(seeds, peer=None, jobs=1, dtype=None):
    "Results of all seeds"
    out, t = [], time.time()
    with ProcessPoolExecutor(jobs, initializer=settle) as ex:
        for i, r in enumerate(ex.map(one, seeds, [peer] * len(seeds), [dtype] * len(seeds), chunksize=8)):
            out.append(r)
            if (i + 1) % 100 == 0: print(f'  {i + 1} of {len(seeds)} nets, {sum(x.status != "ok" for x in out)} not right, {time.time() - t:.0f} s', file=sys.stderr, flush=True)
    return out


def summary(res):
    n = collections.Counter(r.status for r in res)
    good = [r for r in res if r.status != 'invalid']
    bad = ', '.join(f'{n[b]} {b}' for b in BAD if n[b] or b in ('wrong', 'way', 'crashed'))
    return f'{len(good)} nets: {bad}; folded {sum(r.folded for r in good)} of {sum(r.bns for r in good)} BatchNorm layers'


def groups(res):
    by = collections.defaultdict(list)
    for r in res:
        if r.status in BAD: by[cause(r)].append(r)
    return sorted(by.items(), key=lambda kv: -len(kv[1]))


def reasons(res):
    return collections.Counter(re.sub(r'[\w]+(\.[\w]+)+|\b[a-z]+\d+\b|\d+', '#', k or '') for r in res for k in r.kept).most_common(40)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('-n', type=int, default=1000, help='how many nets')
    p.add_argument('--seed', type=int, default=0, help='the first seed')
    p.add_argument('--jobs', type=int, default=2)
    p.add_argument('--peer', choices=list(ALL_PEERS), help='put another tool through the same nets')
    p.add_argument('--dtype', type=lambda s: getattr(torch, s), help='fold in this dtype, against float64')
    p.add_argument('--shrink', type=int, default=1, metavar='K', help='shrink the first K nets of each cause')
    p.add_argument('--show', type=int, help='check this one seed and print its net')
    p.add_argument('--reasons', action='store_true', help='count the reasons of kept layers')
    a = p.parse_args()
    if a.show is not None: return show(a.show, a.peer, a.dtype)
    settle()
    res = sweep(range(a.seed, a.seed + a.n), a.peer, a.jobs, a.dtype)
    for k, rs in groups(res):
        print(f'\n== {len(rs)} x {k}\n   seeds {[r.seed for r in rs][:12]}\n   {rs[0].detail[:400]}')
        for r in rs[:a.shrink if not a.peer else 0]: print(literal(smallest(r.seed, None, a.dtype)))
    if a.reasons: print('\n'.join(f'{c:6d}  {k}' for k, c in reasons(res)))
    print(summary(res))
    sys.exit(any(r.status in BAD for r in res))


def texts(op, kw):
    "The programs that a step is made of as source"
    if op == 'code': yield source(**kw)
    inner = kw['parts'].values() if op == 'code' else kw.get('steps', ())
    for step in inner: yield from texts(*step)


def show(seed, peer, dtype):
    settle()
    spec = generate(seed)
    print(literal(spec), *(t for op, _, kw in spec['steps'] for t in texts(op, kw)), sep='\n\n')
    print(one(seed, peer, dtype))


if __name__ == '__main__': main()
