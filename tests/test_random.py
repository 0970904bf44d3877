"Some hundred random networks, and the shrunk ones that failed once."
import gc
import re

import pytest

from fuzz import BAD, check, one, settle, summary
from nets import Invalid, build, generate, literal, looks, shrink, way, ways
from regressions import REGRESSIONS

STEP, SEEDS = 10, 200


@pytest.fixture(autouse=True, scope='module')
def quiet():
    settle()
    yield
    gc.unfreeze()


@pytest.mark.parametrize('start', range(0, SEEDS, STEP))
def test_random_nets(start):
    "Right on fresh inputs, the plan complete, the undo exact; `fuzz.py --show SEED` prints a net"
    res = [one(s) for s in range(start, start + STEP)]
    assert not [r for r in res if r.status in BAD], summary(res)
    assert sum(r.status != 'invalid' for r in res) >= STEP - 2


@pytest.mark.parametrize('name', REGRESSIONS)
def test_regression(name): assert check(REGRESSIONS[name]).status == 'ok', check(REGRESSIONS[name])


def test_random_nets_are_told_wrong():
    "A folder that drops every layer fails on nearly every net"
    res = [one(s, 'drop') for s in range(40)]
    assert sum(r.status in BAD for r in res) > 30


def test_wrong_ways_are_told():
    "A folder that is right on what it saw, for all that it knows, is wrong on inputs that take another way"
    res = [one(s, 'naive') for s in range(60)]
    assert sum(r.status == 'way' for r in res) > 8 and sum(r.status == 'ok' for r in res) > 15, summary(res)


def test_another_door_is_told(): assert any(one(s, 'naive').detail.startswith('another door') for s in range(2, 90, 3))


@pytest.mark.parametrize('peer', ['keep', 'rounding'])
def test_right_folders_are_told_right(peer):
    "No answer hangs on the last digit: what only rounds takes the same ways"
    res = [one(s, peer) for s in range(45)]
    assert not [r for r in res if r.status in BAD], summary(res)


FEATURES = dict(
    branch=r"'if .*:", other_side='else:', ternary=r'self\.\w+ if ', helper=r'pick\(|positive\(', exit='return .*return',
    loop=r'in range\(', until='while ', flag_returned=r'return \(h, f\)', none_returned='f = None if', flag_passed='x, f=None',
    tolist='tolist', numpy='numpy', only_raises='raise|assert', caught='except', padding=r'F\.pad\(h', into_sequential=r'self\.s\d+\[',
    module_list=r'in self\.m\d', draw='self.training', held='held', method=r'self\.embed', keyword='fast=False',
    other_kind=r"doors=\['x\[", sequence="'seq': True", between_two=r"'q\d+': \('seq'")


def test_features_appear():
    "Each way to decide that programs know is in some nets"
    texts = [literal(generate(s)) for s in range(150) if s % 3]
    assert not [k for k, r in FEATURES.items() if not any(re.search(r, t) for t in texts)]


@pytest.mark.parametrize('seed', [1, 2, 5, 8, 11])
def test_other_inputs_take_other_ways(seed):
    spec = generate(seed)
    model, xb, _ = build(spec)
    assert spec.get('doors') or len(ways(model, spec)) > 1
    assert way(model, xb) == way(model, xb) and len(list(looks(spec))) > 5


def test_programs_shrink():
    "A program's lines are dropped, and the parts that no line names"
    seed = next(s for s in range(2, 90, 3) if one(s, 'naive').status == 'way')
    spec = shrink(generate(seed), lambda s: check(s, 'naive').status == 'way')
    assert len(spec['steps'][0][2]['lines']) <= 8 and check(eval(literal(spec)), 'naive').status == 'way'


def test_shrinks():
    "A failing net comes out small"
    seed = next(s for s in range(40) if one(s, 'drop').status == 'wrong')
    spec = shrink(generate(seed), lambda s: check(s, 'drop').status == 'wrong')
    assert len(spec['steps']) <= 3 and eval(literal(spec)) == spec


def test_generator_is_a_function_of_the_seed(): assert generate(5) == generate(5) != generate(6)


def test_specs_that_do_not_fit_are_told():
    with pytest.raises(Invalid): build(dict(inputs=[(2, 3)], steps=[('conv', (0,), dict(name='c'))], out=[1]))
