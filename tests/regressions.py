"Small nets that were once folded wrongly or refused, as `make fuzz` shrank them: name -> spec of `nets.build`."
def program(shape, parts, *lines, seq=False, init=(), **kw):
    "The spec of a model that is one program; `h` is its input at first"
    text = dict(parts=parts, init=list(init), lines=['h = x', *lines, 'return h'], seq=seq)
    spec = dict(seed=1, inputs=[shape], out=[1], fresh=5, bare=True, zero=0.) | kw
    return spec | dict(steps=[('code', (0,), dict(name='net', **text))])


CONV, BN, LIN = ('conv', dict(out=3, k=1)), ('bn', {}), ('linear', dict(out=3))
IMG, PAIR, LINEAR = (2, 3, 6, 6), dict(a=CONV, b=BN), dict(a=LIN, b=BN)

# ---------------------------------------------------------------- programs: what one forward does not show
WAYS = dict(
    called_again_on_larger_images=program(IMG, PAIR, 'h = self.b(self.a(h))', 'if h.shape[-1] > 6: h = self.a(h)'),
    called_again_on_longer_sequences=program(
        (2, 4, 3), LINEAR, 'h = self.b(self.a(h).transpose(1, 2)).transpose(1, 2)', 'if h.shape[1] > 4: h = self.a(h)',
        seq=True),
    left_out_on_longer_sequences=program(
        (2, 5, 3), LINEAR, 'if not (x.shape[1] > 5): h = self.a(h)', 'h = self.b(h.transpose(1, 2)).transpose(1, 2)',
        seq=True),
    reached_into_as_a_list_of_children=program(
        IMG, dict(s=('seq', dict(steps=[CONV, BN]))), 'h = self.s(h)',
        'if x.mean() > 0.1: h = list(self.s.children())[1](h)'),
    layer_of_a_child_called_again=program(
        (3, 3, 6, 6), dict(s=('seq', dict(steps=[BN, CONV]))), 'h = self.s(h)',
        'if h.size(0) % 2 == 0: h = list(self.s.children())[1](h)', fresh=4),
    held_in_a_generator=program(
        IMG, PAIR, 'h = self.a(h)', 'held = (t for t in [h])', 'h = self.b(h)',
        'if x.mean() > 0.1: h = h + next(held)'),
    held_in_a_closure_of_a_closure=program(
        IMG, PAIR, 'h = self.a(h)', 'held = (lambda t: lambda: t)(h)', 'h = self.b(h)',
        'if x.abs().max() > 9: h = h + held()'),
    one_of_two_in_a_generator=program(
        IMG, PAIR, 'h = self.b(self.a(h))',
        'h = next(m(h) for m, ok in ((self.a, x.numel() // len(x) > 108), (F.relu, True)) if ok)'),
    chosen_from_a_stack=program(
        IMG, PAIR, 'h = self.a(h)', 'h = torch.stack([h, self.b(h)])[int(x.mean() < 0.1)]'),
    chosen_by_name=program(
        IMG, PAIR | dict(c=CONV), 'h = getattr(self, "c" if x.shape[-1] & 1 else "a")(h)', 'h = self.b(h)'),
    in_a_plain_list=program(
        IMG, PAIR, 'h = self.a(h)', 'h = self.plain[1](h)', init=['self.plain = [self.a, self.b]']),
    draws_in_eval=program(
        IMG, PAIR, 'if random.random() < 1. or not self.training: h = self.a(h)', 'h = self.b(h)'))

REGRESSIONS = WAYS | dict(
    size_asked_on_another_way_only=dict(seed=54800, inputs=[(3, 2, 4, 4)], out=[1], fresh=4, bare=True, steps=[
        ('code', (0,), dict(name='net', args='x', seq=False, init=[], parts=dict(
            c1=('code', dict(parts={}, init=[], lines=['h = g = x', 'return h'], args='x', seq=False)),
            q2=('seq', dict(steps=[('code', dict(init=[], args='x', seq=False,
                parts=dict(a1=('conv', dict(k=1, out=2, bias=True)), b2=BN, q3=('seq', dict(steps=[
                    ('conv', dict(k=1, out=2, bias=False)),
                    ('code', dict(parts=dict(a1=('conv', dict(k=1, out=2, bias=True)), b2=BN, b3=BN), init=[], args='x', seq=False, lines=[
                        'h = g = x', 'h = self.a1(h)', 'h = self.b2(h)', 'for _ in range(min(len(x), 3)):', '    h = self.b3(h)', 'return h'])),
                    BN]))),
                lines=['h = g = x', 'h = self.a1(h)', 'if (x.float().mean() > -0.021):', '    h = self.b2(h)', 'h = self.q3(h)', 'return h']))])),
            b4=BN),
            lines=['h = g = x', 'if (float(g.flatten()[0]) > 0.13):', '    h = self.c1(h)', 'else:', '    h = self.q2(h)',
                   'if (x.size(0) % 2 == 0):', '    h = self.b4(h)', 'return h']))]),
    undone_with_too_few_digits=dict(seed=97801, inputs=[(3, 3, 8, 8)], out=[9, 13], struct='tuple', fresh=5, neg=0.0, tiny=True, steps=[
        ('conv', (0,), {'name': 'enc.sh1', 'out': 4, 'k': 1}), ('bn', (1,), {'name': 'shbn2'}), ('conv', (0,), {'name': 'enc.sh1', 'out': 4, 'k': 1}),
        ('convt', (3,), {'out': 4, 'k': 1, 'bias': True, 'stride': 1, 'groups': 2, 'name': 'enc.convt5'}),
        ('conv', (3,), {'out': 2, 'k': 1, 'bias': False, 'groups': 'dw', 'name': 'dec.conv6'}), ('bn', (1,), {'name': 'bn8'}),
        ('act', (6,), {'kind': 'leaky', 'inplace': False, 'name': 'act9'}), ('conv', (7,), {'out': 4, 'k': 1, 'bias': False, 'name': 'conv10'}),
        ('bn', (8,), {'name': 'enc.bn11'}), ('conv', (8,), {'name': 'enc.lp12', 'out': 4, 'k': 1}), ('bn', (10,), {'name': 'lpbn13'}),
        ('loop', (11,), {'names': ['lpbn13']}), ('math', (12,), {'how': 'softmax'})]),
    expanded_and_written_in_place=dict(seed=54600, inputs=[(2, 2, 4, 4, 4)], out=[4], fresh=4, steps=[
        ('conv', (0,), {'name': 'conv1'}), ('copy', (1,), {'how': 'expand_as'}), ('bn', (2,), {'name': 'dec.inner.bn2'}), ('act', (3,), {'inplace': True, 'name': 'dec.act3'})]),
    half_of_its_input_mixes_channels=dict(seed=63800, inputs=[(1, 6, 4, 4, 4)], out=[7], fresh=5, steps=[
        ('conv', (0,), {'name': 'enc.conv1'}), ('mean', (1,), {'dims': (0, 1), 'keep': True}), ('pick', (2,), {}), ('pick', (2,), {}),
        ('conv', (3,), {'k': 1, 'name': 'enc.conv5'}), ('cat', (5, 4), {}), ('bn', (6,), {'name': 'enc.bn6'})]))
