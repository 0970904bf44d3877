"An exported folded Learner needs nothing of ours: it predicts the same in a process that cannot import the library."
import os, pickle, subprocess, sys

import pytest, torch
from fastai.basics import load_learner
from fastai_bnfold.all import *
from learners import item, kinds, trained
from models import bn_layers

pytestmark = pytest.mark.filterwarnings('ignore')
HOW = dict(plain=dict(), trainable=dict(trainable=True), no_undo=dict(undo=False), callback=None)

CHILD = '''
import sys, warnings, pickle
warnings.simplefilter('ignore')
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('fastai_bnfold', 'learners', 'models'): raise ModuleNotFoundError(f'{name} is blocked')
sys.meta_path.insert(0, Blocked())
try:
    import fastai_bnfold
    raise SystemExit('not blocked')
except ModuleNotFoundError: pass
import torch
torch.set_num_threads(1)
from fastai.learner import load_learner
import fastai.callback.progress  # `no_bar`
jobs = pickle.load(open(sys.argv[1], 'rb'))
res = {}
for name, (file, item, items) in jobs.items():
    learn = load_learner(file)
    with learn.no_bar(): res[name] = learn.predict(item)[-1], learn.get_preds(dl=learn.dls.test_dl(items))[0], [type(m).__module__ for m in learn.model.modules()]
assert not [m for m in sys.modules if m.split('.')[0] == 'fastai_bnfold']
torch.save(res, sys.argv[2])
'''

def several(kind, x):
    import pandas as pd
    return pd.DataFrame([x]*2) if kind == 'tabular' else [x]*2

def exported(kind, how, path):
    "Sizes of the export before and after the fold, the later file, an item, and what this process predicts for it"
    learn = trained(kind, path)
    x = item(learn, kind)
    learn.export('before.pkl')
    want = learn.predict(x)[-1]
    if how == 'callback':
        cb = BNFoldCallback()
        learn.fit(1, 0., cbs=cb, wd=0.)
        learn.add_cb(BNFoldCallback())
    else: learn.fold_bn(**HOW[how])
    learn.export('after.pkl')
    mine = learn.predict(x)[-1]
    sizes = [(path/f'{n}.pkl').stat().st_size for n in ('before', 'after')]
    return sizes, path/'after.pkl', x, want, mine

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Every kind and way, exported here and loaded in one fresh process"
    todo = [(k, 'plain') for k in kinds] + [('vision', h) for h in HOW if h != 'plain']
    path = tmp_path_factory.mktemp('export')
    made = {}
    for k, h in todo:
        (path/f'{k}-{h}').mkdir()
        made[k, h] = exported(k, h, path/f'{k}-{h}')
    (path/'jobs.pkl').write_bytes(pickle.dumps({n: (m[1], m[2], several(n[0], m[2])) for n, m in made.items()}))
    r = subprocess.run([sys.executable, '-c', CHILD, str(path/'jobs.pkl'), str(path/'res.pt')], cwd=path, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-3000:]
    return made, torch.load(path/'res.pt', weights_only=False)

def names(): return [(k, 'plain') for k in kinds] + [('vision', h) for h in HOW if h != 'plain']

@pytest.mark.parametrize('name', names(), ids='-'.join)
def test_predicts_the_same_without_the_library(name, runs):
    (_, _, _, want, mine), (got, preds, _) = runs[0][name], runs[1][name]
    torch.testing.assert_close(got, mine, rtol=1e-6, atol=1e-7)
    if name[1] != 'callback': torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert len(preds) == 2

@pytest.mark.parametrize('name', names(), ids='-'.join)
def test_made_of_stock_modules(name, runs):
    assert {m.split('.')[0] for m in runs[1][name][2]} <= {'torch', 'fastai'}

@pytest.mark.parametrize('name', names(), ids='-'.join)
def test_no_larger(name, runs, record_property):
    before, after = runs[0][name][0]
    record_property('sizes', f'{before} {after}')
    print(*name, before, after)
    assert after <= before

@pytest.mark.parametrize('kind', kinds)
def test_loaded_export_says_it_cannot_unfold(kind, tmp_path):
    learn = trained(kind, tmp_path)
    learn.fold_bn()
    learn.export('e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    assert len(bn_layers(loaded.model)) == len(bn_layers(learn.model))
    with pytest.raises(FoldError, match='export'): loaded.unfold_bn()
    assert bn_layers(learn.unfold_bn().model)
