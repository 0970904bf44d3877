"Two processes on the CPU, through fastai's `distrib_ctx`: a folded Learner predicts as in one, and a fold inside is alike in both."
import os, socket, subprocess, sys
from pathlib import Path

import pytest, torch

CHILD = '''
import os, sys, warnings
warnings.simplefilter('ignore')
import torch, torch.distributed as dist
torch.set_num_threads(1)
from fastai.basics import *
from fastai.distributed import *
from learners import bn_layers, outputs, trained
from fastai_bnfold.all import *
path, rank = Path(sys.argv[1]), int(os.environ['RANK'])
def world(n):  # fastai gathers wherever WORLD_SIZE is set
    os.environ['WORLD_SIZE'] = str(n)
dist.init_process_group('gloo')
world(0)
def _broadcast(self, t, rank):  # fastai's own calls `.cuda()`, whatever the device
    t = torch.LongTensor(t)
    dist.broadcast(t, rank)
    return t.tolist()
DistributedDL._broadcast = _broadcast
learn, own = trained('vision', path/str(rank)), trained('vision', path/f'own{rank}')
learn.fold_bn()
assert not bn_layers(learn.model)
got = {'single': outputs(learn)}
world(2)
with learn.distrib_ctx(cpu=True, sync_bn=False):
    got['world'] = dist.get_world_size()
    got['both'] = outputs(learn)
    got['used'] = any(isinstance(cb, DistributedTrainer) for cb in learn.cbs)
world(0)
got['after'] = outputs(learn)
world(2)
with own.distrib_ctx(cpu=True, sync_bn=False):
    got['title'] = own.fold_bn().title
    got['inside'] = outputs(own)
world(0)
got['weights'] = {k: v.clone() for k, v in own.model.state_dict().items()}
got['left'] = len(bn_layers(own.model))
own.unfold_bn()
got['unfolded'] = {k: v.clone() for k, v in own.model.state_dict().items()}
torch.save(got, path/f'got{rank}.pt')
dist.barrier()
dist.destroy_process_group()
'''

def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.fixture(scope='module')
def got(tmp_path_factory):
    "What each of two processes found"
    pytest.importorskip('accelerate')
    path, here = tmp_path_factory.mktemp('distrib'), Path(__file__).parent
    env = {**os.environ, 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port()), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': '1',
           'PYTHONPATH': os.pathsep.join([str(here), str(here.parent)])}
    ps = [subprocess.Popen([sys.executable, '-c', CHILD, str(path)], env={**env, 'RANK': str(r), 'LOCAL_RANK': str(r)}, stderr=subprocess.PIPE, text=True) for r in (0, 1)]
    try: errs = [p.communicate(timeout=150)[1] for p in ps]
    finally:
        for p in ps: p.kill()
    assert all(p.returncode == 0 for p in ps), '\n'.join(e[-3000:] for e in errs)
    return [torch.load(path/f'got{r}.pt') for r in (0, 1)]

def test_two_processes_ran(got):
    assert [o['world'] for o in got] == [2, 2] and all(o['used'] for o in got)

def test_get_preds_as_in_one_process(got):
    for o in got:
        assert len(o['single']) == 4 and o['single'].std() > 0
        torch.testing.assert_close(o['both'], o['single'], rtol=1e-5, atol=1e-6)
        assert torch.equal(o['after'], o['single'])

def test_fold_inside_is_alike(got):
    a, b = got
    assert a['title'] == b['title'] and a['left'] == b['left'] == 0
    assert list(a['weights']) == list(b['weights']) and all(torch.equal(a['weights'][k], b['weights'][k]) for k in a['weights'])
    torch.testing.assert_close(a['inside'], b['inside'], rtol=0, atol=0)
    torch.testing.assert_close(a['inside'], a['single'], rtol=1e-4, atol=1e-5)

def test_unfolded_after_the_context(got):
    a, b = got
    assert any('running_mean' in k for k in a['unfolded'])
    assert all(torch.equal(a['unfolded'][k], b['unfolded'][k]) for k in a['unfolded'])
