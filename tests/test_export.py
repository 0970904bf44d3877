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

# ---------------------------------------------------------------- whoever folded it, whatever fails
def learner_parts(learn): return learn.opt, learn.dls, learn.model, sorted(vars(learn))

@pytest.mark.parametrize('kind', kinds)
def test_export_of_a_model_that_a_folder_folded(kind, tmp_path):
    "The optimizer still has the parameters that went: it is put aside, and the unfolded Learner trains on with it"
    learn = trained(kind, tmp_path)
    x, opt, dls = item(learn, kind), learn.opt, learn.dls
    want = learn.predict(x)[-1]
    folder = BNFolder(learn.model)
    folder.fold(*[o.as_subclass(torch.Tensor) for o in dls.valid.one_batch()[:dls.n_inp if hasattr(dls, 'n_inp') else 1]])
    learn.export('e.pkl')
    assert learn.opt is opt and learn.dls is dls
    loaded = load_learner(tmp_path/'e.pkl')
    assert len(bn_layers(loaded.model)) == len(bn_layers(learn.model))
    torch.testing.assert_close(loaded.predict(x)[-1], want, rtol=1e-4, atol=1e-5)
    with pytest.raises(FoldError, match='If a `BNFolder`'): learn.unfold_bn()
    report = learn.fold_bn()
    assert report.already and 'unfold_bn' not in report.title
    folder.unfold()
    learn.fit(1, reset_opt=False)
    assert learn.opt is opt

@pytest.mark.parametrize('how', ['unfolded', 'folded', 'by a folder'])
def test_failed_export_leaves_the_learner(how, tmp_path, monkeypatch):
    learn = trained('vision', tmp_path)
    if how == 'folded': learn.fold_bn()
    if how == 'by a folder': BNFolder(learn.model).fold(learn.dls.one_batch()[0])
    learn.get_preds()
    learn._end_cleanup()
    was = learner_parts(learn)
    def full(*args, **kw): raise OSError('no space left')
    with monkeypatch.context() as m:
        m.setattr(torch, 'save', full)
        with pytest.raises(OSError, match='no space'): learn.export('e.pkl')
    now = learner_parts(learn)
    assert all(a is b for a, b in zip(was[:3], now[:3])) and was[3] == now[3]
    learn.get_preds()
    learn.export('e.pkl')
    if how != 'unfolded': assert not bn_layers(load_learner(tmp_path/'e.pkl').model)
    if how == 'folded': assert len(bn_layers(learn.unfold_bn().model)) == 11
