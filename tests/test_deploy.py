"`learn.export_onnx`: every kind of Learner, against its own predictions, in a process without fastai; and what leaves no file."
import json, os, subprocess, sys
from copy import deepcopy
import numpy as np, pytest, torch
from pathlib import Path
from torch import nn
from fastai.vision.all import (accuracy, AdaptiveAvgPool, BCEWithLogitsLossFlat, CategoryBlock, ConvLayer, CropPad, CrossEntropyLossFlat, DataBlock, DataLoader, DataLoaders, error_rate, Flatten, ImageBlock, Learner, MSELossFlat, MultiCategoryBlock, Normalize, PILImage,
    PILImageBW, Transform, RandomResizedCrop, RandomSplitter, RegressionBlock, ResBlock, Resize, aug_transforms, imagenet_stats, mkdir, parent_label)
from fastai.tabular.all import Categorify, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from fastai.learner import load_learner
import fastai_bnfold.deploy as deploy
from fastai_bnfold.deploy import ExportError, OnnxModel, relative_error
from fastai_bnfold.accept import check_kwargs
from fastai_bnfold.all import BNFolder, FoldError
from learners import images, learner_state, quiet, seeded, table, trained

pytestmark = pytest.mark.filterwarnings('ignore')
BLOCKED = "import sys\nfor o in ('torch', 'fastai', 'fastcore', 'pandas', 'fastai_bnfold'): sys.modules[o] = None\n"
SEEN = "\nassert not [o for o in ('torch', 'fastai') if sys.modules.get(o)]"

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Trained Learners by kind, made once"
    path = tmp_path_factory.mktemp('made')
    return {k: trained(k, path/k) for k in ('vision', 'tabular', 'unet', 'text')}

def elsewhere(program, path):
    "What `program` prints in folder `path`, where torch and fastai cannot be imported"
    res = subprocess.run([sys.executable, '-c', BLOCKED + program + SEEN], cwd=path, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    return res.stdout.strip()

def export(learn, path, **kw): return learn.export_onnx(path/'m.onnx', **{**dict(timeit=False), **kw})

# ---------------------------------------------------------------- every kind
@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('kind', ['vision', 'tabular', 'unet', 'text'])
def test_answers_what_the_learner_answers(made, kind, fold, tmp_path):
    learn = made[kind]
    before = learner_state(learn)
    r = export(learn, tmp_path, fold=fold)
    assert learner_state(learn) == before
    assert r.max_rel_err < 1e-4 and r.top1 == 1. and r.items == len(learn.dls.valid_ds)
    assert r.size == (tmp_path/'m.onnx').stat().st_size and os.listdir(tmp_path) == ['m.onnx']
    assert ('fold,' in r.folded) == fold and ('not folded, as asked' in r.folded) != fold
    learn.export(tmp_path/'m.pkl')
    assert r.size < (tmp_path/'m.pkl').stat().st_size

@pytest.mark.parametrize('sure', [1, 100])
def test_comparison_can_fail(made, tmp_path, monkeypatch, sure):
    "A weight that is off by a tenth is found, and the file is gone, also where every probability is 0 or 1"
    learn = made['vision']
    if sure > 1:
        learn = deepcopy(learn)
        with torch.no_grad(): list(learn.model.parameters())[-1].mul_(sure)
    right = deploy.folded_copy
    def wrong(learn, fold, xb):
        model, folded = right(learn, fold, xb)
        with torch.no_grad(): next(p for p in model.parameters() if p.dim() == 4).mul_(1.1)
        return model, folded
    monkeypatch.setattr(deploy, 'folded_copy', wrong)
    with pytest.raises(ExportError, match='answers otherwise than the Learner'): export(learn, tmp_path)
    assert os.listdir(tmp_path) == []

def test_a_picture_elsewhere(made, tmp_path):
    learn, files = made['vision'], made['vision'].dls.valid.items
    wide = tmp_path/'wide.png'
    PILImage.create(np.random.default_rng(3).integers(0, 255, (50, 71, 3), dtype=np.uint8)).save(wide)
    r = export(learn, tmp_path)
    for f in (*files[:2], wide):
        name, _, probs = learn.predict(f)
        said = elsewhere(r.code(f), tmp_path)
        assert said.split()[0] == name
        assert np.allclose(json.loads(said.split(' ', 1)[1]), probs, atol=1e-5)

@pytest.mark.parametrize('na', [False, True])
def test_a_row_elsewhere(made, tmp_path, na):
    learn, row = made['tabular'], table().iloc[3 if not na else 9]
    assert bool(np.isnan(row.pay)) == na
    _, clas, probs = learn.predict(row)
    said = elsewhere(export(learn, tmp_path).code(row), tmp_path)
    assert said.split()[0] == learn.dls.vocab[int(clas)]
    assert np.allclose(json.loads(said.split(' ', 1)[1]), probs, atol=1e-5)

def test_unknown_class_and_raw_rows(made, tmp_path):
    "Codes and numbers straight from a DataFrame, without the Learner's processing; a class never seen is code 0"
    learn, df = made['tabular'], table(30)
    df.loc[2, 'job'] = 'baker'
    export(learn, tmp_path)
    there = OnnxModel(tmp_path/'m.onnx')
    codes = [[known.index(v) if v in known else 0 for v in df[n]] for n, known in there.about['categories'].items()]
    got = there(torch.tensor(codes).T.contiguous(), torch.tensor(df[there.about['numbers']].values))
    want = learn.get_preds(dl=learn.dls.test_dl(df.drop(columns='class')))[0]
    assert relative_error(want, got) < 1e-5

def test_other_sizes_and_numbers(made, tmp_path):
    learn = made['vision']
    export(learn, tmp_path)
    there, x = OnnxModel(tmp_path/'m.onnx'), torch.randint(0, 255, (3, 3, 45, 61), dtype=torch.uint8)
    want = learn.model.eval()(x.float()/255).softmax(1)
    assert there.inputs == [('image', 'tensor(uint8)', ['batch', 'height', 'width', 3])]
    assert relative_error(want, there(x.permute(0, 2, 3, 1).contiguous())) < 1e-5

def test_a_text_elsewhere(made, tmp_path):
    "Short ones, and one that is longer than what the classifier looks at"
    learn, known = made['text'], made['text'].dls.vocab[0]
    r = export(learn, tmp_path)
    assert r.inputs == [('tokens', 'tensor(int64)', ['batch', 'length'])]
    for text in ('a good film', 'rain', ' '.join(['the bad plot fell on a roof twice']*5)):
        name, _, probs = learn.predict(text)
        tokens = [known[i] for i in learn.dls.test_dl([text]).one_batch()[0][0]]
        said = elsewhere(r.code(' '.join(tokens)), tmp_path)
        assert said.split()[0] == name and np.allclose(json.loads(said.split(' ', 1)[1]), probs, atol=1e-5)

def test_texts_side_by_side(made, tmp_path):
    "Padded at the end, each is answered as if it were alone"
    export(made['text'], tmp_path)
    there, g = OnnxModel(tmp_path/'m.onnx'), torch.Generator().manual_seed(0)
    texts = [torch.randint(2, 30, (1, n), generator=g) for n in (1, 5, 8, 9, 33)]
    rows = torch.cat([nn.functional.pad(t, (0, 33-t.shape[1]), value=there.about['pad']) for t in texts])
    assert relative_error(torch.cat([there(t) for t in texts]), there(rows)) < 1e-5

def test_a_refusal_has_its_cause(made, tmp_path, monkeypatch):
    "fastai's own text encoder asks for values of the batch, which the exporter cannot follow"
    monkeypatch.setattr(deploy, 'in_one_pass', lambda model: model)
    before = learner_state(made['text'])
    with pytest.raises(ExportError, match=r"in `0.module` \(AWD_LSTM\): Could not guard on data-dependent") as e: export(made['text'], tmp_path)
    assert '\n' not in str(e.value) and os.listdir(tmp_path) == []
    assert learner_state(made['text']) == before

# ---------------------------------------------------------------- other data, other losses
def picture_learner(path, block=None, get_y=parent_label, batch_tfms=None, item_tfms=None, n_out=2, cls='RGB', **kw):
    "A small untrained network with real statistics"
    seeded()
    image = ImageBlock if cls == 'RGB' else ImageBlock(PILImageBW)
    dblock = DataBlock((image, block or CategoryBlock), get_y=get_y, splitter=RandomSplitter(.5, seed=1), item_tfms=item_tfms or Resize(32), batch_tfms=batch_tfms)
    dls = dblock.dataloaders(images(path/'pics'), bs=3, num_workers=0, path=path)
    body = nn.Sequential(ConvLayer(3 if cls == 'RGB' else 1, 8, stride=2), ResBlock(1, 8, 8), AdaptiveAvgPool(1), Flatten(), nn.Linear(8, n_out))
    learn = quiet(Learner(dls, body, path=path, **kw))
    learn.fit(1, 1e-3)
    return learn

def test_presizing_and_normalize(tmp_path):
    "The article of every fastai course: a large `Resize`, then `aug_transforms(size=…)` and `Normalize` on the batch"
    learn = picture_learner(tmp_path, item_tfms=Resize(48), batch_tfms=[*aug_transforms(size=20), Normalize.from_stats(*imagenet_stats, cuda=False)])
    r = export(learn, tmp_path)
    assert r.max_rel_err < 1e-4 and r.inputs[0][2] == ['batch', 48, 48, 3] and r.about['size'] == [48, 48]
    f = learn.dls.valid.items[0]
    assert elsewhere(r.code(f), tmp_path).split()[0] == learn.predict(f)[0]

def test_squished_grey_and_oblong(tmp_path):
    learn = picture_learner(tmp_path, item_tfms=Resize((24, 40), method='squish'), cls='L')
    r = export(learn, tmp_path)
    assert (r.about['mode'], r.about['size'], [o['how'] for o in r.about['sizing']]) == ('L', [40, 24], ['squish'])
    f = tmp_path/'w.png'
    PILImage.create(np.random.default_rng(3).integers(0, 255, (50, 71, 3), dtype=np.uint8)).save(f)
    assert np.allclose(json.loads(elsewhere(r.code(f), tmp_path).split(' ', 1)[1]), learn.predict(f)[2], atol=1e-5)

def test_several_labels(tmp_path):
    learn = picture_learner(tmp_path, MultiCategoryBlock, lambda f: [parent_label(f), 'animal'], n_out=3, loss_func=BCEWithLogitsLossFlat(thresh=.4))
    r = export(learn, tmp_path)
    assert r.top1 == 1. and r.about['threshold'] == .4
    f = learn.dls.valid.items[0]
    assert elsewhere(r.code(f), tmp_path).startswith(str(list(learn.predict(f)[0])))

def test_regression(tmp_path):
    learn = picture_learner(tmp_path, RegressionBlock, lambda f: 2.5*(parent_label(f) == 'dog'), n_out=1, loss_func=MSELossFlat())
    r = export(learn, tmp_path)
    assert r.outputs[0][0] == 'values' and r.top1 is None
    f = learn.dls.valid.items[0]
    assert np.allclose(json.loads(elsewhere(r.code(f), tmp_path)), learn.predict(f)[2], atol=1e-4)

@pytest.mark.parametrize('cats, conts', [(['job'], []), ([], ['age', 'size']), (['job', 'town'], ['size'])])
def test_half_a_table(tmp_path, cats, conts):
    seeded()
    dls = TabularDataLoaders.from_df(table(), tmp_path, [Categorify, FillMissing, Normalize], cats, conts, 'age' if 'age' not in conts else 'pay', y_block=RegressionBlock(), valid_idx=list(range(40, 60)), bs=8, num_workers=0)
    learn = quiet(tabular_learner(dls, layers=[8], path=tmp_path, loss_func=MSELossFlat()))
    r = export(learn, tmp_path)
    assert r.max_rel_err < 1e-5 and [o[0] for o in r.inputs] == ['categories']*bool(cats) + ['numbers']*bool(conts)
    want = learn.get_preds(dl=learn.dls.test_dl(table().iloc[[4]]))[0][0]
    assert np.allclose(json.loads(elsewhere(r.code(table().iloc[4]), tmp_path)), want, rtol=1e-4)

def test_a_loaded_export(made, tmp_path):
    learn = made['vision']
    learn.export(tmp_path/'m.pkl')
    loaded, files = load_learner(tmp_path/'m.pkl'), list(learn.dls.valid.items)
    with pytest.raises(ExportError, match='pass some to check the file on'): export(loaded, tmp_path)
    r = export(loaded, tmp_path, dl=loaded.dls.test_dl(files[:1]))
    assert r.items == 1 and r.max_rel_err < 1e-4
    loaded.fold_bn(dl=loaded.dls.test_dl(files))
    assert export(loaded, tmp_path, dl=loaded.dls.test_dl(files)).folded == 'the Learner is folded'

def test_plain_tensors(tmp_path):
    "No picture, no table: what the DataLoader gives goes in as it is"
    seeded()
    ds = [(torch.randn(6), torch.randn(2)) for _ in range(12)]
    dls = DataLoaders.from_dsets(ds, ds, bs=4, device='cpu')
    learn = quiet(Learner(dls, nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), loss_func=MSELossFlat()))
    learn.fit(1)
    r = export(learn, tmp_path)
    assert r.inputs == [('input', 'tensor(float)', ['batch', 6])] and r.max_rel_err < 1e-5
    assert json.loads(elsewhere(r.code(), tmp_path))

# ---------------------------------------------------------------- no file
class Branch(nn.Module):
    def forward(self, x): return x if x.mean() > 1e3 else x*2

def test_control_flow_is_named(tmp_path):
    learn = picture_learner(tmp_path)
    learn.model.add_module('5', Branch())
    with pytest.raises(ExportError, match=r'in `5` \(Branch\)') as e: export(learn, mkdir(tmp_path/'out'))
    assert '\n' not in str(e.value) and os.listdir(tmp_path/'out') == []

def test_a_hook_that_writes(tmp_path):
    "It either goes into the file as what it computes, or stops the export: the comparison decides"
    learn = picture_learner(tmp_path)
    learn.model[0].register_forward_hook(lambda m, i, o: o.clamp(-.1, .1))
    assert export(learn, mkdir(tmp_path/'out')).max_rel_err < 1e-4

@pytest.mark.parametrize('error', [KeyboardInterrupt(), MemoryError(), ExportError('no')])
def test_whole_or_nothing(made, tmp_path, monkeypatch, error):
    def fails(graph, xs, path, *args, **kw): Path(path).write_bytes(b'half'); raise error
    monkeypatch.setattr(deploy, 'best_export', fails)
    (tmp_path/'m.onnx').write_text('old')
    with pytest.raises(type(error)): export(made['vision'], tmp_path)
    assert os.listdir(tmp_path) == ['m.onnx'] and (tmp_path/'m.onnx').read_text() == 'old'

@pytest.mark.parametrize('name, says', [('no/m.onnx', 'there is no folder'), ('.', 'is a folder'), ('m'*300 + '.onnx', 'File name too long')])
def test_bad_paths(made, tmp_path, name, says):
    with pytest.raises(ExportError, match=says): made['tabular'].export_onnx(tmp_path/name)
    assert os.listdir(tmp_path) == []

@pytest.mark.parametrize('name', ['onnx', 'onnxruntime', 'onnxscript'])
def test_missing_library(made, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExportError, match=f"not installed: {name}.*pip install 'fastai-bnfold\\[onnx\\]"): export(made['tabular'], tmp_path)

def test_a_fold_that_is_refused_is_said(made, tmp_path, monkeypatch):
    def no(*args, **kw): raise FoldError('would change')
    monkeypatch.setattr(deploy.BNFolder, 'fold', no)
    assert export(made['tabular'], tmp_path).folded == 'not folded: would change'

# ---------------------------------------------------------------- the report
def test_report(made, tmp_path):
    said = []
    r = export(made['vision'], tmp_path, timeit=True, say=said.append)
    assert {'Learner', 'ONNX Runtime'} == set(r.times.names)
    for o in ('takes', 'uint8 (batch, height, width, 3)', 'probabilities', 'BatchNorm', 'same answer', '100.00%', 'ratio'): assert o in repr(r)
    assert r._repr_html_().count('<tr>') == len(r.rows()) + 1
    assert [o.split()[0] for o in said] == ['folding', 'exporting', 'comparing', 'timing']

def test_metadata(made, tmp_path):
    export(made['vision'], tmp_path)
    about = OnnxModel(tmp_path/'m.onnx').about
    assert about['vocab'] == ['cat', 'dog'] and about['size'] == [32, 32] and set(about['versions']) == {'fastai_bnfold', 'fastai', 'torch'}
    assert str(Path(torch.__file__).parent).encode() not in (tmp_path/'m.onnx').read_bytes()

# ---------------------------------------------------------------- inputs of other kinds
class Tagged(nn.Module):
    "A picture's numbers and the number of a kind"
    def __init__(self): super().__init__(); self.kinds, self.lin = nn.Embedding(4, 3), nn.Linear(6, 2)
    def forward(self, x, kind): return self.lin(x) + self.kinds(kind).sum(1, keepdim=True)

def test_a_number_an_item(tmp_path):
    "A whole number for each item is no text"
    x = torch.randn(2, 6), torch.tensor([1, 3])
    graph = deploy.Deployed(deploy.TensorInputs([], x), Tagged().eval(), lambda o: o)
    there = deploy.best_export(graph, x, tmp_path/'m.onnx')
    assert [o[2] for o in there.inputs] == [['batch', 6], ['batch']]

def test_texts_of_one_length(tmp_path):
    x = torch.zeros(2, 5).long(),
    graph = deploy.Deployed(deploy.TensorInputs([], x), nn.Sequential(nn.Embedding(9, 1), nn.Flatten(), nn.Linear(5, 2)).eval(), lambda o: o)
    with pytest.raises(ExportError, match='texts of one length only'): deploy.best_export(graph, x, tmp_path/'m.onnx')

# ---------------------------------------------------------------- the program, to the pixel
def wide(path):
    "A picture that is neither square nor of the size of the others"
    PILImage.create(np.random.default_rng(3).integers(0, 255, (50, 71, 3), dtype=np.uint8)).save(path/'wide.png')
    return path/'wide.png'

@pytest.mark.parametrize('tfms', [Resize(32, method='pad'), Resize((24, 40), method='pad', pad_mode='zeros'), RandomResizedCrop(32, min_scale=.5),
    [Resize(40), CropPad(32)], CropPad((48, 40)), Resize(32, method='squish')], ids=['pad', 'zeros', 'random', 'chain', 'crop', 'squish'])
def test_the_program_sizes_as_predict_does(tmp_path, tfms):
    learn, file = picture_learner(tmp_path, item_tfms=tfms), wide(tmp_path)
    r = export(learn, mkdir(tmp_path/'out'))
    for f in (file, learn.dls.valid.items[0]):
        said = elsewhere(r.code(f), tmp_path/'out')
        assert np.allclose(json.loads(said.split(' ', 1)[1]), learn.predict(f)[2], atol=1e-6)

class Mirrored(Transform):
    order = 2
    def encodes(self, x:PILImage): return x.transpose(0)

class Darker(Transform):
    def __init__(self): self.seen = 0
    def encodes(self, x:PILImage): return PILImage.create(np.asarray(x)//2)

@pytest.mark.parametrize('own', [Mirrored, Darker])
def test_no_program_for_a_transform_of_ones_own(tmp_path, own):
    "The file is right; a program that would answer otherwise is not handed out"
    learn = picture_learner(tmp_path, item_tfms=[Resize(32), own()])
    r = export(learn, mkdir(tmp_path/'out'))
    assert r.max_rel_err < 1e-4 and (tmp_path/'out/m.onnx').exists()
    with pytest.raises(ExportError, match=f"no program for this file: the item transform `{own.__name__}` changes a picture.*file itself is verified"): r.code('x.png')

def test_a_program_that_is_wrong_is_noticed(made, tmp_path, monkeypatch):
    "It is run, not only written"
    import fastai_bnfold.program as program
    monkeypatch.setattr(program, '_CROP', program._CROP)
    monkeypatch.setitem(program._STEPS, 'crop', program._STEPS['crop'] + 'image = image.transpose(0)\n')
    with pytest.raises(ExportError, match='no program for this file: the item transform `Resize`'): export(made['vision'], tmp_path).code('x.png')

def test_a_program_that_answers_otherwise_is_noticed(made, tmp_path, monkeypatch):
    import fastai_bnfold.program as program
    monkeypatch.setattr(program, '_END', 'answer = session.run(None, feed)[0][0][::-1]\n')
    with pytest.raises(ExportError, match='it answers otherwise than the file'): export(made['vision'], tmp_path).code('x.png')

def test_a_row_without_a_column(made, tmp_path):
    with pytest.raises(ExportError, match="the row has no 'age'"): export(made['tabular'], tmp_path).code(table().iloc[3].drop('age'))

# ---------------------------------------------------------------- what cannot be had says so
@pytest.mark.parametrize('opset', [13, 99, 0])
def test_an_opset_that_cannot_be_had(made, tmp_path, opset):
    with pytest.raises(ExportError, match=f'opset={opset} cannot be had.*Give a whole number from 18 to'): export(made['vision'], tmp_path, opset=opset)
    assert os.listdir(tmp_path) == []

def test_an_opset_that_can_be_had(made, tmp_path):
    import onnx
    export(made['vision'], tmp_path, opset=21)
    assert [o.version for o in onnx.load(tmp_path/'m.onnx').opset_import if not o.domain] == [21]

def test_language_models(tmp_path):
    from fastai.text.all import AWD_LSTM, awd_lstm_lm_config, get_language_model
    seeded()
    ds = [(torch.randint(2, 20, (8,)), torch.randint(2, 20, (8,))) for _ in range(8)]
    config = {**awd_lstm_lm_config, 'emb_sz': 6, 'n_hid': 8, 'n_layers': 2}
    learn = quiet(Learner(DataLoaders.from_dsets(ds, ds, bs=2, device='cpu'), get_language_model(AWD_LSTM, 20, config=config), loss_func=CrossEntropyLossFlat()))
    with pytest.raises(ExportError, match='a language model .AWD_LSTM. cannot be exported.*the classifier can be'): export(learn, tmp_path)
    assert os.listdir(tmp_path) == []

@pytest.mark.parametrize('text', ['Found conflicts:\n\n  a and b', 'nothing follows:', ':', ''])
def test_no_message_ends_in_a_colon(text):
    assert not deploy.cause(ValueError(text), nn.Identity()).rstrip().endswith(':')

@pytest.mark.parametrize('args, says', [(dict(path='x.pt'), 'x.pt does not end in .onnx: call it x.onnx'), (dict(path='x.pkl'), 'learn.export'), (dict(path='x'), 'x does not end in .onnx: call it x.onnx$'), (dict(path='x.onx'), 'call it x.onnx$'),
    (dict(path=torch.zeros(2, 3)), r'the first argument is the file to write, got a tensor of shape \(2, 3\); data goes in dl='), (dict(batches=0), 'batches=0 compares nothing: give a whole number from 1 up'),
    (dict(dl=DataLoader([])), 'the DataLoader has no items: pass at least one'), (dict(dl=['a', 'b']), r'dl= takes a DataLoader, got a list of 2: pass `dl=learn.dls.test_dl\(items\)`'), (dict(int8=True, half=True), 'are two files'),
    (dict(int8=True, max_drop=-.1), 'max_drop=-0.1 is no number from 0 up'), (dict(int8=True, max_drop='1%'), "max_drop='1%'"), (dict(int8=True, calib=0), 'calib=0 calibrates on nothing'), (dict(int8=True, calib=[]), 'has no items'), (dict(int8=True, calib=.5), 'calib=0.5: give a number')])
def test_bad_requests(made, tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match=says): made['vision'].export_onnx(**args)
    assert os.listdir(tmp_path) == []

@pytest.mark.parametrize('args, says', [(dict(halff=True), "no option `halff`, and the model takes no such input: did you mean `half`"), (dict(int=8), "did you mean `int8`"), (dict(xyzzy=1), 'there are `path`, `fold`,')])
def test_options_that_there_are_not(made, tmp_path, args, says):
    with pytest.raises(FoldError, match=says): export(made['vision'], tmp_path, **args)
    assert os.listdir(tmp_path) == []

def test_options_of_the_fold_and_the_model(made):
    "Those are passed on"
    class Masked(nn.Module):
        def forward(self, x, mask=None): return x
    class Any(nn.Module):
        def forward(self, x, **kwargs): return x
    def check(model, **kwargs): check_kwargs(model, kwargs, Learner.export_onnx, BNFolder.fold)
    check(made['vision'].model, keep='0', collapse=True, check=False, scales=True, also=[])
    check(Masked(), mask=None)
    check(Any(), mask=None)
    with pytest.raises(FoldError, match='mask'): check(made['vision'].model, mask=None)

def test_help_has_the_parameters():
    for o in ('Parameters', 'batches : int\n    How many batches', 'dl : ', 'calib : ', 'Returns'): assert o in Learner.export_onnx.__doc__

def test_a_picture_that_is_not_there(made, tmp_path):
    with pytest.raises(ExportError, match='nope.png: no such file; pass a picture'): export(made['vision'], tmp_path).code('nope.png')

def test_how_many_items_is_said(made, tmp_path):
    learn, n = made['vision'], len(made['vision'].dls.valid_ds)
    r = export(learn, tmp_path, dl=learn.dls.valid.new(bs=3), batches=1)
    assert n > 3 and (r.items, r.total) == (3, n) and f'on the first 3 of {n} items,' in repr(r)
    assert f'on {n} items,' in repr(export(learn, tmp_path)) and 'note' not in dict(r.rows())
    assert 'on 1 item,' in repr(export(learn, tmp_path, dl=learn.dls.test_dl(learn.dls.valid.items[:1])))

def test_tolerances_are_the_users(made, tmp_path):
    with pytest.raises(ExportError, match='allowed 1e-12'): export(made['vision'], tmp_path, rtol=1e-12)
    assert os.listdir(tmp_path) == []
    assert export(made['vision'], tmp_path, rtol=1e-12, atol=1e-3).max_rel_err < 1e-4

# ---------------------------------------------------------------- 8 bits
def labelled(learn, f):
    "Accuracy on all validation data of the answers of `f`, by hand"
    right = n = 0
    for b in deploy.raw_batches(deploy.some_data(learn), 99):
        x, y = b if isinstance(b, tuple) else (None, None)
        right, n = right + int((f(x.permute(0, 2, 3, 1).contiguous()).argmax(1) == y).sum()), n + len(y)
    return right/n

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "A network that tells two kinds of pictures apart"
    learn = picture_learner(tmp_path_factory.mktemp('pictures'), metrics=[accuracy, error_rate])
    learn.fit_one_cycle(20, 1e-2)
    assert float(learn.validate()[1]) > .8
    return learn

def test_8_bits_are_measured(pictures, tmp_path):
    before = learner_state(pictures)
    r = export(pictures, tmp_path, int8=True, max_drop=1.)
    assert learner_state(pictures) == before and os.listdir(tmp_path) == ['m.onnx']
    m = r.reduced.measures
    assert list(m) == ['PyTorch', 'float32', 'int8'] and list(m['int8'].values) == ['valid_loss', 'accuracy', 'error_rate']
    assert [m['PyTorch'].values[k] for k in ('valid_loss', 'accuracy')] == [pytest.approx(float(o)) for o in pictures.validate()[:2]]
    assert m['float32'].values['valid_loss'] == pytest.approx(m['PyTorch'].values['valid_loss'], rel=1e-4)
    assert m['int8'].values['accuracy'] == pytest.approx(labelled(pictures, OnnxModel(tmp_path/'m.onnx')))
    assert m['int8'].values['valid_loss'] != m['PyTorch'].values['valid_loss']
    assert r.reduced.judged == 'accuracy' and r.reduced.drop == pytest.approx(m['PyTorch'].values['accuracy'] - m['int8'].values['accuracy'])
    assert r.size == (tmp_path/'m.onnx').stat().st_size and r.top1 == m['PyTorch'].agreement(m['int8'])
    for o in ('int8', 'by PyTorch', 'by float32', 'drop of accuracy', 'BatchNorm'): assert o in repr(r)

def test_weights_are_in_8_bits(pictures, tmp_path):
    import onnx
    export(pictures, tmp_path, int8=True, max_drop=1.)
    big = [o for o in onnx.load(tmp_path/'m.onnx').graph.initializer if len(o.dims) > 1 and np.prod(o.dims) > 16]
    assert big and {o.data_type for o in big} == {onnx.TensorProto.INT8}
    assert not [n for n in onnx.load(tmp_path/'m.onnx').graph.node if n.op_type == 'BatchNormalization']

def test_the_program_runs_the_8_bits(pictures, tmp_path):
    "The same lines as for the file in float32"
    plain, small = (export(pictures, mkdir(tmp_path/k), int8=v, max_drop=1.) for k, v in (('a', False), ('b', True)))
    f = pictures.dls.valid.items[0]
    assert plain.code(f) == small.code(f) and {k: v for k, v in plain.about.items()} == small.about
    there = OnnxModel(tmp_path/'b/m.onnx')
    x = deploy.raw_batches(pictures.dls.test_dl([f]), 1)[0][0].permute(0, 2, 3, 1).contiguous()
    assert np.allclose(json.loads(elsewhere(small.code(f), tmp_path/'b').split(' ', 1)[1]), there(x)[0], atol=1e-6)

def test_a_drop_that_is_not_allowed(pictures, tmp_path, monkeypatch):
    "A quantizer that makes a wrong file of all it is given: no file, and the figures"
    import fastai_bnfold.quantize as quantize
    right = quantize.write_int8
    def wrong(src, path, *args, **kw):
        import onnx
        right(src, path, *args, **kw)
        model = onnx.load(str(path))
        for o in model.graph.initializer:
            if list(o.dims) == [2, 8]: o.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(o), o.name))
        onnx.save(model, str(path))
    monkeypatch.setattr(quantize, 'write_int8', wrong)
    (tmp_path/'m.onnx').write_text('old')
    with pytest.raises(ExportError, match=r'int8 costs too much: accuracy .* by PyTorch, .* by float32, .* by int8 \(.*the best of \d+ settings\), a drop of .* where 0.01 is allowed. Allow it ..max_drop=.*calib=256') as e:
        export(pictures, tmp_path, int8=True)
    assert '\n' not in str(e.value) and os.listdir(tmp_path) == ['m.onnx'] and (tmp_path/'m.onnx').read_text() == 'old'

def test_settings_are_tried_in_order(pictures, tmp_path, monkeypatch):
    "Until one is good enough, and the report says which"
    import fastai_bnfold.quantize as quantize
    drops, seen = iter([.5, .4, .3, .2, .001]), []
    right = deploy._Judge.__call__
    def call(self, path):
        m, d = right(self, path), next(drops)
        self.seen[d] = self.seen[m]
        return d
    monkeypatch.setattr(deploy._Judge, '__call__', call)
    r = export(pictures, tmp_path, int8=True, say=seen.append)
    assert [o for o, _ in r.reduced.tried] == ['per channel, min-max', 'per channel, entropy', 'per channel, percentile', 'only layers with weights, percentile', r.reduced.how]
    assert r.reduced.how.startswith('1 of ') and len(r.reduced.left) == 1 and sum('8 bits' in o for o in seen) == 5

def test_calibrated_on_training_data(pictures, tmp_path, monkeypatch):
    "Never on what it is measured on"
    given = []
    right = deploy.Feeds
    monkeypatch.setattr(deploy, 'Feeds', lambda names, batches, bar=iter: given.extend(x for xs in batches for x in xs[0]) or right(names, batches, bar))
    export(pictures, tmp_path, int8=True, max_drop=1., calib=4)
    def of(dl): return [x for b in deploy.raw_batches(dl.new(shuffle=False, drop_last=False), 99) for x in b[0].permute(0, 2, 3, 1)]
    train, valid = (of(pictures.dls[i]) for i in (0, 1))
    assert len(given) == 4
    assert all(any(torch.equal(x, t) for t in train) and not any(torch.equal(x, v) for v in valid) for x in given)

@pytest.mark.parametrize('given, says', [(dict(int8=True, calib=1), 'calibrated and compared on 1 item, which says little about others. Give 64 or more'), (dict(int8=True, calib=2), 'calibrated on 2 items, compared on 1 item, which'),
    (dict(half=True), 'compared on 1 item, which')], ids=['one', 'two', 'half'])
def test_few_items_are_noted(pictures, tmp_path, given, says):
    r = export(pictures, tmp_path, max_drop=1., dl=pictures.dls.test_dl(pictures.dls.valid.items[:1]), **given)
    assert dict(r.rows())['note'].startswith(says)

def test_enough_items_are_not_noted(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, 'FEW', 2)
    r = export(pictures, tmp_path, max_drop=1., int8=True, calib=4)
    assert (r.reduced.calibrated, r.reduced.measured) == (4, len(pictures.dls.valid_ds)) and 'note' not in dict(r.rows())

def test_without_training_data(pictures, tmp_path):
    "A loaded export: it says so, and takes items or a DataLoader; without labels, answers are compared"
    pictures.export(tmp_path/'m.pkl')
    loaded, files, out = load_learner(tmp_path/'m.pkl'), list(pictures.dls.valid.items), mkdir(tmp_path/'out')
    dl = loaded.dls.test_dl(files)
    with pytest.raises(ExportError, match='calibrated on training data, and this Learner has none.*pass `calib=`'): export(loaded, out, int8=True, dl=dl)
    assert os.listdir(out) == []
    for calib in (list(pictures.dls.train.items), pictures.dls.train):
        r = export(loaded, out, int8=True, dl=dl, calib=calib, max_drop=1.)
        assert r.reduced.judged == 'same answer' and r.reduced.drop == pytest.approx(1-r.top1)

def test_batchnorms_that_stay_are_listed(pictures, tmp_path):
    r = export(pictures, tmp_path, int8=True, fold=False, max_drop=1.)
    assert r.kept == tuple(n for n, m in pictures.model.named_modules() if isinstance(m, nn.BatchNorm2d)) and len(r.kept) > 1
    assert r.kept[0] in repr(r) and 'BatchNorm left' in repr(r)

@pytest.mark.parametrize('kind', ['tabular', 'unet', 'text'])
@pytest.mark.parametrize('how', ['int8', 'half'])
def test_smaller_files_of_every_kind(made, kind, how, tmp_path):
    r = export(made[kind], tmp_path, max_drop=.3, **{how: True})
    assert r.reduced.kind == how and r.top1 > .9 and os.listdir(tmp_path) == ['m.onnx']
    assert r.reduced.how == ('float16, for devices that compute in it' if how == 'half' else 'dynamic' if kind == 'text' else 'per channel, min-max')

def test_half(pictures, tmp_path):
    plain, r = export(pictures, mkdir(tmp_path/'a')), export(pictures, mkdir(tmp_path/'b'), half=True)
    assert 1e-5 < r.max_rel_err < 2e-2 and r.allowed == 2e-2 and r.size < plain.size and r.inputs == plain.inputs and r.outputs == plain.outputs
    with pytest.raises(ExportError, match='allowed 1e-07'): export(pictures, tmp_path, half=True, rtol=1e-7, atol=0)

def test_nothing_to_quantize(tmp_path):
    seeded()
    ds = [(torch.randn(6), torch.randn(6)) for _ in range(12)]
    class Scale(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(6))
        def forward(self, x): return (x*self.w).relu()
    learn = quiet(Learner(DataLoaders.from_dsets(ds, ds, bs=4, device='cpu'), Scale(), loss_func=MSELossFlat()))
    with pytest.raises(ExportError, match='nothing to quantize: the model has no convolution, linear layer or LSTM'): export(learn, tmp_path, int8=True)
    assert os.listdir(tmp_path) == []

def test_without_metrics_the_loss_decides(tmp_path):
    learn = picture_learner(tmp_path, RegressionBlock, lambda f: 2.5*(parent_label(f) == 'dog'), n_out=1, loss_func=MSELossFlat())
    r = export(learn, mkdir(tmp_path/'out'), int8=True, max_drop=10.)
    a, b = (r.reduced.measures[k].values['valid_loss'] for k in ('PyTorch', 'int8'))
    assert r.reduced.judged == 'valid_loss' and r.reduced.drop == pytest.approx((b-a)/a)

@pytest.mark.parametrize('error', [KeyboardInterrupt(), MemoryError()])
def test_a_fault_while_quantizing(pictures, tmp_path, monkeypatch, error):
    import fastai_bnfold.quantize as quantize
    def fails(src, path, *args, **kw): Path(path).write_bytes(b'half'); raise error
    monkeypatch.setattr(quantize, 'write_int8', fails)
    before = learner_state(pictures)
    with pytest.raises(type(error)): export(pictures, tmp_path, int8=True)
    assert os.listdir(tmp_path) == [] and learner_state(pictures) == before
