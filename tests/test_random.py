"Some hundred random networks, and the shrunk ones that failed once."
import gc
import warnings

import pytest
import torch

from fuzz import BAD, Result, check, one, settle, summary
from nets import Invalid, build, generate, literal, shrink
from regressions import REGRESSIONS

STEP, SEEDS = 10, 300


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


@pytest.mark.parametrize('name', list(REGRESSIONS))
def test_regression(name): assert check(REGRESSIONS[name]).status == 'ok', check(REGRESSIONS[name])


def test_random_nets_are_told_wrong():
    "A folder that drops every layer fails on nearly every net"
    res = [one(s, 'drop') for s in range(40)]
    assert sum(r.status in BAD for r in res) > 30


def test_shrinks():
    "A failing net comes out small"
    seed = next(s for s in range(40) if one(s, 'drop').status == 'wrong')
    spec = shrink(generate(seed), lambda s: check(s, 'drop').status == 'wrong')
    assert len(spec['steps']) <= 3 and eval(literal(spec)) == spec


def test_generator_is_a_function_of_the_seed(): assert generate(5) == generate(5) != generate(6)


def test_specs_that_do_not_fit_are_told():
    with pytest.raises(Invalid): build(dict(inputs=[(2, 3)], steps=[('conv', (0,), dict(name='c'))], out=[1]))
