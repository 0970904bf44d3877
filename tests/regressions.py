"Small nets that were once folded wrongly or refused, as `make fuzz` shrank them: name -> spec of `nets.build`."
REGRESSIONS = dict(
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
