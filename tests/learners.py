"""Small Learners of the four kinds, each trained for an epoch on data made here, with real BatchNorm statistics.
Only classes of fastai and torch are in them, so that an export loads where nothing else is installed."""
import random, warnings
import numpy as np, pandas as pd, torch
from fastai.vision.all import *
from fastai.tabular.all import *
from fastai.text.all import *
from models import bits, bn_layers, changed, leaves, random_gamma, rel_err, snapshot

words = "a good film with fine actors and one bad plot that nobody saw twice while the rain fell on every roof of town".split()

def seeded(seed=0):
    "Seed Python, numpy and torch"
    random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)

def rng(seed=0): return np.random.default_rng(seed)

# ---------------------------------------------------------------- data
def images(path, n=12, sz=32):
    "`n` small pictures of two kinds, in a folder of `path` each; returns their paths"
    r, out = rng(), []
    for i in range(n):
        a = r.integers(0, 120, (sz, sz, 3), dtype=np.uint8)
        a[: sz//2 if i % 2 else sz, ::3] += 100
        out.append(path/('dog' if i % 2 else 'cat')/f'{i}.png')
        out[-1].parent.mkdir(parents=True, exist_ok=True)
        PILImage.create(a).save(out[-1])
    return out

def table(n=60):
    "A table with two categories, three numbers with holes, and a class"
    r = rng()
    df = pd.DataFrame(dict(job=r.choice(['cook', 'clerk', 'pilot'], n), town=r.choice(['Rome', 'Oslo'], n),
                           age=r.normal(40, 12, n), pay=r.normal(3, 1, n), size=r.normal(0, 30, n)))
    df['class'] = np.where(df.age/40 + df.pay/3 + r.normal(0, .3, n) > 2, 'high', 'low')
    df.loc[::9, 'pay'] = np.nan
    return df

def texts(n=24):
    "Sentences of `words`, each with a class"
    r = rng()
    rows = [' '.join(r.choice(words, r.integers(4, 12))) for _ in range(n)]
    return pd.DataFrame(dict(text=rows, label=['good' if 'good' in o or i % 2 else 'bad' for i, o in enumerate(rows)]))

# ---------------------------------------------------------------- the four kinds
def small_body(pretrained=False):
    "A residual network of the shape that fastai cuts a body from"
    return XResNet(ResBlock, 1, [1, 1], stem_szs=(8, 8, 64), widen=.25, n_out=2)

def vision(path, **kw):
    "A residual body and fastai's own head"
    dls = ImageDataLoaders.from_path_func(path, images(path/'pics'), parent_label, valid_pct=.34, seed=1, bs=4, num_workers=0, item_tfms=Resize(32))
    model = create_vision_model(small_body, dls.c, pretrained=False, cut=-4)
    return Learner(dls, model, splitter=default_split, path=path, **{**dict(metrics=accuracy), **kw})

def tabular(path, **kw):
    "Embeddings beside a BatchNorm on the numbers, then two layers"
    df = table()
    dls = TabularDataLoaders.from_df(df, path, procs=[Categorify, FillMissing, Normalize], cat_names=['job', 'town'], cont_names=['age', 'pay', 'size'],
                                     y_names='class', valid_idx=list(range(40, 60)), bs=8, val_bs=32, num_workers=0)
    return tabular_learner(dls, layers=[16, 8], path=path, **{**dict(metrics=accuracy), **kw})

def text(path, **kw):
    "A small AWD-LSTM with fastai's pooling classifier"
    tok = Tokenizer.from_df('text', tok=BaseTokenizer(), n_workers=1)
    block = DataBlock((TextBlock(tok, seq_len=8, min_freq=1), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'), splitter=IndexSplitter(list(range(16, 24))))
    dls = block.dataloaders(texts(), bs=4, num_workers=0)
    config = {**awd_lstm_clas_config, 'emb_sz': 12, 'n_hid': 12, 'n_layers': 2}
    return text_classifier_learner(dls, AWD_LSTM, config=config, pretrained=False, seq_len=8, max_len=16, path=path, **{**dict(metrics=accuracy), **kw})

def unet(path, **kw):
    "A U-Net on a residual body, to tell light from dark: its hooks see the values between the layers"
    block = DataBlock((ImageBlock, MaskBlock(['dark', 'light'])), splitter=RandomSplitter(.5, seed=1), item_tfms=Resize(32), batch_tfms=IntToFloatTensor(div_mask=120))
    dls = block.dataloaders(images(path/'pics', 8), path=path, bs=2, num_workers=0)
    body = create_body(small_body(), n_in=3, pretrained=False, cut=-4)
    model = DynamicUnet(body, 2, (32, 32), norm_type=NormType.Batch)
    return Learner(dls, model, splitter=default_split, path=path, loss_func=CrossEntropyLossFlat(axis=1), **{**dict(metrics=foreground_acc), **kw})

kinds = dict(vision=vision, tabular=tabular, text=text, unet=unet)

# ---------------------------------------------------------------- a trained one
@torch.no_grad()
def odd_scales(model, seed=0):
    "Scales of both signs and zeros, and shifts, for every BatchNorm"
    g = torch.Generator().manual_seed(seed)
    for m in bn_layers(model).values():
        if m.weight is None: continue
        m.weight.copy_(random_gamma(len(m.weight), g, like=m.weight))
        m.bias.copy_(torch.rand(len(m.bias), generator=g)-.5)
    return model

def quiet(learn):
    "No progress bar and no table of losses"
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

def trained(kind, path, epochs=1, **kw):
    "A Learner of `kind` after `epochs`, its data under `path`"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        seeded()
        learn = quiet(kinds[kind](Path(path), **kw))
        odd_scales(learn.model)
        seeded(1)
        learn.fit(epochs, 1e-3)
    return learn

def item(learn, kind):
    "Something to `predict`"
    return dict(vision=lambda: learn.dls.valid.items[0], tabular=lambda: table().iloc[3], text=lambda: texts().text[3], unet=lambda: learn.dls.valid.items[0])[kind]()

def outputs(learn):
    "The model's raw outputs on the validation data"
    return learn.get_preds(act=noop)[0]

# ---------------------------------------------------------------- a Learner's state, bit for bit
def opt_bits(opt):
    "Every number the optimizer keeps"
    if opt is None: return None
    ps = [[(id(p), bits(p), {k: bits(v) for k, v in opt.state[p].items()}) for p in pg] for pg in opt.param_lists]
    return id(opt), ps, repr(opt.hypers)

def kept_tensors(model):
    "Tensors that modules keep beside parameters and buffers: hidden states, activations of hooks"
    plain = lambda m: {k: v for k, v in vars(m).items() if not k.startswith('_')}
    return [(n, k, [bits(t) for t in leaves(v)]) for n, m in model.named_modules() for k, v in plain(m).items() if isinstance(v, (Tensor, list, tuple))]

def learner_state(learn):
    "All of a Learner that a refused fold must leave alone"
    r = np.random.get_state()
    loads = [(id(o), o.rng.getstate(), o.bs) for o in learn.dls.loaders if hasattr(o, 'rng')]
    cbs = [(id(o), {k: repr(v) for k, v in vars(o).items() if k != 'learn'}) for o in learn.cbs]
    return {**snapshot(learn.model), 'kept': kept_tensors(learn.model), 'opt': opt_bits(learn.opt), 'cbs': cbs, 'names': sorted(vars(learn)), 'loads': loads,
            'python': random.getstate(), 'numpy': (r[1].tobytes(), *r[2:]), 'model': id(learn.model), 'grads': [bits(p.grad) for p in learn.model.parameters()],
            'record': repr(getattr(learn, 'final_record', None)), 'progress': (learn.epoch, learn.train_iter) if hasattr(learn, 'epoch') else None}

def losses(learn): return [float(o) for o in learn.recorder.losses]
