"A fixed sample of the zoo: right in float64 on a fresh batch, as complete as it was, undone exactly."
import gc

import pytest
import torch
from fuzz import settle
from models import PEERS, TOL, bn_layers
from zoo import SETS, measure, prepared

SAMPLE = {  # set, name: how many layers may be left
    ('fastai', 'vision_learner resnet18'): 0, ('fastai', 'vision_learner squeezenet1_1'): 0, ('fastai', 'unet_learner resnet18'): 5,
    ('fastai', 'tabular lin_first=True bn_cont=True'): 0, ('fastai', 'tabular lin_first=False bn_cont=True'): 0,
    ('fastai', 'text_classifier AWD_LSTM'): 0, ('torchvision', 'mnasnet0_5'): 0, ('torchvision', 'shufflenet_v2_x0_5'): 0,
    ('torchvision', 'segmentation lraspp_mobilenet_v3_large'): 0, ('torchvision', 'detection fasterrcnn_mobilenet_v3_large_320_fpn'): 0,
    ('torchvision', 'video r2plus1d_18'): 0, ('timm', 'starnet: starnet_s050'): 0, ('timm', 'resnetv2: resnetv2_18'): 9,
    ('timm', 'ghostnet: ghostnet_050'): 0}


@pytest.fixture(autouse=True, scope='module')
def quiet():
    settle()
    yield
    gc.unfreeze()


def entry(kind, name): return next(e for e in SETS[kind]() if e.name == name)


@pytest.mark.parametrize('kind,name', list(SAMPLE))
def test_model(kind, name):
    r = measure(entry(kind, name), peers=False)['ours']
    assert 'fails' not in r, r['fails']
    assert r['err'] <= TOL and r['undone'], r
    assert r['left'] <= SAMPLE[kind, name], r['kept']
    assert len(r['kept']) == r['left']


def test_statistics_are_real():
    "Dropping the layers is wrong, on a model as the zoo prepares it"
    model, xb, fresh = prepared(entry('fastai', 'vision_learner resnet18'))
    assert bn_layers(model) and not torch.allclose(model(*fresh), PEERS['drop'](model)(*fresh), rtol=1e-2)


def test_sets_have_what_they_say():
    assert len(list(SETS['fastai']())) == 19
    assert len({e.name for e in SETS['timm']()}) == len(list(SETS['timm']())) >= 55
