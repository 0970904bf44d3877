"Situations that users of folding tools have reported: the answer is right, or what was not looked at is said."
import copy

import pytest
import torch
import torchvision
from torch import nn

from fastai_bnfold.all import *
from models import TOL, randomize_bn, rel_err, run


def lived(model): return randomize_bn(model).double().eval()
def batch(*shape): return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Ways(nn.Module):
    "A plain argument, an optional input and an attribute each pick a way"
    def __init__(self):
        super().__init__()
        self.conv, self.domain = nn.Conv2d(3, 4, 3), 0
        self.bns = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
    def forward(self, x, mask=None, features=False):
        y = self.conv(x)
        if features: return y
        if mask is not None: y = y*mask
        return self.bns[self.domain](y).relu()


def test_inputs_that_nobody_passed_are_said():
    plan = BNFolder(lived(Ways())).plan(batch(2, 3, 8, 8))
    assert any('`mask`' in o and '`features`' in o for o in plan.assumed)
    assert any('`bns.1`' in o for o in plan.assumed)
    assert '`bns.0` was folded into `conv`' in plan['bns.1'].reason


@pytest.mark.parametrize('way', [dict(features=True), dict(mask=batch(2, 1, 6, 6))], ids=['features', 'mask'])
def test_also_shows_the_other_way(way):
    x, model = batch(2, 3, 8, 8), lived(Ways())
    want = [run(model, [x]), model(x, **way).detach()]
    plan = BNFolder(model).fold(x, also=[dict(x=x, **way)]).plan
    assert not plan['bns.0'].folded
    assert max(rel_err([a], [b]) for a, b in zip([want[0][0], want[1]], [run(model, [x])[0], model(x, **way).detach()])) < TOL


def test_a_value_that_was_always_the_same_is_said():
    plan = BNFolder(lived(Ways())).plan(batch(2, 3, 8, 8), None, False)
    assert any('only seen as False' in o for o in plan.assumed) and any('`mask`' in o for o in plan.assumed)


def test_modules_without_parameters_give_other_values_too():
    model = lived(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5), nn.Dropout(.5), nn.Linear(5, 2)))
    plan = BNFolder(model).plan(batch(3, 4))
    assert plan.changed == ('2', '3') and plan.through_dropout == ('3',)


def test_an_unfolded_model_that_rounds_is_no_fault_of_the_fold():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad(): model[0].bias.fill_(1e5); model[1].running_mean.fill_(1e5); model[1].running_var.fill_(.3)
    x = torch.randn(4, 3, 12, 12)
    truth = copy.deepcopy(model).double()(x.double())
    before = float((model(x)-truth).abs().max())
    report = BNFolder(model).fold(x)
    assert report.bn_after == 0 and report.exact and float((model(x)-truth).abs().max()) <= before


def test_reasons_name_the_layer():
    model = lived(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    assert 'the weight of ParametrizedConv2d `0` is computed' in BNFolder(model).plan(batch(2, 3, 8, 8))['1'].reason
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    def log_features(m, i, o): pass
    model[0].register_forward_hook(log_features)
    assert 'hook' in BNFolder(model).plan(batch(2, 3, 8, 8))['1'].reason


class Deformed(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.offset, self.conv = nn.Conv2d(4, 18, 3, padding=1), torchvision.ops.DeformConv2d(4, 6, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(6)
    def forward(self, x): return self.bn(self.conv(x, self.offset(x))).relu()


class Numbers(nn.Module):
    def __init__(self, f): super().__init__(); self.conv, self.bn, self.f = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), f
    def forward(self, x): return self.bn(self.f(self.conv(x))).relu()


class Matrix(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.b, self.bn = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6)), nn.BatchNorm1d(6)
    def forward(self, x): return self.bn(x @ self.w + self.b).relu()


FOLDS = {'deformable': (lambda: Deformed(True), batch(2, 4, 9, 9)), 'deformable, no bias': (lambda: Deformed(False), batch(2, 4, 9, 9)),
         'times 2.5': (lambda: Numbers(lambda y: y*2.5), batch(2, 4, 9, 9)), 'half': (lambda: Numbers(lambda y: y/2), batch(2, 4, 9, 9)),
         'plus 1': (lambda: Numbers(lambda y: y+1.), batch(2, 4, 9, 9)), '1 minus': (lambda: Numbers(lambda y: 1-y), batch(2, 4, 9, 9)),
         'matrix': (Matrix, batch(5, 4)), 'embedding': (lambda: nn.Sequential(nn.Embedding(10, 6), nn.BatchNorm1d(6), nn.ReLU()), torch.arange(7))}

@pytest.mark.parametrize('name', FOLDS)
def test_folds(name):
    "These were kept once"
    make, x = FOLDS[name]
    model = lived(make())
    other = x.flip(0) if not x.is_floating_point() else -x[:1]
    want = [run(model, [o]) for o in (x, other)]
    folder = BNFolder(model)
    with folder.folding(x) as report:
        assert report.bn_after == 0
        assert max(rel_err(a, run(model, [o])) for a, o in zip(want, (x, other))) < TOL
    assert not folder.folded and rel_err(want[0], run(model, [x])) == 0


def test_a_fold_for_a_while_ends_after_an_error_too():
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with pytest.raises(ZeroDivisionError), BNFolder(model).folding(batch(2, 3, 8, 8)): 1/0
    assert isinstance(model[1], nn.BatchNorm2d)


@pytest.mark.parametrize('weight', [(600, 700), (4, 6)], ids=str)
def test_a_single_number_is_no_bias(weight):
    class One(nn.Module):
        def __init__(self): super().__init__(); self.w, self.one, self.bn = nn.Parameter(torch.randn(weight)), nn.Parameter(torch.randn(1)), nn.BatchNorm1d(weight[1])
        def forward(self, x): return self.bn(x @ self.w + self.one).relu()
    assert not BNFolder(lived(One())).fold(batch(3, weight[0])).plan['bn'].folded


def test_a_tied_embedding_keeps_itself_only():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.bn, self.lin, self.bn2 = nn.Embedding(11, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6)
        def forward(self, i): return nn.functional.linear(self.bn2(self.lin(self.bn(self.e(i)).relu())).relu(), self.e.weight)
    plan = BNFolder(lived(Tied())).fold(torch.arange(5)).plan
    assert [e.folded for e in plan] == [False, True]
