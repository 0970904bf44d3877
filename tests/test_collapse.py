"Blocks that add up convolutions of one input become one convolution, and nothing else does: right in float64 on another batch and another size, undone exactly, all or nothing."
import copy
from collections import OrderedDict

import pytest, torch
import torch.nn.functional as F
from torch import nn

import fastai_bnfold.collapse as C_
from fastai_bnfold import fold as F_
from fastai_bnfold.all import *
from fastai_bnfold.looks import Batch
from models import Fn, TOL, changed, randomize_bn, real, rel_err, run, snapshot

pytestmark = pytest.mark.filterwarnings('ignore')

# ---------------------------------------------------------------- blocks
def conv(k=3, i=4, o=4, **kw): return nn.Conv2d(i, o, k, **{**({'padding': k//2} if isinstance(k, int) else {}), **kw})
def cbn(k=3, i=4, o=4, **kw): return nn.Sequential(conv(k, i, o, bias=False, **kw), nn.BatchNorm2d(o))
def dw(k=3, **kw): return conv(k, groups=4, **kw)
def net(block, o=4, dims=2): return nn.Sequential(OrderedDict(stem=(nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims-1](3, 4, 1), block=block, out=(nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims-1](o, 2, 1)))
def gamma(*shape): return nn.Parameter(torch.rand(*shape)+.5)

class SE(nn.Module):
    def __init__(self): super().__init__(); self.fc = nn.Conv2d(4, 4, 1)
    def forward(self, x): return x*self.fc(x.mean((2, 3), keepdim=True)).sigmoid()

class RepMixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gamma = nn.BatchNorm2d(4), gamma(4, 1, 1)
        self.mixer = Fn(lambda s, x: s.a(x)+s.b(x)+s.c(x), a=cbn(3, groups=4), b=cbn(1, groups=4), c=nn.BatchNorm2d(4))
    def forward(self, x): return x + self.gamma*(self.mixer(x)-self.norm(x))

def added(s, x):
    y = s.a(x)
    y += s.b(x)
    y += x
    return s.act(y)

def counted(s, x):
    y, out = s.drop(x), 0
    for m in s.ms: out = out+m(y)
    return out+y

YES = dict(  # a net, and the convolutions of its block after the collapse
    repvgg=lambda: (net(Fn(lambda s, x: s.act(s.a(x)+s.b(x)+s.i(x)), a=cbn(3), b=cbn(1), i=nn.BatchNorm2d(4), act=nn.ReLU(inplace=True))), 1),
    depthwise=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x)+x, a=cbn(3, groups=4), b=cbn(1, groups=4))), 1),
    grouped=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x)+x, a=conv(3, groups=2), b=conv(1, groups=2))), 1),
    one_tap=lambda: (net(Fn(lambda s, x: x+s.a(x), a=conv(1, groups=4))), 1),
    more_channels=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3, o=8, groups=2), b=conv(5, o=8, groups=2)), o=8), 1),
    dilation=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x)+x, a=conv(3, dilation=2, padding=2), b=conv(5, dilation=2, padding=4))), 1),
    dilation_apart=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3, dilation=3, padding=3), b=conv(1, dilation=2))), 1),
    oblong=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv((3, 3), padding=1), b=conv((1, 3), padding=(0, 1)))), 1),
    cross=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x)+s.c(x), a=conv((3, 1), padding=(1, 0)), b=conv((1, 3), padding=(0, 1)), c=conv(3))), 1),
    same_padding=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3, padding='same'), b=conv(1, padding='valid'))), 1),
    stride=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=cbn(3, stride=2), b=cbn(1, stride=2))), 1),
    no_bias=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3, bias=False), b=conv(1, bias=False))), 1),
    one_d=lambda: (net(Fn(lambda s, x: s.act(s.a(x)+s.b(x)), a=nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)), b=nn.Conv1d(4, 4, 1), act=nn.ReLU()), dims=1), 1),
    three_d=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x)+x, a=nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.BatchNorm3d(4)), b=nn.Conv3d(4, 4, 1)), dims=3), 1),
    difference=lambda: (net(Fn(lambda s, x: s.a(x)-(x-s.b(x)), a=conv(3), b=conv(1))), 1),
    layer_scale=lambda: (net(Fn(lambda s, x: x+s.gamma*(s.a(x)+s.b(x)), a=conv(3), b=conv(1), gamma=gamma(4, 1, 1))), 1),
    layer_scale_viewed=lambda: (net(Fn(lambda s, x: x+s.a(x)*s.gamma.view(1, -1, 1, 1)+s.beta[None, :, None, None], a=conv(3), gamma=gamma(4), beta=gamma(4))), 1),
    shared_act=lambda: (net(nn.Sequential(*[Fn(lambda s, x: s.act(s.a(x)+s.b(x)), a=conv(3), b=conv(1), act=act) for act in [nn.ReLU()]*2])), 2),
    residual=lambda: (net(Fn(lambda s, x: x+s.a(x), a=conv(3))), 1),
    se=lambda: (net(Fn(lambda s, x: s.act(s.se(s.a(x)+s.b(x))), a=cbn(3), b=cbn(1), se=SE(), act=nn.SiLU())), 2),
    in_place=lambda: (net(Fn(added, a=conv(3), b=conv(1), act=nn.ReLU())), 1),
    in_a_list=lambda: (net(Fn(counted, ms=nn.ModuleList([cbn(3), cbn(3), cbn(1)]), drop=nn.Dropout(.5))), 1),
    doubled=lambda: (net(Fn(lambda s, x: (y := s.a(x))+y+x, a=conv(3))), 1),
    nested=lambda: (net(RepMixer()), 1),
    nested_same=lambda: (net(nn.Sequential(nn.Sequential(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(1))), nn.ReLU())), 1),
    in_the_chain=lambda: (net(Fn(lambda s, x: s.more(s.a(x)+x), a=conv(3), more=nn.Sequential(nn.ReLU(), Fn(lambda s, x: s.a(x)+x, a=conv(3))))), 2),
    chain_is_a_block=lambda: (net(Fn(lambda s, x: s.more(s.act(s.a(x)+x)), a=conv(3), act=nn.ReLU(), more=Fn(lambda s, x: s.a(x)+x, a=conv(3)))), 2),
    before=lambda: (net(Fn(lambda s, x: s.act((y := s.pre(x))+s.a(y)), pre=nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), a=conv(3, groups=4), act=nn.ReLU())), 2),
    relu=lambda: (net(Fn(lambda s, x: F.relu(s.a(x)+s.b(x)+s.i(x)), a=cbn(3), b=cbn(1), i=nn.BatchNorm2d(4))), 1),
    relu_in_place=lambda: (net(Fn(lambda s, x: F.relu(s.a(x)+s.b(x), inplace=True), a=conv(3), b=conv(1))), 1),
    relu_method=lambda: (net(Fn(lambda s, x: (s.a(x)+s.b(x)).relu_(), a=conv(3), b=conv(1))), 1),
    gelu=lambda: (net(Fn(lambda s, x: F.gelu(s.a(x)+s.b(x), approximate='tanh'), a=conv(3), b=conv(1))), 1),
    leaky_relu=lambda: (net(Fn(lambda s, x: F.leaky_relu(s.a(x)+s.b(x), .3), a=conv(3), b=conv(1))), 1),
    hardtanh=lambda: (net(Fn(lambda s, x: F.hardtanh(s.a(x)+s.b(x), -.5, max_val=.2), a=conv(3), b=conv(1))), 1),
    functions_around=lambda: (net(Fn(lambda s, x: F.silu(s.se((y := torch.tanh(x))+s.a(y))), a=conv(3), se=SE())), 2),
    number=lambda: (net(Fn(lambda s, x: x+.3*s.a(x)-.1, a=conv(3))), 1),
    builtin_sum=lambda: (net(Fn(lambda s, x: F.relu(sum(m(x) for m in s.ms)), ms=nn.ModuleList([conv(3), conv(1), cbn(3)]))), 1),
    tied=lambda: (net(tied()), 1),
    registered_elsewhere=lambda: (m := net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(1))), setattr(m.stem, 'also', m.block.a), (m, 2))[2],
)

def tied():
    m = Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(3))
    m.b.weight = m.a.weight
    return m

def watched():
    m = Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(1))
    m.b.register_forward_hook(lambda m, i, o: None)
    return m

def keeps(s, x):
    s.kept = s.a(x)
    return s.kept+s.b(x)

def padded(s, x): return s.a(F.pad(x, (1,)*4))+s.b(x)

NO = dict(  # a net in which nothing may collapse, and the reason; None where nothing is a sum of convolutions of one input
    hook=lambda: (net(watched()), 'is seen by a hook'),
    hook_on_the_block=lambda: ((m := net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(1)))), m.block.register_forward_pre_hook(lambda m, i: None), (m, 'a hook looks at it'))[2],
    shared_outside=lambda: ((m := net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(1)))), setattr(m, 'out', m.block.a), (m, '`block.a` reads a part of it'))[2],
    reached_into=lambda: (net(Fn(lambda s, x: s.m(x)*s.m.a.weight.mean(), m=Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(1)))), '`block` reads a part of it'),
    called_twice=lambda: (net(Fn(lambda s, x: s.m(F.relu(s.m(x))), m=Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(1)))), 'reads a part of it'),
    sum_read_elsewhere=lambda: (net(Fn(lambda s, x: (y := s.a(x)+s.b(x))*s.act(y), a=conv(3), b=conv(1), act=nn.ReLU())), 'beside the sum'),
    part_read_elsewhere=lambda: (net(Fn(lambda s, x: s.act((y := s.a(x))+s.b(x))+y, a=conv(3), b=conv(1), act=nn.ReLU())), 'beside the sum'),
    another_function=lambda: (net(Fn(lambda s, x: F.max_pool2d(s.a(x)+s.b(x), 2), a=conv(3), b=conv(1))), 'beside the sum'),
    another_branch=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x)+F.avg_pool2d(x, 3, 1, 1), a=conv(3), b=conv(1))), 'beside the sum'),
    part_is_kept=lambda: (net(Fn(keeps, a=conv(3), b=conv(1))), 'is kept after the forward'),
    list_out=lambda: (net(Fn(lambda s, x: F.relu(s.m(x)[0]), m=Fn(lambda s, x: [s.a(x)+s.b(x)], a=conv(3), b=conv(1)))), 'beside the sum'),
    grids=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(3, padding=2, dilation=2))), 'the taps of all'),
    oblong_each_way=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv((3, 1), padding=(1, 0)), b=conv((1, 3), padding=(0, 1)))), 'the taps of all'),
    more_work=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(1), b=dw(3))), 'different strides, groups or channels'),
    groups=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3, groups=2), b=conv(1, groups=4))), 'different strides, groups or channels'),
    spread=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(3, o=1, groups=1))), 'different strides, groups or channels'),
    many_numbers=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x)*s.gamma, a=conv(3), b=conv(1), gamma=gamma(4, 8, 8))), 'more than one number a channel'),
    by_the_width=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x) if x.shape[-1] == 8 else s.a(x), a=conv(3), b=conv(1))), 'for another batch'),
    the_model=lambda: (Fn(lambda s, x: s.out(s.a(y := s.stem(x))+s.b(y)), stem=conv(1, 3), a=conv(3), b=conv(1), out=conv(1)), 'no module holds it'),
    reflect=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3, padding_mode='reflect'), b=conv(1))), None),
    padded_before=lambda: (net(Fn(padded, a=conv(3, padding=0), b=conv(1))), None),
    product=lambda: (net(Fn(lambda s, x: s.a(x)*s.b(x), a=conv(3), b=conv(1))), None),
    other_input=lambda: (net(Fn(lambda s, x: s.a(x)+s.b(F.relu(x)), a=conv(3), b=conv(1))), None),
    parametrized=lambda: ((m := net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(1)))), nn.utils.parametrizations.weight_norm(m.block.a), (m, None))[2],
)
def batches(dims=2): return [torch.randn(n, 3, *[s]*dims, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for n, s in ((2, 8), (5, 8), (3, 11))]
def made(m, dims=2):
    torch.manual_seed(0)
    return randomize_bn(m.double().eval())
def convs(m): return sum(isinstance(o, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for o in m.modules())

def right(model, collapses):
    "Fold and collapse: the right answers, whatever collapses, and back; returns the report and the number of convolutions left"
    xs = batches(model.stem.weight.dim()-2)
    ref, before = [run(model, [x]) for x in xs], snapshot(model)
    folder = BNFolder(model)
    report = folder.fold(xs[0], collapse=True)
    for x, y in zip(xs, ref): assert rel_err(y, run(model, [x])) < 1e-10
    n = convs(model)
    assert bool(report.collapsed) == collapses, report.collapsed
    folder.unfold()
    assert changed(before, snapshot(model)) == []
    return report, n

@pytest.mark.parametrize('name', YES)
def test_collapses(name):
    torch.manual_seed(1)
    model, n = YES[name]()
    report, left = right(made(model), True)
    assert left == n+2
    for o in report.collapsed: assert o.path.startswith('block') and o.into.startswith('Conv') and o.merged

@pytest.mark.parametrize('name', NO)
def test_stays(name):
    "Nothing collapses, and the one block that adds up convolutions of one input says why"
    torch.manual_seed(1)
    model, words = NO[name]()
    model = made(model)
    xs = batches()[:1] if name == 'many_numbers' else batches()
    stops = [str(o) for o in C_.find_blocks(model, [Batch((x,)) for x in xs]).values()]
    assert [words in o for o in stops] == ([] if words is None else [True]), stops
    if name != 'many_numbers': right(model, False)

def test_a_wrong_block_is_not_left():
    "Code that reads a setting of the block: the model does not run without it, so that nothing is collapsed, and the report says so"
    m = made(net(Fn(lambda s, x: s.m(x)*s.m.a.in_channels, m=Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3), b=conv(1)))))
    report, n = right(m, False)
    assert n == 4 and "has no attribute 'a'" in report.not_collapsed

def test_different_sizes_for_other_images():
    "Both halve an image of even size; of an odd size they do not"
    m = made(net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(2, stride=2, padding=0), b=conv(3, stride=2, padding=1))))
    x = batches()[0]
    assert not BNFolder(m).fold(x, collapse=True).collapsed
    m = made(net(Fn(lambda s, x: s.a(x)+s.b(x)[:, :, 1:, 1:], a=conv(3, stride=2, padding=0), b=conv(3, stride=2))))
    assert not BNFolder(m).fold(x, collapse=True).collapsed

def test_different_strides():
    "On an image of one pixel, strides do not show"
    m = made(net(Fn(lambda s, x: s.a(x)+s.b(x), a=conv(3, stride=2), b=conv(1))))
    assert not BNFolder(m).fold(torch.randn(2, 3, 1, 1, dtype=torch.float64), collapse=True).collapsed
    m = made(net(Fn(lambda s, x: s.a(x)+x, a=conv(3, stride=2))))
    assert not BNFolder(m).fold(torch.randn(2, 3, 1, 1, dtype=torch.float64), collapse=True).collapsed

def test_parts_of_the_tree():
    "Stock modules alone, flags and the children that stay"
    m = made(YES['se']()[0]).train()
    m.block.act.eval()
    m.block.a[0].weight.requires_grad_(False)
    se = m.block.se
    BNFolder(m).fold(batches()[0], collapse=True)
    assert [type(o) for o in m.block] == [nn.Conv2d, SE, nn.SiLU] and m.block[1] is se
    assert type(m.block) is nn.Sequential and m.block.training and m.block[0].training and not m.block[2].training
    assert not m.block[0].weight.requires_grad and not m.block[0].bias.requires_grad
    m = made(YES['residual']()[0])
    for p in m.parameters(): p.requires_grad_(False)
    BNFolder(m).fold(batches()[0], collapse=True)
    assert not any(p.requires_grad for p in m.parameters())
    assert BNFolder(made(YES['no_bias']()[0])).fold(batches()[0], collapse=True) and m.block.bias is not None

def test_a_hook_on_an_identity():
    "Identity layers are left out of what stays, but for those that a hook looks at"
    m, seen = made(net(Fn(lambda s, x: s.i(s.a(x)+s.b(x)), a=conv(3), b=conv(1), i=nn.Identity()))), []
    m.block.i.register_forward_hook(lambda m, i, o: seen.append(1))
    assert BNFolder(m).fold(batches()[0], collapse=True).collapsed
    seen.clear(); run(m, [batches()[0]])
    assert len(seen) == 1

def test_channels_last():
    m = made(YES['repvgg']()[0]).to(memory_format=torch.channels_last)
    BNFolder(m).fold(batches()[0].contiguous(memory_format=torch.channels_last), collapse=True)
    assert m.block[0].weight.is_contiguous(memory_format=torch.channels_last)

def test_moved_after_the_fold():
    "Undone in the dtype that the model has by then, the folded-away parts too"
    m = made(YES['nested']()[0]).float()
    was, x = copy.deepcopy(m), batches()[0].float()
    f = BNFolder(m)
    f.fold(x, collapse=True)
    m.double()
    f.unfold()
    assert {t.dtype for t in m.state_dict().values() if t.is_floating_point()} == {torch.float64}
    assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(), was.double().state_dict().values()))

def test_changed_since():
    f = BNFolder(m := made(YES['repvgg']()[0]))
    f.fold(batches()[0], collapse=True)
    m.block[0].weight.data += 1
    with pytest.raises(FoldError, match='changed since the fold'): f.unfold()

def test_no_way_back():
    f = BNFolder(m := made(YES['repvgg']()[0]))
    f.fold(batches()[0], collapse=True, undo=False)
    assert f.folded and not f.history.done
    with pytest.raises(FoldError, match='undo=False'): f.unfold()

def test_after_a_fold():
    "A model that is folded already collapses, and both are taken back"
    m, x = made(YES['repvgg']()[0]), batches()[0]
    before, f = snapshot(m), BNFolder(m)
    assert not f.fold(x).collapsed and convs(m) == 4
    assert len(f.fold(x, collapse=True).collapsed) == 1 and convs(m) == 3
    f.unfold()
    assert changed(before, snapshot(m)) == []

def test_report():
    r = BNFolder(made(YES['repvgg']()[0])).fold(batches()[0], collapse=True)
    assert 'parallel convolutions' in repr(r) and 'parallel convolutions' in r._repr_html_()
    assert r.collapsed == [Collapsed('block', ('block.a.0', 'block.b.0'), 'Conv2d(4, 4, 3x3)')]
    assert r.params_after < r.params_before and r.tolerance and r.max_rel_err < 1e-10
    r = BNFolder(made(YES['repvgg']()[0])).fold(batches()[0])
    assert r.collapsed == [] and 'parallel' not in repr(r)

# ---------------------------------------------------------------- tests that can fail
def broken(**kw):
    "`put_together`, with one thing wrong in it"
    good = C_.put_together
    def f(ks, scales, shift=0.):
        if 'drop' in kw: scales = [*scales[:-1], 0.]
        w, b = good(ks, scales, shift)
        if 'flip' in kw: w = w.flip(-1)
        if 'bias' in kw: b = b*0+1
        return w, b
    return f

@pytest.mark.parametrize('wrong', ['flip', 'bias', 'drop'])
def test_a_wrong_merge_is_refused(monkeypatch, wrong):
    m, x = made(YES['cross']()[0]), batches()[0]
    before = snapshot(m)
    monkeypatch.setattr(C_, 'put_together', broken(**{wrong: 1}))
    report = BNFolder(m).fold(x, collapse=True)
    assert "would change the model's output" in report.not_collapsed and not report.collapsed
    assert changed(before, snapshot(m)) == []  # there is no BatchNorm in it: the fold alone does nothing

@pytest.mark.parametrize('name', YES)
def test_the_bed_can_fail(monkeypatch, name):
    "Each case above, with a merge that loses the last tap: its comparison sees it, with the library's own check off"
    torch.manual_seed(1)
    good = C_.put_together
    def lossy(ks, scales, shift=0.):
        w, b = good(ks, scales, shift)
        w.flatten(2)[..., -1] = 0
        return w, b
    monkeypatch.setattr(C_, 'put_together', lossy)
    m = made(YES[name]()[0])
    xs = batches(m.stem.weight.dim()-2)
    ref = [run(m, [x]) for x in xs]
    BNFolder(m).fold(xs[0], collapse=True, check=False)
    assert all(rel_err(y, run(m, [x])) > 1e-5 for x, y in zip(xs, ref))

# ---------------------------------------------------------------- faults
STEPS = {'find': (F_, 'find_blocks'), 'trace': (C_, 'trace'), 'blocks': (C_, '_blocks'), 'collapsing': (F_, 'collapsing'), 'one_conv': (C_, 'one_conv'), 'put_together': (C_, 'put_together'), 'round_to': (C_, 'round_to'),
         'changes': (F_, 'changes_for'), 'do': (C_.Change, 'do'), 'check': (F_, 'check_fold'), 'fingerprint': (F_, 'checksum'), 'report': (F_, 'FoldReport')}

@pytest.mark.parametrize('exc', [ValueError, KeyboardInterrupt, torch.OutOfMemoryError], ids=lambda o: o.__name__)
def test_fault_at_each_step(exc):
    m, x = made(nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 1), a=YES['nested']()[0].block, b=YES['se']()[0].block, c=YES['in_the_chain']()[0].block))), batches()[0]
    before, f = snapshot(m), BNFolder(m)
    for name, (owner, attr) in STEPS.items():
        for n in range(1, 40):
            for after in (False, True):
                count, good = [0], getattr(owner, attr)
                def at(*a, **k):
                    count[0] += 1
                    if count[0] == n and not after: raise exc('injected')
                    r = good(*a, **k)
                    if count[0] == n: raise exc('injected')
                    return r
                with pytest.MonkeyPatch.context() as mp:
                    mp.setattr(owner, attr, at)
                    try: f.fold(x, collapse=True)
                    except (exc, FoldError) as e: assert 'injected' in str(e), (name, n)
                if f.folded: f.unfold()
                assert changed(before, snapshot(m)) == [] and not f.folded, (name, n, after)
            if count[0] < n: break
        assert n > 1, name
    assert not torch.nn.modules.module._global_forward_hooks
    assert len(f.fold(x, collapse=True).collapsed) == 4

def test_a_bad_weight_is_an_error():
    m = made(YES['repvgg']()[0]).half()
    m.block.a[0].weight.data.fill_(6e4); m.block.b[0].weight.data.fill_(6e4); m.block.a[1] = m.block.b[1] = m.block.i = nn.Identity()
    before = snapshot(m)
    with pytest.raises(FoldError): BNFolder(m).fold(batches()[0].half(), collapse=True)
    assert changed(before, snapshot(m)) == []

# ---------------------------------------------------------------- Learner, export, command line
def learner(path):
    from fastai.basics import DataLoader, DataLoaders, Learner
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), RepMixer(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    items = [(torch.randn(3, 8, 8), i % 2) for i in range(8)]
    dls = DataLoaders(DataLoader(items, bs=4), DataLoader(items, bs=4))
    return Learner(dls, randomize_bn(model), loss_func=nn.CrossEntropyLoss(), path=path)

def test_learner(tmp_path):
    learn = learner(tmp_path)
    opt, before = learn.opt, snapshot(learn.model)
    r = learn.fold_bn(collapse=True, validate=True)
    assert [o.path for o in r.collapsed] == ['1'] and type(learn.model[1]) is nn.Conv2d
    assert all(abs(a-b) < 1e-4 for _, b, a in r.valid)
    with pytest.raises(FoldError, match='unfold_bn'): learn.fit(1)
    learn.unfold_bn()
    assert changed(before, snapshot(learn.model)) == [] and learn.opt is opt
    learn.fold_bn(collapse=True, undo=False)
    with pytest.raises(FoldError): learn.unfold_bn()

def test_learner_without_batchnorm(tmp_path):
    "Nothing to fold, something to collapse: that is taken back too, and training is stopped"
    learn = learner(tmp_path)
    learn.model[1] = Fn(added, a=conv(3), b=conv(1), act=nn.ReLU())
    before = snapshot(learn.model)
    assert len(learn.fold_bn(collapse=True).collapsed) == 1
    learn.unfold_bn()
    assert changed(before, snapshot(learn.model)) == []

def test_metrics_fail_after_the_collapse(tmp_path):
    from fastai.basics import AvgMetric, L
    learn, n = learner(tmp_path), [0]
    def once(*a):
        n[0] += 1
        if n[0] > 2: raise ValueError('metric')
        return torch.tensor(0.)
    learn.metrics, before = L(AvgMetric(once)), snapshot(learn.model)
    with pytest.raises(ValueError, match='metric'): learn.fold_bn(collapse=True, validate=True)
    assert changed(before, snapshot(learn.model)) == []

def test_export_is_stock(tmp_path):
    "An exported model needs nothing of ours"
    import subprocess, sys
    import timm
    model = real(timm.create_model('repvgg_a0'))
    BNFolder(model).fold(torch.randn(2, 3, 32, 32, dtype=torch.float64), collapse=True)
    torch.save(model, tmp_path/'m.pth')
    code = f"import sys, torch; sys.modules['fastai_bnfold'] = None; m = torch.load({str(tmp_path/'m.pth')!r}, weights_only=False); print(m(torch.ones(1, 3, 32, 32, dtype=torch.float64)).shape)"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'torch.Size([1, 1000])' in out.stdout, out.stderr

def test_command_line():
    from fastai_bnfold.cli import Stop, parse
    assert parse(['m.pkl', '--item', 'a', '--collapse']).collapse and not parse(['m.pkl', '--item', 'a']).collapse
    with pytest.raises(Stop, match='--collapse'): parse(['m.pkl', '--item', 'a', '--collapse', '--plan'])

# ---------------------------------------------------------------- timm
@pytest.mark.parametrize('name', ['repvgg_a0', 'mobileone_s0', 'fastvit_t8', 'repghostnet_100', 'repvit_m0_9'])
def test_timm(name):
    "As few convolutions as the model's own recipe leaves; right on another batch and size; back exactly"
    import timm
    from timm.utils import reparameterize_model
    g = torch.Generator().manual_seed(0)
    noise = lambda n, s: torch.randn(n, 3, s, s, dtype=torch.float64, generator=g)
    model, fresh = real(timm.create_model(name), [noise(8, 64)]), [noise(3, 96)]
    ref, before = run(model, fresh), {k: v.clone() for k, v in model.state_dict().items()}
    theirs, f = reparameterize_model(model).double(), BNFolder(model)
    r = f.fold(noise(2, 64), collapse=True)
    assert r.bn_after == 0 and r.collapsed and convs(model) == convs(theirs)
    assert rel_err(ref, run(model, fresh)) < 1e-8 and rel_err(run(theirs, fresh), run(model, fresh)) < 1e-5  # timm's own is rounded to float32 in repvit
    f.unfold()
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], v) for k, v in before.items()) and run(model, fresh)[0].equal(ref[0])

def test_a_model_that_is_a_block_collapses_in_a_sequential():
    "The way out that the reason names"
    model = made(nn.Sequential(NO['the_model']()[0]))
    x = batches()[0]
    ref = run(model, [x])
    assert len(BNFolder(model).fold(x, collapse=True).collapsed) == 1
    assert rel_err(ref, run(model, [x])) < 1e-10
