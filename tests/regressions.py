"Small nets that were once folded wrongly or refused, as `make fuzz` shrank them: name -> spec of `nets.build`."
def program(shape, parts, *lines, seq=False, **kw):
    "The spec of a model that is one program; `h` is its input at first"
    text = dict(parts=parts, lines=['h = x', *lines, 'return h'], args='x', seq=seq)
    spec = dict(seed=1, inputs=[shape], out=[1], fresh=5, bare=True, zero=0.) | kw
    return spec | dict(steps=[('code', (0,), dict(name='net', **text))])


CONV, BN, LIN = ('conv', dict(out=3, k=1)), ('bn', {}), ('linear', dict(out=3))
IMG, PAIR, LINEAR = (2, 3, 6, 6), dict(a=CONV, b=BN), dict(a=LIN, b=BN)
TURNED = 'h = self.b(h.transpose(1, 2)).transpose(1, 2)'

# ---------------------------------------------------------------- programs: what one forward does not show
WAYS = dict(
    called_again_on_another_way=program(IMG, PAIR, 'h = self.b(self.a(h))', 'if h.mean() > 0.1: h = self.a(h)'),
    left_out_on_another_way=program(
        (2, 5, 3), LINEAR, 'if not (x.mean() > 0.1): h = self.a(h)', TURNED, seq=True),
    held_in_a_generator=program(
        IMG, PAIR, 'h = self.a(h)', 'held = (t for t in [h])', 'h = self.b(h)',
        'if x.mean() > 0.1: h = h + next(held)'),
    held_in_a_closure_of_a_closure=program(
        IMG, PAIR, 'h = self.a(h)', 'held = (lambda t: lambda: t)(h)', 'h = self.b(h)',
        'if x.abs().max() > 9: h = h + held()'),
    one_of_two_in_a_generator=program(
        IMG, PAIR, 'h = self.b(self.a(h))', 'h = next(m(h) for m, ok in ((self.a, x.mean() > 0.1), (F.relu, True)) if ok)'),
    chosen_from_a_stack=program(
        IMG, PAIR, 'h = self.a(h)', 'h = torch.stack([h, self.b(h)])[int(x.mean() < 0.1)]'),
    chosen_by_name=program(
        IMG, PAIR | dict(c=CONV), 'h = getattr(self, "c" if x.mean() > 0.1 else "a")(h)', 'h = self.b(h)'),
    draws_in_eval=program(
        IMG, PAIR, 'if random.random() < 1. or not self.training: h = self.a(h)', 'h = self.b(h)'))

REGRESSIONS = WAYS | dict(
    undone_with_too_few_digits=dict(
        seed=97801, inputs=[(3, 3, 8, 8)], out=[9, 13], struct='tuple', fresh=5, neg=0.0, tiny=True, steps=[
            ('conv', (0,), dict(name='enc.sh1', out=4, k=1)), ('bn', (1,), dict(name='shbn2')),
            ('conv', (0,), dict(name='enc.sh1', out=4, k=1)), ('convt', (3,), dict(out=4, k=1, groups=2, name='enc.convt5')),
            ('conv', (3,), dict(out=2, k=1, bias=False, groups='dw', name='dec.conv6')), ('bn', (1,), dict(name='bn8')),
            ('mod', (6,), dict(code='nn.LeakyReLU()', name='act9')), ('conv', (7,), dict(out=4, k=1, bias=False, name='conv10')),
            ('bn', (8,), dict(name='enc.bn11')), ('conv', (8,), dict(name='enc.lp12', out=4, k=1)),
            ('bn', (10,), dict(name='lpbn13')), ('f', (11,), dict(code="net.get('lpbn13')(a)")),
            ('f', (12,), dict(code='a.softmax(1)'))]),
    expanded_and_written_in_place=dict(seed=54600, inputs=[(2, 2, 4, 4, 4)], out=[4], fresh=4, steps=[
        ('conv', (0,), dict(name='conv1')), ('f', (1,), dict(code='a.mean((2, 3, 4), keepdim=True).expand_as(a)')),
        ('bn', (2,), dict(name='dec.inner.bn2')), ('mod', (3,), dict(code='nn.ReLU(inplace=True)', name='dec.act3'))]),
    half_of_its_input_mixes_channels=dict(seed=63800, inputs=[(1, 6, 4, 4, 4)], out=[7], fresh=5, steps=[
        ('conv', (0,), dict(name='enc.conv1')), ('f', (1,), dict(code='a.mean((0, 1), keepdim=True)')),
        ('f', (2,), dict(code='a[0]')), ('f', (2,), dict(code='a[0]')), ('conv', (3,), dict(k=1, name='enc.conv5')),
        ('f', (5, 4), dict(code='torch.cat(xs, 1)')), ('bn', (6,), dict(name='enc.bn6'))]))
