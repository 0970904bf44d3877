"""Random modules whose Python asks a tensor, or a size of one, which way to go, as users write them. A program is a
literal dict: `parts` (name -> step that makes it), `init` and `lines` (source of `__init__` and `forward`), `args`,
`methods`. Every layer keeps the shape of what it gets, so that each line works on each way."""
import hashlib
import linecache
import random
import re
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

KEPT = 300  # that many classes with a source stay known
FILE, TEXT = 'program-', ('parts', 'init', 'lines', 'args', 'methods')


# ---------------------------------------------------------------- what programs may call
def pick(a, b, first):
    "A helper that branches"
    return a if first else b


def check(ok):
    "A helper that raises"
    if not ok: raise ValueError('no')


def positive(t): return bool(t.mean() > 0.01)


# ---------------------------------------------------------------- from a program to a class with a source
def source(parts, init=(), lines=(), args='x', methods=()):
    "The class that a program stands for, as text"
    built = [f'def __init__(self{"".join(", " + p for p in parts)}):', '    super().__init__()',
             *indented([f'self.{p} = {p}' for p in parts]), *indented(init), '']
    run = [f'def forward(self, {args}):', *indented(lines)]
    return '\n'.join(['class Block(nn.Module):', *indented([*built, *methods, *run]), ''])


def indented(lines): return ['    ' + i if i else i for i in lines]


_modules = {}


def program_class(text):
    "The class in `text`, which `inspect.getsource` finds; the oldest are forgotten"
    name = FILE + hashlib.sha1(text.encode()).hexdigest()[:12]
    if name not in _modules:
        file, mod = f'<{name}>', types.ModuleType(name)
        mod.__file__ = file
        mod.__dict__.update(torch=torch, np=np, nn=nn, F=F, random=random, pick=pick, check=check, positive=positive)
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        sys.modules[name] = _modules[name] = mod
        exec(compile(text, file, 'exec'), mod.__dict__)
        while len(_modules) > KEPT: _forget(next(iter(_modules)))
    return _modules[name].Block


def _forget(name):
    del _modules[name]
    sys.modules.pop(name, None), linecache.cache.pop(f'<{name}>', None)


# ---------------------------------------------------------------- inventing programs
class Coder:
    "Writes one forward for inputs of `shape`; with `seq` the channels are the last axis, the length the second"
    def __init__(self, rng, shape, seq=False, depth=0):
        self.rng, self.shape, self.seq, self.depth = rng, tuple(shape), seq, depth
        self.c = shape[-1] if seq else shape[1]
        self.parts, self.init, self.flags, self.n, self.nest = {}, [], [], 0, 0
        self.kinds = list(self.KINDS)

    def p(self, prob): return self.rng.random() < prob
    def one(self, *xs): return self.rng.choice(xs)

    # -- layers
    def add(self, stem, op, **kw):
        self.n += 1
        self.parts[f'{stem}{self.n}'] = (op, kw)
        return f'{stem}{self.n}'

    def layer_step(self):
        if self.seq or len(self.shape) == 2: return 'linear', dict(out=self.c, bias=self.p(0.5))
        kw = self.one(dict(k=1), dict(k=1), dict(k=3, pad=1), dict(k=3, pad=1, groups='dw'))
        return 'conv', dict(kw, out=self.c, bias=self.p(0.5))

    def old(self, op):
        "A layer that is there already, now and then"
        ok = [n for n, (o, _) in self.parts.items() if o in op]
        return self.rng.choice(ok) if ok and self.p(0.12) else None

    def layer(self):
        op, kw = self.layer_step()
        return self.old(('conv', 'linear')) or self.add('a', op, **kw)

    def norm(self): return self.old(('bn',)) or self.add('b', 'bn')

    def use(self, name, v='h'):
        "The call of a part, its channels brought to the second axis where it wants them there"
        turned = self.seq and self.parts[name][0] == 'bn'
        if turned: return f'self.{name}({v}.transpose(1, 2)).transpose(1, 2)'
        return f'self.{name}({v})'

    def pair(self):
        a, b = self.layer(), self.norm()
        return (a, b) if self.p(0.7) else (b, a)

    # -- questions
    def cond(self):
        if self.flags and self.p(0.35): return self.one(*self.flags)
        c = self.size() if self.p(0.35) else self.value()
        return f'not {c}' if self.p(0.1) else c

    def value(self):
        v, t = self.one('h', 'x', 'x', 'g'), self.one(0.011, 0.011, -0.021, 0.13, 0.41)
        far = round(t + 2, 2)
        return self.one(
            f'({v}.mean() > {t})', f'({v}.sum().item() > {t})', f'bool(({v} > {far}).any())', f'({v} > {t}).all()',
            f'(float({v}.flatten()[0]) > {t})', f'({v}.flatten().tolist()[0] > {t})', f'({v}.abs().max() > {far})',
            f'(int({v}.flatten()[0] * 9.7) % 2 == 1)', f'positive({v})', f'({v}.detach().numpy().mean() > {t})',
            f'(max({v}.flatten().tolist()) > {far})', f'(x.float().mean() > {t})',
            f'(sum(t.sum() for t in {v}) > {t})', f'(np.asarray({v}.detach()).max() > {far})')

    def size(self):
        n, k, v = self.shape[0], 1 if self.seq else -1, self.one('x', 'h')
        if len(self.shape) == 2 or self.p(0.3):
            return self.one(f'(len({v}) > {n})', f'({v}.shape[0] == {n})', f'({v}.size(0) % 2 == 0)')
        w = self.shape[k]
        return self.one(f'({v}.shape[{k}] > {w})', f'({v}.shape[{k}] < {w})', f'({v}.size({k}) % 2 == {w % 2})',
                        f'({v}.shape[{k}] == {w})', f'({v}.numel() // len({v}) > {self.numel()})',
                        f'bool({v}.shape[{k}] & 1)')

    def numel(self): return torch.Size(self.shape[1:]).numel()

    def count(self):
        k = 1 if self.seq else -1
        return self.one('int(h.mean() > 0.011) + 1', 'min(len(x), 3)', f'x.shape[{k}] % 3',
                        'int(x.abs().max() * 0.97) % 3', 'len(x[:2])')

    # -- statements: each gives lines
    def block(self, most=2):
        self.nest += 1
        lines = [i for _ in range(self.rng.randint(1, most)) for i in self.statement()]
        self.nest -= 1
        return indented(lines)

    def statement(self):
        kinds = [k for k in self.kinds if not (self.nest > 1 and k in self.NESTING)]
        return getattr(self, 's_' + self.rng.choices(kinds, [self.KINDS[k] for k in kinds])[0])()

    def s_layer(self): return [f'h = {self.use(self.layer())}']
    def s_norm(self): return [f'h = {self.use(self.norm())}']
    def s_pair(self): return [f'h = {self.use(n)}' for n in self.pair()]

    def s_math(self):
        return [self.one('h = F.relu(h)', 'h = h + g', 'h = h * 0.7', 'g = h', 'g = h', 'h = torch.tanh(g) + h',
                         'h, g = g, h', 'h = h.double()', 'h = h * ((x * 0.97).long() + 0.5)',
                         'h = h * (1 + (x.float() > 0.013).to(h.dtype))', 'h = h.mul_(0.7)', 'h += g')]

    def s_if(self):
        lines = [f'if {self.cond()}:', *self.block()]
        return lines + ['else:', *self.block()] if self.p(0.4) else lines

    def s_split(self):
        "A layer, and its neighbour on one way only"
        a, b = self.pair()
        between = [self.one('g = h', 'h = h + g')] if self.p(0.2) else []
        lines = [f'h = {self.use(a)}', *between, f'if {self.cond()}:', f'    h = {self.use(b)}']
        if self.p(0.7): return lines
        return lines + ['else:', f'    h = {self.one(self.use(self.layer()), self.use(self.norm()), "F.relu(h)")}']

    def s_keep(self):
        "What a layer gives is held somewhere, and read on one way only"
        (a, b), c = self.pair(), self.cond()
        hold, read = self.one(('held = {"h": [h]}', 'held["h"][0]'), ('self.held = [(h,)]', 'self.held[0][0]'),
                              ('held = (t for t in [h])', 'next(held)'), ('held = (lambda t: lambda: t)(h)', 'held()'),
                              ('held = h', 'held'))
        return [f'h = {self.use(a)}', hold, f'h = {self.use(b)}', f'if {c}: h = h + {read}']

    def s_draw(self):
        "A draw that training only would need"
        head = self.one('if random.random() < 1. or not self.training:', 'if not self.training or torch.rand(1) > 0.5:')
        return [head, *self.block(1)]

    def s_choice(self):
        "One of two without an `if`"
        a, b = self.pair()
        u, c, s, z = self.use(b), self.cond(), self.layer(), self.layer()
        how = self.one(
            f'{u} if {c} else h', f'{u} if {c} else g', f'pick({u}, h, {c})', f'[h, {u}][int({c})]',
            f'torch.stack([h, {u}])[int({c})]', f'(lambda t: {self.use(b, "t")} if {c} else t)(h)',
            f'(self.{s} if {c} else F.relu)(h)', f'{{True: self.{s}, False: torch.tanh}}[bool({c})](h)',
            f'next(m(h) for m, ok in ((self.{s}, {c}), (F.relu, True)) if ok)',
            f'getattr(self, "{s}" if {c} else "{z}")(h)')
        return [f'h = {self.use(a)}', f'h = {how}']

    def s_flag(self):
        "A question asked early: kept in a variable, an attribute, a list"
        v = self.one('f', 'f', 'self.flag', 'self.seen[0]', 'kept["f"]')
        if self.nest: return [f'f = {self.cond()}'] if self.flags else self.s_layer()
        ready = {'self.seen[0]': ['self.seen = [None]'], 'kept["f"]': ['kept = {}']}.get(v, [])
        lines = [*ready, f'{v} = {self.cond()}' if self.p(0.8) else f'{v} = None if {self.cond()} else 1']
        if v not in self.flags: self.flags.append(v)
        return lines

    def s_exit(self):
        block = self.block(1) if self.p(0.4) else []
        return [f'if {self.cond()}:', *block, f'    return {self.result}']

    def s_loop(self):
        if self.p(0.7): return [f'for _ in range({self.count()}):', *self.block(1)]
        return ['n = 0', f'while (n := n + 1) < 4 and {self.value()}:', *self.block(1), '    h = h * 0.5']

    def s_raise(self):
        "The other way only raises"
        axes = len(self.shape)
        return [self.one('assert not torch.isnan(h).any()', 'if h.abs().max() > 1e6: raise ValueError("too large")',
                         f'if x.shape[-1] != h.shape[-1] or h.dim() != {axes}: raise ValueError("shape")',
                         'assert len(x) < 1000', 'check(len(x) > 0)')]

    def s_try_(self):
        a, b = self.pair()
        tried = [f'check({self.cond()})', f'h = {self.use(b)}']
        return [f'h = {self.use(a)}', 'try:', *indented(tried), 'except ValueError:', *self.block(1)]

    def s_pad(self):
        "An amount of padding computed from the size, cut off again"
        if len(self.shape) == 2: return self.s_pair()
        (a, b), k = self.pair(), self.one(2, 3, 4)
        ax, axis, cut = ('0, 0, ', 1, ':, :x.shape[1]') if self.seq else ('', -1, '..., :x.shape[-1]')
        pad = f'h = F.pad(h, ({ax}0, -h.shape[{axis}] % {k}))'
        if self.p(0.3): pad = f'h = F.pad(h, ({ax}0, divmod(h.size({axis}), {k})[1]))'
        a, b = f'h = {self.use(a)}', f'h = {self.use(b)}'
        return [*self.one([a, pad, b], [pad, a, b], [a, b, pad]), f'h = h[{cut}]']

    def s_reach(self):
        "Into a child, past its forward"
        if self.seq: return self.s_list()
        steps = [self.layer_step(), ('bn', {})] if self.p(0.7) else [('bn', {}), self.layer_step()]
        s = 'self.' + self.add('s', 'seq', steps=steps)
        c = self.cond()
        return self.one([f'h = {s}(h) if {c} else {s}[0](h)'], [f'h = {s}[0](h)', f'if {c}: h = {s}[1](h)'],
                        [f'for m in {s}: h = m(h)'], [f'for m in {s}[int({c}):]: h = m(h)'],
                        [f'h = {s}(h)', f'if {c}: h = list({s}.children())[1](h)'],
                        [f'for m in {s}: h = m(h) if {c} else h'], [f'h = {s}(h)', f'h = h + {s}[0].weight.mean()'])

    def s_list(self):
        "A loop over a ModuleList, some of it named twice"
        layer, bn = self.layer_step(), ('bn', {})
        if self.seq: steps = [layer, self.layer_step()]
        else: steps = self.one([layer, bn], [layer, bn, self.layer_step()], [bn, layer])
        m, c = 'self.' + self.add('m', 'list', steps=steps), self.cond()
        if self.p(0.2): self.init.append(f'self.first{self.n} = {m}[0]')
        return self.one([f'for m in {m}: h = m(h)'], [f'for m in reversed({m}): h = m(h)'],
                        [f'for m in {m}[:len(x)]: h = m(h)'], [f'for m in {m}:', '    h = m(h)', f'    if {c}: break'],
                        [f'for i, m in enumerate({m}): h = m(h) if i == 0 or {c} else h'],
                        [f'for i in range({self.count()}): h = {m}[i % {len(steps)}](h)'])

    def s_alias(self):
        "A layer under a second name, or in a plain list"
        a, b = self.pair()
        i, c = self.n, self.cond()
        if self.p(0.5):
            self.init.append(f'self.again{i} = self.{b}')
            if self.parts[b][0] == 'bn' and self.seq: return self.s_pair()
            again = [f'h = {self.use(b)} if {c} else self.again{i}(h * 0.5)', f'if {c}: h = self.again{i}(h)']
            return [f'h = {self.use(a)}', self.one(*again)]
        if self.seq: return self.s_pair()
        self.init.append(f'self.plain{i} = [self.{a}, self.{b}]')
        return self.one([f'for m in self.plain{i}: h = m(h)'],
                        [f'h = self.plain{i}[0](h)', f'if {c}: h = self.plain{i}[1](h)'],
                        [f'h = self.plain{i}[int({c})](h)'], [f'h = {self.use(a)}', f'h = self.plain{i}[1](h)'])

    def s_sub(self):
        "A child that decides too: its answer comes back as a bool or None, or in an attribute; or it is told"
        if self.depth > 1: return self.s_if()
        sub = Coder(self.rng, self.shape, self.seq, self.depth + 1)
        how = self.one('call', 'back', 'back', 'told', 'told', 'attr', 'into')
        args = 'x, f=None' if how == 'told' else 'x'
        prog = tidy(sub.program(self.rng.randint(1, 3), pair=how == 'back', args=args, attr=how == 'attr'))
        s = 'self.' + self.add('c', 'code', **prog)
        if how == 'call': return [f'h = {s}(h)']
        if how == 'told': return [f'h = {s}(h, {self.cond()})']
        if how == 'into': return [f'h = {s}(h)', *self.into(s, sub)]
        if not self.nest and 'f' not in self.flags: self.flags.append('f')
        lines = [f'h, f = {s}(h)'] if how == 'back' else [f'h = {s}(h)', f'f = {s}.flag']
        if self.p(0.5): return lines
        return [*lines, f'if f{self.one("", "", " is None", " is not None")}:', *self.block(1)]

    def s_chain(self):
        "A child that decides between two layers of a Sequential"
        if self.seq or self.depth > 1: return self.s_split()
        sub = Coder(self.rng, self.shape, False, self.depth + 1)
        between = ('code', tidy(sub.program(self.rng.randint(1, 2))))
        ends = [self.layer_step(), ('bn', {})] if self.p(0.7) else [('bn', {}), self.layer_step()]
        return [f'h = self.{self.add("q", "seq", steps=[ends[0], between, ends[1]])}(h)']

    def into(self, s, sub):
        ok = [n for n, (op, _) in sub.parts.items() if op in ('conv', 'linear', *(() if self.seq else ('bn',)))]
        return [f'if {self.cond()}: h = {s}.{self.rng.choice(ok)}(h)'] if ok else []

    KINDS = dict(layer=2, norm=3, pair=4, math=3, split=4, choice=3, flag=4, exit=2, loop=2, pad=2, reach=2, list=2,
                 alias=2, sub=3, try_=1, keep=2, chain=2)
    KINDS['if'], KINDS['raise'], KINDS['draw'] = 4, 1, 0.3
    NESTING = ('if', 'loop', 'sub', 'try_', 'split', 'draw')

    # -- the whole
    def program(self, size, pair=False, args='x', attr=False, doors=()):
        "Options of a step `code`: `size` statements, what is asked among them"
        if attr and 'self.flag' not in self.flags: self.flags.append('self.flag')
        if pair or 'f=' in args: self.flags.append('f')
        self.flags += doors
        self.result = '(h, f)' if pair else 'h'
        lines = [i for _ in range(size) for i in self.statement()]
        if attr: lines.append(f'self.flag = {self.cond()}')
        if pair: lines.append(f'f = {self.one(self.cond(), self.cond(), f"None if {self.cond()} else 1")}')
        text, first = ' '.join(lines), ['h = g = x']
        if 'f=' not in args and re.search(r'\bf\b', text): first.append('f = None')
        if 'self.flag' in text: first.append('self.flag = None')
        lines = [*first, *lines, f'return {self.result}']
        return dict(parts=self.parts, init=self.init, lines=lines, args=args, seq=self.seq)


def bare(rng, shape, seq):
    "A whole model: options of its step, and its other doors as source of positional inputs, `x` an ordinary input"
    c = Coder(rng, shape, seq)
    door = rng.choice(['', '', 'fast', 'embed', 'kind'])
    fast = dict(args='x, fast=False', doors=['fast']) if door == 'fast' else {}
    prog = c.program(rng.randint(2, 5), **fast)
    if door == 'embed': return tidy(by_embed(c, prog)), ['None, x']
    if door == 'kind': return tidy(by_kind(c, prog)), ['x[0]'] if len(shape) > 2 else ['x[:, None, :]']
    return tidy(prog), ['x, True'] if fast else []


def by_embed(c, prog):
    "A method does the first layers, unless what they give is handed in"
    a, b = c.pair()
    first, second = [f'x = {c.use(a, "x")}'], [f'x = {c.use(b, "x")}']
    embed = ['def embed(self, x):', *indented(first + second if c.p(0.5) else first), '    return x', '']
    start = ['x = self.embed(x) if y is None else y', *(second if c.p(0.5) else [])]
    return dict(prog, args='x, y=None', methods=embed, lines=start + prog['lines'])


def by_kind(c, prog):
    "An input of other axes is taken too, one layer passed by"
    a, b = c.pair()
    more, fewer = ('dim() > 2', 'x = x.flatten(1)'), (f'dim() < {len(c.shape)}', 'x = x[None]')
    other, shaped = more if len(c.shape) == 2 else fewer
    first, second = f'x = {c.use(a, "x")}', f'x = {c.use(b, "x")}'
    start = [f'if x.{other}:', f'    {shaped}', f'    {first}', 'else:', f'    {first}', f'    {second}']
    return dict(prog, lines=start + prog['lines'])


# ---------------------------------------------------------------- cutting down
def simpler_program(kw):
    "Smaller programs: a line, a block, the head of a block, a part's own lines less"
    lines = kw['lines']
    for i, line in enumerate(lines):
        depth, end = _depth(line), i + 1
        while end < len(lines) and _depth(lines[end]) > depth: end += 1
        yield _less(kw, lines[:i] + lines[end:])
        if end > i + 1: yield _less(kw, lines[:i] + [s[4:] for s in lines[i + 1:end]] + lines[end:])
    init = kw.get('init', ())
    for i in range(len(init)): yield _less(dict(kw, init=init[:i] + init[i + 1:]), lines)
    for n, (op, opts) in kw['parts'].items():
        for s in _simpler_part(op, opts): yield dict(kw, parts={**kw['parts'], n: (op, s)})


def _simpler_part(op, opts):
    if op == 'code': yield from simpler_program(opts)
    if op == 'seq' and len(opts['steps']) > 1:
        for i in range(len(opts['steps'])): yield dict(opts, steps=opts['steps'][:i] + opts['steps'][i + 1:])


def tidy(kw): return _less(kw, kw['lines'])


def _depth(line): return len(line) - len(line.lstrip())


def _less(kw, lines):
    "`kw` with these lines, and only the parts that are named in them"
    text = '\n'.join([*lines, *kw.get('init', ()), *kw.get('methods', ())])
    parts = {n: p for n, p in kw['parts'].items() if re.search(rf'\b{n}\b', text)}
    return dict(kw, lines=lines, parts=parts)
