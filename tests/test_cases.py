"Every hand-made case: right on a fresh batch in float64, and folded and kept as expected."
import copy
import gc

import pytest
import torch
from cases import BETWEEN, CASES, made
from fuzz import Fail, entries, examine, settle
from models import TOL, bits, engine, rel_err, run


@pytest.fixture(autouse=True, scope='module')
def quiet():
    settle()
    yield
    gc.unfreeze()


def expected(c, es):
    "What of the plan is not as the case wants it"
    got = {bn: reason for bn, into, reason in es}
    free = set(c.may)
    bad = [f'{b} was kept: {got.get(b)}' for b in c.folds if got.get(b, '') is not None]
    for b, words in c.keeps.items():
        if b in free: continue
        if got.get(b, '?') is None: bad.append(f'{b} was folded')
        elif not any(w.lower() in got.get(b, '').lower() for w in words): bad.append(f'{b}: none of {words} in {got.get(b)!r}')
    bad += [f'unexpected {b}: {r}' for b, r in got.items() if b not in {*c.folds, *c.keeps, *free}]
    if c.count is not None and sum(got[b] is None for b in c.may) != c.count: bad.append(f'{c.count} of {c.may} should fold: {got}')
    return bad


def stateful(c, model, xb, fresh):
    "Models with a state of their own: compared on copies, their state as before a fold and after"
    from models import engine
    BNFolder, _ = engine()
    was, ref = bits(c.state(model)), run(copy.deepcopy(model), fresh)
    folder = BNFolder(model)
    es = entries(folder.plan(*xb))
    assert bits(c.state(model)) == was, 'plan changed the state'
    folder.fold(*xb)
    assert bits(c.state(model)) == was, 'fold changed the state'
    assert rel_err(ref, run(copy.deepcopy(model), fresh)) <= TOL
    return es


def outcome(c):
    "The plan's entries of a case that is right; None for a refusal that is"
    model, xb, fresh = made(c)
    if getattr(model, 'train_parts', False): model.train().conv.eval()
    try: return stateful(c, model, xb, fresh) if c.state else examine(model, xb, fresh)
    except Fail as e:
        if e.status == 'refused' and c.refuse: return None
        raise


@pytest.mark.parametrize('c', CASES, ids=lambda c: c.name)
def test_case(c):
    es = outcome(c)
    assert es is None or not expected(c, es)


@pytest.mark.parametrize('c', [c for c in CASES if c.name in BETWEEN or c.name.startswith(('helper_', 'convolution_pads'))], ids=lambda c: c.name)
def test_other_image_sizes(c):
    "Folded on images of one size, right on others"
    model, xb, _ = made(c)
    fresh = [[torch.randn(3, 3, s, s, dtype=torch.float64)] for s in (9, 11, 16, 17)]
    ref = [run(model, b) for b in fresh]
    engine()[0](model).fold(*xb)
    assert all(rel_err(r, run(model, b)) <= TOL for r, b in zip(ref, fresh))


def test_the_bed_can_fail():
    "Dropping every BatchNorm is caught on nearly every case that has one, on its batch or on a fresh one"
    from models import bn_layers, drop_all
    caught = n = 0
    for c in CASES:
        try: model, xb, fresh = made(c)
        except Exception: raise AssertionError(c.name)
        if c.state or not bn_layers(model) or c.name == 'bn_not_reached': continue
        n += 1
        try: caught += max(rel_err(run(model, b), run(drop_all(model), b)) for b in (xb, fresh)) > 1e-3
        except Exception: caught += 1
    assert caught >= n - 4 and n > 100
