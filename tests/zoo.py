"""The models people use, with calibrated statistics: fastai's own, torchvision's, one timm model a family. For each: layers,
folded, kept with reasons, largest relative error on a fresh batch in float64, time to fold; and the same for `torch.fx`'s
`fuse` and fasterai's `BN_Folder`. Larger sets (all of timm, and libraries that are installed here) are measured without those. `make zoo` writes nbs/data/zoo_*.json, which nbs/zoo.ipynb shows; `python tests/zoo.py --set fastai --only resnet18` prints a row.
Rows that are in the file already are not measured again: what was stopped goes on where it was."""
import argparse
import collections
import gc
import hashlib
import json
import os
import random
import sys
import time
import warnings
from collections import namedtuple
from importlib.util import find_spec

import torch
import torch.fx
from torch import nn

from fastai_bnfold.bench import machine
from fastai_bnfold.looks import Batch, resized
from models import TOL, bn_layers, calibrate, engine, fasterai_fold, fx_fuse, randomize_bn, rel_err, run, tree_map

Entry = namedtuple('Entry', 'name build batch')  # batch(n, seed) -> positional inputs for n items


# ---------------------------------------------------------------- batches
def gen(seed): return torch.Generator().manual_seed(seed)
def noise(*shape, seed=0): return torch.randn(shape, generator=gen(seed), dtype=torch.float64)
def images(size, c=3): return lambda n, seed: [noise(n, c, size, size, seed=seed)]
def clips(t, size): return lambda n, seed: [noise(n, 3, t, size, size, seed=seed)]
def image_list(size): return lambda n, seed: [[noise(3, size, size + 8 * i, seed=seed + i).sigmoid() for i in range(n)]]
def tokens(length, vocab): return lambda n, seed: [torch.randint(1, vocab, (n, length), generator=gen(seed))]
def rows(n_cat, n_cont): return lambda n, seed: [torch.randint(0, 3, (n, n_cat), generator=gen(seed)), noise(n, n_cont, seed=seed)]


# ---------------------------------------------------------------- fastai: 19 models, 645 layers
def _vision(arch, **kw):
    def build():
        import torchvision.models as tv
        from fastai.vision import all as fv
        return fv.create_vision_model(getattr(fv, arch, None) or getattr(tv, arch), 10, pretrained=False, **kw)
    return build


def _own(arch):
    def build():
        from fastai.vision import all as fv
        return getattr(fv, arch)(n_out=10)
    return build


def _unet(arch):
    def build():
        from fastai.vision import all as fv
        model = fv.create_unet_model(getattr(fv, arch), 2, (64, 64), pretrained=False)
        model.layers = model.layers[:-1]  # ToTensorBase would round float64 to float32
        return model
    return build


def _tabular(lin_first, bn_cont):
    def build():
        from fastai.tabular.all import TabularModel
        return TabularModel([(10, 4), (7, 3)], 5, 2, [200, 100], ps=0.1, lin_first=lin_first, bn_cont=bn_cont)
    return build


def _text():
    from fastai.text.all import AWD_LSTM, awd_lstm_clas_config, get_text_classifier
    return get_text_classifier(AWD_LSTM, 100, 2, seq_len=8, max_len=64, config=dict(awd_lstm_clas_config, n_hid=32, emb_sz=16, n_layers=2))


def fastai_models():
    "19 fastai models"
    for a in ('resnet18', 'resnet34', 'resnet50', 'vgg16_bn', 'alexnet', 'squeezenet1_1', 'densenet121', 'xresnext50', 'efficientnet_b0', 'mobilenet_v3_small'):
        yield Entry(f'vision_learner {a}', _vision(a), images(64))
    for a in ('xresnet50', 'xse_resnext50'): yield Entry(a, _own(a), images(64))
    for a in ('resnet18', 'resnet34', 'resnet50'): yield Entry(f'unet_learner {a}', _unet(a), images(64))
    for lf, bc in ((True, True), (True, False), (False, True)):
        yield Entry(f'tabular lin_first={lf} bn_cont={bc}', _tabular(lf, bc), rows(2, 5))
    yield Entry('text_classifier AWD_LSTM', _text, tokens(24, 100))


# ---------------------------------------------------------------- torchvision
SIZES = dict(inception_v3=96, maxvit_t=224)
BIG = {'regnet_y_128gf'}  # 5 GB of weights in float64, three times: only with --big


def _tv(name, **kw):
    def build():
        from torchvision import models
        if name == 'inception_v3' or name == 'googlenet': return models.get_model(name, weights=None, num_classes=10, init_weights=False)
        return models.get_model(name, weights=None, **kw)
    return build


def frozen(model):
    "Every BatchNorm2d as torchvision's frozen one, as its detectors with trained bodies have them"
    from torchvision.ops import FrozenBatchNorm2d
    for p in list(model.modules()):
        for n, m in list(p._modules.items()):
            if type(m) is nn.BatchNorm2d: p._modules[n] = FrozenBatchNorm2d(m.num_features, m.eps)
    return model


def telling(model):
    "A detector that keeps boxes of any score, so that there is something to compare, but only a few: masks and keypoints take long"
    for m in model.modules():
        if hasattr(m, 'score_thresh'): m.score_thresh = 0.
        if hasattr(m, 'detections_per_img'): m.detections_per_img = 5
    return model


def has_bn(build):
    "Whether the model has BatchNorm, without its memory"
    with torch.device('meta'): return bool(bn_layers(build()))


def _of(module, **kw):
    from torchvision import models
    for name in models.list_models(module=module):
        b = _tv(name, **kw)
        try: yes = has_bn(b)
        except Exception: yes = True
        if yes: yield name, b


def torchvision_models():
    "Every torchvision model with BatchNorm: classification, segmentation, detection (frozen), video"
    from torchvision import models as m
    for name, b in _of(m): yield Entry(name, b, images(SIZES.get(name, 64)))
    for name, b in _of(m.segmentation, weights_backbone=None): yield Entry(f'segmentation {name}', b, images(64))
    for name, b in _of(m.detection, weights_backbone=None):
        if name.startswith('ssd'): yield Entry(f'detection {name}', lambda b=b: telling(b()), image_list(96))
        else: yield Entry(f'detection {name}', lambda n=name: telling(frozen(_tv(n, weights_backbone=None, min_size=96, max_size=160)())), image_list(96))
    for name, b in _of(m.video): yield Entry(f'video {name}', b, clips(16, 224) if name == 's3d' else clips(8, 48))


# ---------------------------------------------------------------- timm: the smallest model with BatchNorm of a family
TIMM = dict(  # family=(model, input size)
    byoanet=('halonet_h1', 256), byobnet=('mobileone_s1', 64), convmixer=('convmixer_768_32', 64), cpubone=('cpubone_nano', 64),
    cspnet=('cs3darknet_focus_s', 64), cspnext=('cspnext_tiny', 64), densenet=('densenet121', 64), dla=('dla46x_c', 64),
    dpn=('dpn48b', 64), efficientformer=('efficientformer_l1', 224), efficientformer_v2=('efficientformerv2_s0', 224),
    efficientnet=('mobilenetv2_035', 64), efficientvim=('efficientvim_m1', 64), efficientvit_mit=('efficientvit_b0', 64),
    efficientvit_msra=('efficientvit_m0', 224), fasternet=('fasternet_t0', 64), fastvit=('fastvit_t8', 64), ghostnet=('ghostnet_050', 64),
    hardcorenas=('hardcorenas_b', 64), hgnet=('hgnetv2_b0', 64), hrnet=('hrnet_w18_small', 64), iformer=('iformer_t', 64),
    inception_next=('inception_next_atto', 64), inception_resnet_v2=('inception_resnet_v2', 96), inception_v3=('inception_v3', 96),
    inception_v4=('inception_v4', 96), lcnetv2=('lcnetv2_small', 64), levit=('levit_128s', 224), lowformer=('lowformer_b0', 64),
    mobilenetv3=('mobilenetv3_small_050', 64), mobilevit=('mobilevit_xxs', 64), nasnet=('nasnetalarge', 64), nextvit=('nextvit_small', 64),
    pnasnet=('pnasnet5large', 64), regnet=('regnetx_002', 64), repghost=('repghostnet_050', 64), repvit=('repvit_m1', 64),
    res2net=('res2next50', 64), resnest=('resnest14d', 64), resnet=('resnet10t', 64), resnetv2=('resnetv2_18', 64),
    rexnet=('rexnet_100', 64), selecsls=('selecsls42', 64), senet=('legacy_seresnet18', 64), shvit=('shvit_s1', 64),
    sknet=('skresnet18', 64), starnet=('starnet_s050', 64), swiftformer=('swiftformer_xs', 224), tiny_vit=('tiny_vit_5m_224', 64),
    tresnet=('tresnet_m', 64), vgg=('vgg11_bn', 64), visformer=('visformer_tiny', 224),
    vision_transformer_hybrid=('vit_small_resnet50d_s16_224', 224), volo=('volo_d1_224', 224), vovnet=('ese_vovnet19b_slim_dw', 64),
    xception=('legacy_xception', 64), xception_aligned=('xception41p', 64), xcit=('xcit_nano_12_p8_224', 224))


def _timm(name):
    def build():
        import timm
        return timm.create_model(name, pretrained=False)
    return build


def timm_models():
    "One timm model a family"
    for family, (name, size) in TIMM.items(): yield Entry(f'{family}: {name}', _timm(name), images(size))


LIBRARIES = dict(smp='segmentation_models_pytorch', tsai='tsai', transformers='transformers', ultralytics='ultralytics')  # sets of libraries that `make setup` does not install
MOST = 60_000_000  # parameters: in float64, with copies, larger models take a small machine too long
large = []  # names left out for that, or because they take only images of 384 pixels and more


def timm_all():
    "Every timm model with BatchNorm that is not too large; those of one input size in that, the others at 64 pixels"
    import timm
    for family in timm.list_modules():
        for name in timm.list_models(module=family):
            with torch.device('meta'): model = _timm(name)()
            if not bn_layers(model): continue
            cfg = model.pretrained_cfg
            size = cfg['input_size'][-1] if cfg.get('fixed_input_size') else dict(TIMM.values()).get(name, TIMM.get(family, ('', 64))[1])
            if sum(p.numel() for p in model.parameters()) > MOST or size >= 384: large.append(name)
            else: yield Entry(f'{family}: {name}', _timm(name), images(size, cfg['input_size'][0]))


# ---------------------------------------------------------------- libraries that fastai users know
def _smp(arch, encoder):
    def build():
        import segmentation_models_pytorch as smp
        return smp.create_model(arch, encoder_name=encoder, encoder_weights=None, classes=3)
    return build


def smp_models():
    "segmentation_models_pytorch: each of its architectures, on three bodies"
    import segmentation_models_pytorch as smp
    for arch in sorted(smp.MODEL_ARCHITECTURES_MAPPING):
        for encoder in ('resnet18', 'mobilenet_v2', 'mit_b0'):
            if built_with_bn(b := _smp(arch, encoder)): yield Entry(f'{arch} {encoder}', b, images(128))


TSAI = """FCN FCNPlus ConvTran ConvTranPlus GRU_FCN GRU_FCNPlus HydraPlus HydraMultiRocketPlus InceptionTime InceptionTimePlus LSTM_FCN
    LSTM_FCNPlus MLSTM_FCN MRNN_FCN MiniRocketPlus MultiRocketPlus OmniScaleCNN PatchTST ResCNN ResNet ResNetPlus RNN_FCN RNN_FCNPlus TCN
    TSiTPlus TSSequencerPlus TST TSTPlus TransformerModel XCM XCMPlus XceptionTime XceptionTimePlus XResNet1dPlus gMLP mWDN mWDNPlus
    xresnet1d18 xresnet1d34 xresnet1d50_deep xresnet1d18_deeper xresnet1d34_deep xresnet1d50 xresnet1d101""".split()


def _tsai(name):
    def build():
        from tsai.models import all as models
        from tsai.models.utils import build_ts_model
        if name == 'PatchTST': return models.PatchTST(3, None, 64, pred_dim=8)
        return build_ts_model(getattr(models, name), 3, 4, 64, verbose=False)
    return build


def tsai_models():
    "tsai: models of time series; three channels, 64 steps"
    for name in TSAI:
        if built_with_bn(b := _tsai(name)): yield Entry(name, b, lambda n, seed: [noise(n, 3, 64, seed=seed)])


TRANSFORMERS = dict(  # class of its configuration = (class of the model, input size)
    ResNetConfig=('ResNetForImageClassification', 64), RegNetConfig=('RegNetForImageClassification', 64),
    MobileNetV1Config=('MobileNetV1ForImageClassification', 64), MobileNetV2Config=('MobileNetV2ForImageClassification', 64),
    EfficientNetConfig=('EfficientNetForImageClassification', 64), LevitConfig=('LevitForImageClassification', 224),
    MobileViTConfig=('MobileViTForImageClassification', 64), MobileViTV2Config=('MobileViTV2ForImageClassification', 64),
    SwiftFormerConfig=('SwiftFormerForImageClassification', 64), SegformerConfig=('SegformerForSemanticSegmentation', 64),
    UperNetConfig=('UperNetForSemanticSegmentation', 64), DetrConfig=('DetrForObjectDetection', 64),
    ConditionalDetrConfig=('ConditionalDetrForObjectDetection', 64), RTDetrConfig=('RTDetrForObjectDetection', 128),
    DFineConfig=('DFineForObjectDetection', 128), HGNetV2Config=('HGNetV2ForImageClassification', 64),
    TextNetConfig=('TextNetForImageClassification', 64), VitMatteConfig=('VitMatteForImageMatting', 64), CvtConfig=('CvtForImageClassification', 64))


def _transformers(config, model):
    def build():
        import transformers
        return getattr(transformers, model)._from_config(getattr(transformers, config)())
    return build


def transformers_models():
    "transformers: models of images with BatchNorm, each as its configuration stands by default"
    for config, (model, size) in TRANSFORMERS.items():
        if built_with_bn(b := _transformers(config, model)): yield Entry(model, b, images(size, 4 if 'Matte' in model else 3))


ULTRALYTICS = dict(  # class of the model = configurations
    DetectionModel="""yolov3-tiny yolov3 yolov5n yolov6n yolov8n yolov8n-ghost yolov8n-p2 yolov9t yolov9c yolov10n yolo11n
        yolo12n yolo26n""",
    SegmentationModel='yolov8n-seg yolo11n-seg', PoseModel='yolov8n-pose yolo11n-pose', OBBModel='yolov8n-obb yolo11n-obb',
    ClassificationModel='yolov8n-cls yolo11n-cls', WorldModel='yolov8s-world', RTDETRDetectionModel='rtdetr-l')


def _ultralytics(kind, name):
    def build():
        os.environ.update(YOLO_OFFLINE='True', YOLO_VERBOSE='False')
        from ultralytics.nn import tasks
        return getattr(tasks, kind)(f'{name}.yaml', verbose=False)
    return build


def ultralytics_models():
    "ultralytics: detection of every generation, and one of each other task"
    for kind, names in ULTRALYTICS.items():
        for name in names.split():
            if built_with_bn(b := _ultralytics(kind, name)): yield Entry(f'{kind} {name}', b, images(128))


def built_with_bn(build):
    "Whether the model can be built here, and has BatchNorm"
    try: return bool(bn_layers(build()))
    except Exception as e: print('not built:', type(e).__name__, str(e).split('\n')[0][:150]); return False


SETS = dict(fastai=fastai_models, torchvision=torchvision_models, timm=timm_models, timm_all=timm_all, smp=smp_models, tsai=tsai_models,
    transformers=transformers_models, ultralytics=ultralytics_models)


# ---------------------------------------------------------------- measuring
def prepared(e, seed=0):
    "The model with calibrated statistics in float64, a batch, a fresh batch of more items"
    torch.manual_seed(seed)
    model = e.build().double().eval()
    randomize_bn(model, seed, zero=0.)
    calibrate(model, e.batch(8, seed + 1), seed)
    return model, e.batch(2, seed + 2), e.batch(3, seed + 3)


def digest(t): return hashlib.sha1(t.detach().contiguous().numpy().tobytes()).hexdigest()


def larger(model, fresh):
    "A fresh batch with longer axes, where the model takes one"
    sizes = {n for t in fresh if isinstance(t, torch.Tensor) and t.is_floating_point() for n in t.shape[2:] if n >= 16}
    other = list(resized(Batch(tuple(fresh)), lengths={n: n + n // 2 for n in sizes}).args)
    try: ref = run(model, other)
    except Exception: return None
    return (other, ref) if unsteady(model, other, ref) < TOL / 1e3 else None  # there, rounding alone makes another answer


def ours(model, xb, fresh, ref):
    "Fold with the library: counts, kinds and reasons of what is kept, errors on a fresh batch and one of another size, time, and whether undo is exact"
    other = larger(model, fresh)
    BNFolder, _ = engine()
    state = {k: digest(v) for k, v in model.state_dict().items()}
    folder, t = BNFolder(model), time.perf_counter()
    rep = folder.fold(*xb)
    secs = time.perf_counter() - t
    err = rel_err(ref, run(model, fresh))
    if other: err = max(err, rel_err(other[1], run(model, other[0])))
    left = len(bn_layers(model))
    folder.unfold()
    undone = state == {k: digest(v) for k, v in model.state_dict().items()}
    kept = {x.bn: x.reason for x in rep.plan if x.reason is not None}
    kinds = collections.Counter(x.kind for x in rep.plan if x.reason is not None)
    return dict(left=left, err=err, seconds=secs, kept=kept, kinds=kinds, seen=len(rep.plan), sizes=2 if other else 1, undone=undone,
        params=[rep.params_before, rep.params_after])


def still_there(out, model):
    "BatchNorm layers left in what a tool returned: in a graph also those it has taken apart into their sums"
    if not isinstance(out, torch.fx.GraphModule): return len(bn_layers(out))
    layers = bn_layers(model)
    names = {n for n, m in model.named_modules(remove_duplicate=False) if any(m is b for b in layers.values())}
    targets = [str(n.target) for n in out.graph.nodes if n.op in ('call_module', 'get_attr')]
    return len({model.get_submodule(n) for n in names if any(t == n or t.startswith(n + '.') for t in targets)})


def theirs(tool, model, fresh, ref):
    t = time.perf_counter()
    out = tool(model)
    secs = time.perf_counter() - t
    return dict(left=still_there(out, model), err=rel_err(ref, run(out, fresh)), seconds=secs)


def unsteady(model, fresh, ref):
    "How far the unfolded model's own output moves when its input moves by a unit in the last place"
    def up(t): return torch.nextafter(t, torch.full_like(t, float('inf'))) if t.is_floating_point() else t
    return rel_err(ref, run(model, tree_map(up, list(fresh))))


def attempt(n, noise, f, *args):
    "The row of one tool; an exception is a failure that leaves all `n` layers. Wrong is what neither rounding nor the model's own unsteadiness explains"
    try: d = f(*args)
    except Exception as e: return dict(left=n, fails=f'{type(e).__name__}: {e}'.split('\n')[0][:200])
    d['wrong'] = not d['err'] <= max(TOL, 1e3 * noise)
    return d


def measure(e, peers=True):
    "One JSON row"
    model, xb, fresh = prepared(e)
    ref, n = run(model, fresh), len(bn_layers(model))
    noise = unsteady(model, fresh, ref)
    row = dict(name=e.name, layers=n, noise=noise, ours=attempt(n, noise, ours, model, xb, fresh, ref))
    if peers:
        row['fx'] = attempt(n, noise, theirs, fx_fuse, model, fresh, ref)
        gc.collect()
        row['fasterai'] = attempt(n, noise, theirs, fasterai_fold, model, fresh, ref)
    gc.collect()
    return row


def line(r):
    "One row as text"
    def tool(d): return 'fails' if 'fails' in d else 'WRONG' if d['wrong'] else str(d['left'])
    o = r['ours']
    more = o.get('fails', '') or f"err {o['err']:.1e}  {o['seconds']:.2f} s"
    return f"{r['name']:48.48} {r['layers']:4d} layers, left: ours {tool(o):>5}  fx {tool(r['fx']) if 'fx' in r else '-':>5}  fasterai {tool(r['fasterai']) if 'fasterai' in r else '-':>5}   {more}"


def totals(rows):
    "The sums of a set, in one line"
    def of(k):
        d = [r[k] for r in rows if k in r]
        return f"{k} left {sum(x['left'] for x in d)}, {sum('fails' in x for x in d)} fail, {sum(x.get('wrong', False) for x in d)} wrong"
    return f"{len(rows)} models, {sum(r['layers'] for r in rows)} layers: " + '; '.join(of(k) for k in ('ours', 'fx', 'fasterai'))


def obstacles(rows):
    "Kept layers by reason, names of layers taken out"
    import re
    c = collections.Counter(re.sub(r'`[^`]*`', '`...`', k) for r in rows for k in r['ours'].get('kept', {}).values())
    return '\n'.join(f'{n:5d}  {k}' for k, n in c.most_common(25))


def save(out, done):
    "Write the rows, a line each, and the machine; the whole file or nothing"
    rows = ',\n'.join(json.dumps(r) for r in done)
    with open(out + '.part', 'w') as f: f.write(f'{{"machine": {json.dumps(machine())},\n"large": {json.dumps(large)},\n"rows": [\n{rows}\n]}}\n')
    os.replace(out + '.part', out)


def drawn(entries, n): return random.Random(0).sample(entries, min(n, len(entries)))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--set', choices=list(SETS), default='fastai')
    p.add_argument('--out', help='JSON file of rows; rows that are there are not measured again')
    p.add_argument('--only', help='models whose name holds this')
    p.add_argument('--ours', action='store_true', help='no peers')
    p.add_argument('--draw', type=int, help='only so many models of the set, drawn at random, always the same ones')
    p.add_argument('--big', action='store_true', help='also models of many gigabytes')
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    warnings.filterwarnings('ignore')
    if a.set in LIBRARIES and find_spec(LIBRARIES[a.set]) is None:
        return print(f'{a.set}: not installed, left out (pip install --no-deps {LIBRARIES[a.set]}, and what it then asks for)')
    done = json.load(open(a.out))['rows'] if a.out and os.path.exists(a.out) else []
    entries = SETS[a.set]()
    if a.draw: entries = drawn(list(entries), a.draw)
    for e in entries:
        if any(r['name'] == e.name for r in done) or (a.only and a.only not in e.name) or (e.name in BIG and not a.big): continue
        try: done.append(measure(e, not a.ours))
        except Exception as err:  # before anything is folded: a model that does not run in float64, or not on such a batch
            print(f'{e.name}: left out, it does not run ({type(err).__name__}: {err})'.split('\n')[0][:200], flush=True)
            continue
        print(line(done[-1]), flush=True)
        if a.out: save(a.out, done)
    if a.out and done: save(a.out, done)
    print(obstacles(done))
    print(totals(done))
    sys.exit(any('fails' in r['ours'] or r['ours']['wrong'] or not r['ours']['undone'] for r in done))


if __name__ == '__main__': main()
