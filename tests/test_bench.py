"What the lesson in nbs/19_bench.ipynb does not show: coverage, faults, a machine without fastai"
import copy, json, os, random, shutil, subprocess, sys
from pathlib import Path
from collections import namedtuple

import pytest, torch
from torch import nn
import benchmarks
from learners import trained
from fastai_bnfold import bench as B
from fastai_bnfold.bench import Timings, bench, machine, paired_ratio
from fastai_bnfold.variants import stir_bn, variants, without_bn
from fastai_bnfold import engines as E
from fastai_bnfold.fold import BNFolder
from fastai_bnfold.plan import FoldError
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, accuracy, load_learner


def net():
    return stir_bn(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout()))


def test_interval_holds_the_true_ratio():
    "19 of 20 intervals hold the ratio that the times were made with, tails and drift notwithstanding"
    g, hits = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        drift = 1 + torch.rand(1, generator=g) + torch.linspace(0, .5, 40)
        a, b = (drift*k*(1 + .02*torch.randn(40, generator=g).abs()**2) for k in (.95, 1.))
        _, lo, hi = paired_ratio(a.tolist(), b.tolist(), draws=400)
        hits += lo <= .95 <= hi
    assert .90 <= hits/300 <= .99


def test_interval_misses_a_wrong_ratio():
    g = torch.Generator().manual_seed(0)
    a, b = (k*(1 + .01*torch.randn(50, generator=g)) for k in (.95, 1.))
    _, lo, hi = paired_ratio(a.tolist(), b.tolist())
    assert hi < .97 and lo > .93


def test_many_rounds_fit_in_memory():
    xs = torch.rand(9000).add(1).tolist()
    assert paired_ratio(xs, xs) == (1., 1., 1.)


@pytest.mark.parametrize('fault', [ValueError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize('at', [1, 3, 7])
def test_a_fault_leaves_everything_as_it_was(fault, at):
    m, calls, threads = net(), [], torch.get_num_threads()
    m[1].eval()
    modes = [o.training for o in m.modules()]

    def f(x):
        calls.append(m.training)
        if len(calls) == at: raise fault('stop')

    with pytest.raises((fault, RuntimeError)): bench(dict(m=m, f=f), torch.randn(1, 3, 8, 8), n=5, warmup=2, threads=2 if threads == 1 else 1)
    assert calls == [False]*at
    assert [o.training for o in m.modules()] == modes
    assert torch.get_num_threads() == threads and torch.is_grad_enabled() and B.gc.isenabled()


def test_random_state_is_left_alone():
    models, x = dict(m=net(), n=net()), torch.randn(1, 3, 8, 8)
    before, state = random.getstate(), torch.get_rng_state()
    repr(bench(models, x, n=8))
    variants(models['m'].eval(), x, kinds=['no BatchNorm'])
    assert random.getstate() == before and torch.equal(torch.get_rng_state(), state)


def test_models_run_without_gradients_in_every_round():
    seen = []
    bench(dict(a=lambda x: seen.append(torch.is_grad_enabled())), torch.ones(1), n=3, warmup=2)
    assert seen == [False]*5


def test_short_calls_are_repeated():
    calls = []
    r = bench(dict(a=lambda: calls.append(1)), n=4, warmup=1, min_time=1e-4)
    assert (len(calls)-1) % 4 == 0 and len(calls) > 20
    assert r.median('a') < 1e-4


def test_inputs_may_be_nested():
    Pair, d = namedtuple('Pair', 'a b'), torch.device('cpu')
    x = B._to((Pair(torch.ones(1), 2), [dict(k=torch.zeros(1))]), d)
    assert isinstance(x[0], Pair) and x[0].b == 2 and len(B.tensors_in(x)) == 2
    assert bench(dict(f=lambda p, q: p.a + q['k']), Pair(torch.ones(1), 2), dict(k=torch.zeros(1)), n=2).n == 2


def test_the_clock_waits_for_the_device(monkeypatch):
    "Synchronised before the start and after the end, on each kind of accelerator"
    for kind in ('cuda', 'mps', 'xpu'):
        seen = []
        monkeypatch.setattr(getattr(torch, kind), 'synchronize', lambda: seen.append('sync'), raising=False)
        B._clock(lambda: seen.append('run'), (), torch.device(kind), reps=2)
        assert seen == ['sync', 'run', 'run', 'sync']


def test_the_copy_is_timed_apart():
    "The input is on the CPU, the models are elsewhere: one copy a round, in no model's time"
    x, d, seen = torch.ones(3), torch.device('meta'), []
    times, copies = B._rounds(dict(f=lambda t: seen.append(t.device.type)), (x,), (x.to(d),), d, 4, 1, None, 0)
    assert len(copies) == len(times['f']) == 4 and set(seen) == {'meta'}
    assert 'copy of the input to the device, apart' in repr(Timings(times, machine(), copies))
    assert B._rounds(dict(f=lambda t: 0), (x.to(d),), (x.to(d),), d, 4, 1, None, 0)[1] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_a_gpu():
    r = bench(dict(a=net().cuda(), b=net().cuda()), torch.randn(2, 3, 32, 32), n=6)
    assert len(r.copy) == 6 and 'gpu' in r.machine
    with pytest.raises(ValueError, match=r"'b' is on cpu, to be timed on cuda:0"): bench(dict(a=net().cuda(), b=net()), torch.randn(2, 3, 32, 32))


def test_results_survive_a_file(tmp_path):
    r = bench(dict(a=net()), torch.randn(1, 3, 8, 8), n=6)
    r.to_json(tmp_path/'r.json')
    back = Timings.from_json(tmp_path/'r.json')
    assert back.machine == r.machine and back.median('a') == pytest.approx(r.median('a'), abs=1e-9)
    assert set(json.loads((tmp_path/'r.json').read_text())) == {'times', 'machine', 'copy', 'notes'}


def test_the_limit_has_the_folded_models_layers():
    "Biases where the folded model has them, weights of its size and nobody's answers"
    m = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False))
    stir_bn(m).eval()
    folded = variants(m, torch.randn(1, 3, 8, 8), kinds=['torch.fx fuse'])['torch.fx fuse']
    limit = without_bn(m, like=folded)
    assert limit[0].bias is not None and limit[2].bias is None and isinstance(limit[1], nn.Identity)
    assert limit[0].weight.std().item() == pytest.approx(folded.get_submodule('0').weight.std().item(), rel=.3)
    x = torch.randn(1, 3, 8, 8)
    assert not torch.allclose(limit(x), m(x), atol=1e-2) and isinstance(m[1], nn.BatchNorm2d)


def test_what_cannot_be_made_is_left_out_aloud():
    class Branchy(nn.Module):
        def __init__(self): super().__init__(); self.bn = nn.BatchNorm1d(2)
        def forward(self, x): return self.bn(x) if x.sum() > 0 else x
    said = []
    vs = variants(Branchy().eval(), torch.ones(2, 2), kinds=['torch.fx fuse', 'no BatchNorm'], say=said.append)
    assert list(vs) == ['unfolded', 'no BatchNorm']
    assert said[0].startswith('torch.fx fuse left out: TraceError: symbolically traced variables')


WITHOUT = '''
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('fastcore', 'fastai', 'matplotlib', 'IPython', 'nbdev'): raise ImportError(f'no {name} here', name=name)
sys.meta_path.insert(0, Absent())
import runpy
runpy.run_module('fastai_bnfold.variants', run_name='__main__')
'''


def test_runs_where_only_torch_is(tmp_path):
    "`python -m fastai_bnfold.variants` on a machine without fastai, fastcore and matplotlib"
    (tmp_path/'mine.py').write_text('from torch import nn\ndef net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))')
    args = ['--model', 'mine.net', '--shape', '1', '3', '8', '8', '--n', '8', '--json', str(tmp_path/'r.json')]
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', WITHOUT, *args], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])))
    assert p.returncode == 0, p.stderr
    assert '8 rounds' in p.stdout
    assert {'unfolded', 'torch.fx fuse', 'no BatchNorm'} <= set(Timings.from_json(tmp_path/'r.json').names)


def test_bench_imports_nothing_above_it():
    "It is at the bottom of what times models; folding imports it"
    lines = Path(B.__file__).read_text().splitlines()
    assert {l.split()[1] for l in lines if l.lstrip().startswith('from .')} == {'.calls', '.state'}
    assert not [l for l in lines if 'fastai_bnfold.' in l and 'import' in l]


def test_pictures_are_one_opaque_figure():
    "Not pyplot's, which a notebook would show a second time; and not transparent, which a dark page would show on black"
    import matplotlib.pyplot as plt
    r = Timings(dict(a=[1., 2.]*4, b=[2., 3.]*4))
    fig = r.plot()
    assert type(fig).__name__ == 'Figure' and fig.get_facecolor()[3] == 1 and plt.get_fignums() == []
    ax = plt.figure().subplots()
    assert r.plot(ax) is ax
    plt.close('all')


class Tagged(torch.Tensor):
    "A class of its own, as fastai's tensors have"


def test_tensors_are_unwrapped():
    seen = []
    bench(dict(a=lambda x, y: seen.extend((type(x), type(y[0])))), torch.ones(2).as_subclass(Tagged), [torch.ones(2).as_subclass(Tagged)], n=2, warmup=1)
    assert {*seen} == {torch.Tensor}


# ---------------------------------------------------------------- engines
def learner(n=96, labels=True):
    "Pictures of two kinds that a small network learns to tell apart"
    torch.manual_seed(0)
    xs, ys = torch.rand(n, 3, 16, 16)*.5, torch.arange(n)%2
    xs[:, 0] += ys[:, None, None]*.4
    ds = list(zip(xs.unbind(), ys.unbind()))
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), stir_bn(nn.BatchNorm2d(8)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    learn = Learner(DataLoaders.from_dsets(ds[:64], ds[64:], bs=16, device='cpu'), net, loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(8, 3e-2)
    return learn


FAST = tuple(o for o in E.ENGINES if o != 'torch.compile')


def test_engines_of_a_learner_alone():
    learn = learner()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    with learn.no_bar(), learn.no_logging():
        own = learn.validate()
        r = E.engines(learn, kinds=FAST, n=8)
    assert r.names == list(FAST) == list(r.sizes) == list(r.measures)
    assert r.figure('eager') == own[1] > .8 and r.metric == 'accuracy'
    assert r.sizes['ONNX Runtime int8'] < r.sizes['ONNX Runtime'] and r.sizes['folded'] < r.sizes['eager']
    assert all(len(row) == 7 for row in r.cells()) and 'accuracy' in repr(r) and 'fastest: ' in repr(r)
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k, v in before.items()) and learn.model[1].__class__ is nn.BatchNorm2d


def test_an_engine_that_loses_accuracy_is_not_the_fastest(monkeypatch):
    learn = learner()
    monkeypatch.setitem(E.ENGINES, 'guess', lambda o: E.Engine(lambda x: torch.eye(2)[0].expand(len(x), 2), 0, exact=False))
    with learn.no_bar(), learn.no_logging():
        r = E.engines(learn, kinds=('eager', 'guess'), n=8)
        assert r.median('guess') < r.median('eager') and r.fastest == ['eager'] and 'lose more than 0.01 of accuracy: guess' in r.notes[0]
        assert E.engines(learn, kinds=('eager', 'guess'), max_drop=1., n=8).fastest == ['guess']


def test_an_engine_that_answers_otherwise_is_left_out(monkeypatch):
    monkeypatch.setitem(E.ENGINES, 'wrong', lambda o: E.Engine(lambda x: o.model(x)*1.1, 0))
    r = E.engines(net().eval(), torch.randn(1, 3, 8, 8), kinds=('eager', 'wrong'), n=6)
    assert r.names == ['eager'] and 'wrong left out: ValueError: its outputs differ' in r.notes[1]


def test_fastai_tensors_are_unwrapped_for_engines():
    seen = []
    class Seen(nn.Module):
        def forward(self, x): seen.append(type(x)); return x*2
    E.engines(Seen(), torch.ones(2, 3).as_subclass(Tagged), kinds=('eager',), n=2)
    assert {*seen} == {torch.Tensor}


def test_nothing_left_says_what_was_asked(monkeypatch):
    def no(o): raise RuntimeError('the compiler said:\n\n  no g++')
    monkeypatch.setitem(E.ENGINES, 'broken', no)
    with pytest.raises(ValueError, match=r'none of broken, channels-last can be timed here. broken left out: RuntimeError: the compiler said: no g\+\+. channels-last left out'):
        E.engines(nn.Linear(2, 2), torch.ones(1, 2), kinds=('broken', 'channels-last'))


def test_engines_take_the_input_from_dl(tmp_path):
    "A Learner from an export has no data of its own"
    learn = trained('vision', tmp_path)
    learn.export(tmp_path/'e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    with loaded.no_bar(), loaded.no_logging(): r = E.engines(loaded, dl=learn.dls.valid, kinds=('eager', 'folded', 'ONNX Runtime int8'), n=6)
    assert r.metric == 'accuracy' and r.figure('eager') == learn.validate()[1] and 'ONNX Runtime int8' in r.names
    for dls in (loaded.dls, None):
        loaded.dls = dls
        with pytest.raises(ValueError, match=r'this Learner has no data .*: pass an input and labelled data, `engines\(learn, x, dl=dl\)`'): E.engines(loaded)
        assert E.engines(loaded, torch.rand(1, 3, 32, 32), kinds=FAST[:2], n=2).metric == 'same answer'


@pytest.mark.parametrize('kw, exc, says', [(dict(which='onnx'), FoldError, '^engines has no option `which`: there are `kinds`'), (dict(kind='eager'), FoldError, 'did you mean `kinds`'),
                                           (dict(warmpu=1), FoldError, 'did you mean `warmup`'), (dict(max_drop='a'), ValueError, "^max_drop='a' is no number from 0 up: give how much"), (dict(max_drop=-1), ValueError, 'max_drop=-1 is no number')])
def test_wrong_options_of_engines(kw, exc, says):
    with pytest.raises(exc, match=says): E.engines(nn.Linear(2, 2), torch.ones(1, 2), **{'kinds': ('eager',), **kw})


def test_engines_without_validation_data():
    "Answers on the batch are compared"
    r = E.engines(net().eval(), torch.randn(2, 3, 8, 8), kinds=('eager', 'folded'), n=6)
    assert r.metric == 'same answer' and [row[-1] for row in r.cells()[1:]] == ['100.00%']*2


# ---------------------------------------------------------------- the benchmarks' own machinery
import benchmarks


def test_tensor_memory_is_exact():
    "Peak and rest to the byte: two blocks of 4 MB alive at once, one of them kept"
    def f():
        a = torch.zeros(1000, 1000)
        b = a + 1
        del a
        return b
    peak, held = benchmarks.tensor_bytes(f)
    assert 8_000_000 <= peak < 8_000_100 and held == 4_000_000


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_process_memory_agrees():
    peak = benchmarks.process_bytes(lambda: [torch.ones(4_000_000).clone() for _ in range(2)])
    assert peak is None or 48e6 - 1e6 < peak < 70e6


@pytest.mark.parametrize('tool', ['folded', 'torch.fx fuse', 'forward'])
def test_cost_of_each_tool_leaves_the_model(tool):
    m, x = net().eval(), torch.randn(2, 3, 8, 8)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    act, undo = benchmarks.TOOLS[tool](m, x)
    for _ in range(2): act(); undo()
    assert before.keys() == m.state_dict().keys() and all(torch.equal(v, m.state_dict()[k]) for k, v in before.items())


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path, monkeypatch, capsys):
    ran = []
    def section(q):
        for k in 'abc': yield k, lambda k=k: (ran.append(k), dict(x=1))[1]
    monkeypatch.setitem(benchmarks.SECTIONS, 'speed', section)
    here, path, q = dict(machine(), threads=1), tmp_path/'speed.json', benchmarks.Settings()
    store = benchmarks.Store(path, here)
    store.put('b', dict(x=0))
    assert benchmarks.run_section('speed', q, benchmarks.Store(path, here)) == 0 and ran == ['a', 'c']
    assert list(json.loads(path.read_text())['rows']) == ['b', 'a', 'c']
    assert benchmarks.Store(path, here, fresh=True).rows == {}
    q.minutes = 0
    benchmarks.run_section('speed', q, benchmarks.Store(path, here, fresh=True))
    assert '3 rows left after 0 minutes; run it again to go on' in capsys.readouterr().out


def test_files_of_two_machines_are_never_mixed(tmp_path):
    benchmarks.Store(tmp_path/'speed.json', machine()).put('a', dict(x=1))
    with pytest.raises(SystemExit, match="is of another machine .cpu: .*start over with --fresh, or keep it and write elsewhere with --out"):
        benchmarks.Store(tmp_path/'speed.json', dict(machine(), cpu='Abacus'))


def test_a_failed_row_is_told_and_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmarks.SECTIONS, 'cost', lambda q: [('a', lambda: 1/0), ('b', lambda: dict(x=1))])
    store = benchmarks.Store(tmp_path/'cost.json', machine())
    assert benchmarks.run_section('cost', benchmarks.Settings(), store) == 1
    assert list(store.rows) == ['b'] and 'failed: ZeroDivisionError' in capsys.readouterr().out


def test_wrong_models_are_not_timed():
    x, left = torch.randn(1, 3, 8, 8), []
    m = net().eval()
    vs = variants(m, x, kinds=['torch.fx fuse', 'no BatchNorm'])
    vs['dropped'] = vs['no BatchNorm']
    assert list(benchmarks.only_right(vs, x, left)) == ['unfolded', 'torch.fx fuse', 'no BatchNorm']
    assert left[0].startswith('dropped left out: wrong answers')


@pytest.mark.skipif('slow' not in os.environ.get('NBDEV_FLAGS', '') or not shutil.which('g++'), reason='slow (make test FLAGS=slow), and needs a C++ compiler')
def test_freezing_is_freezing(monkeypatch):
    "The frozen model has its weights compiled in, also after the same network was compiled without"
    copies, deepcopy = [], benchmarks.copy.deepcopy
    monkeypatch.setattr(benchmarks, 'copy', type('', (), dict(deepcopy=staticmethod(lambda m: copies.append(deepcopy(m)) or copies[-1]))))
    m, x, moved = nn.Sequential(nn.Conv2d(3, 4, 3), stir_bn(nn.BatchNorm2d(4))).eval(), torch.randn(1, 3, 8, 8), []
    for make in (benchmarks.compiled, benchmarks.frozen):
        f = make(m, x)
        with torch.no_grad():
            y = f(x).clone()
            copies[-1][1].weight.mul_(3)
            moved.append(not torch.allclose(f(x), y, atol=1e-3))
    assert moved == [True, False]

def test_timing_by_keyword_is_in_eval_mode():
    "What a BatchNorm that stays has counted is no matter of the clock"
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()).train()
    was = copy.deepcopy(m[3].state_dict())
    report = BNFolder(m).fold(input=torch.randn(4, 3, 8, 8), timeit=True)
    assert report.times is not None and m.training
    assert all(torch.equal(was[k], v) for k, v in m[3].state_dict().items())

def test_engines_keep_what_a_fold_kept():
    "A model that is folded already is not folded on: what `keep=` named is in every engine"
    from fastai_bnfold.engines import _Making
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 12, 12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in _Making(model, (x,), [], '.').copy().modules())
    BNFolder(model).fold(x, keep='4')
    assert sum(isinstance(m, nn.BatchNorm2d) for m in _Making(model, (x,), [], '.').copy().modules()) == 1

def test_help_of_engines_has_its_parameters():
    from fastai_bnfold.all import engines
    assert all(o in engines.__doc__ for o in ('kinds :', 'max_drop :', 'Returns'))
