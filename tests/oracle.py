"""Could one more have gone? For every BatchNorm that a fold left, try by brute force every convolution and linear layer as
the one that absorbs it, and compare outputs. Knows nothing of data flow: `python tests/oracle.py -n 500`."""
import argparse
import collections
import re

import torch
from torch import nn

from fuzz import entries, on_others, others_of, settle
from models import TOL, bn_layers, engine, rel_err, run
from nets import Invalid, build, generate, literal, shrink

OUT = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
EXEMPT = (
    'hook', 'subclass', 'batch statistics', 'parametri', 'computed', 'shared', 'also read', 'nothing reads', 'no batch reached',
    'precision', 'no BatchNorm class', 'another way')


def affine(m):
    s = (m.running_var + m.eps).rsqrt() * (1 if m.weight is None else m.weight)
    return s.detach(), (-m.running_mean * s + (0 if m.bias is None else m.bias)).detach()


def absorbed(a, s, t, side):
    "Weight and bias of layer `a` with the map on its outputs or inputs; None if the sizes do not fit"
    w, tr = a.weight.detach(), 'Transpose' in type(a).__name__
    n_out = a.out_features if isinstance(a, nn.Linear) else a.out_channels
    n_in = a.in_features if isinstance(a, nn.Linear) else a.in_channels
    g = getattr(a, 'groups', 1)
    b = torch.zeros(n_out, dtype=w.dtype) if a.bias is None else a.bias.detach()
    v = w.reshape(g, n_in // g, n_out // g, -1).transpose(1, 2) if tr else w.reshape(g, n_out // g, n_in // g, -1)
    if side == 'out' and n_out == len(s): v, b = v * s.view(g, -1, 1, 1), b * s + t
    elif side == 'in' and n_in % len(s) == 0:
        s, t = (x.repeat_interleave(n_in // len(s)) for x in (s, t))
        b = b + (v.sum(3) * t.view(g, 1, -1)).sum(2).flatten()
        v = v * s.view(g, 1, -1, 1)
    else: return None
    return (v.transpose(1, 2) if tr else v).reshape(w.shape), b


def layers(model):
    "Convolutions and linear layers that keep their weight themselves, by path"
    return [(n, a) for n, a in model.named_modules() if isinstance(a, OUT) and type(a.weight) is nn.Parameter]


def works(model, name, a, new, ref, fresh):
    "Are the outputs right with BatchNorm `name` gone and layer `a` changed?"
    parent, leaf = (name.rpartition('.')[0], name.rpartition('.')[2])
    box, bn, old = model.get_submodule(parent), model.get_submodule(name), (a.weight, a.bias)
    try:
        box._modules[leaf], a._parameters['weight'], a._parameters['bias'] = nn.Identity(), *(nn.Parameter(x) for x in new)
        return rel_err(ref, run(model, fresh)) <= TOL
    except Exception: return False
    finally: box._modules[leaf], a._parameters['weight'], a._parameters['bias'] = bn, *old


def missed(spec):
    "[(layer, reason, absorber, side)] that a fold left and one layer could have taken"
    model, xb, fresh = build(spec)
    seen = [(fresh, run(model, fresh)), *((x, ref) for _, x, ref in on_others(model, others_of(spec, True)))]
    BNFolder, _ = engine()
    kept = {b: r for b, i, r in entries(BNFolder(model).fold(*xb).plan) if not i}
    found = []
    for name, m in bn_layers(model).items():
        if any(e in kept.get(name, '') for e in EXEMPT) or m.running_mean is None or type(m).__name__ in ('OddBN2d', 'BatchNormAct2d'): continue
        for p, a in layers(model):
            for side in ('out', 'in'):
                new = absorbed(a, *affine(m), side)
                if new and all(works(model, name, a, new, ref, x) for x, ref in seen): found.append((name, kept.get(name), p, side))
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('-n', type=int, default=300)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--shrink', type=int, default=1)
    a = p.parse_args()
    settle()
    by = collections.defaultdict(list)
    for s in range(a.seed, a.seed + a.n):
        try: found = missed(generate(s))
        except Invalid: continue
        except Exception as e: print(s, repr(e)[:200]); continue
        for f in found: by[re.sub(r'`[^`]*`', '#', f[1] or '?')].append((s, f))
    for k, v in sorted(by.items(), key=lambda kv: -len(kv[1])):
        print(f'\n== {len(v)} x {k}\n  {v[:3]}')
        for s, f in v[:a.shrink]: print(literal(shrink(generate(s), lambda x: _still(x, k))))
    print(f'{a.n} nets, {sum(map(len, by.values()))} layers missed')


def _still(spec, k):
    try: return any(re.sub(r'`[^`]*`', '#', f[1] or '?') == k for f in missed(spec))
    except Exception: return False


if __name__ == '__main__': main()
