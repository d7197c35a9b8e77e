"""Every number of config.yaml, at values that nobody means, and at both ends of what is allowed."""

import inspect
import math

import pytest
import yaml

from two_tower_vs.config import read_config, schema, sections
from two_tower_vs.errors import InputError
from two_tower_vs.settings import Several, bounds_of

NUMBERS = [
    (section, key)
    for section, keys in schema().items()
    for key, p in keys.items()
    if p.annotation in (int, float, list)
]
ODD = [
    '.nan',
    '.inf',
    '-.inf',
    '-1',
    '-0.0',
    '0',
    '1e308',
    "'1e400'",
    'true',
    'text',
    '[]',
    '{}',
    '1000000000000000',
    '9' * 4000,
    '[.nan]',
    '[0]',
    '[-1]',
    '[1000000000]',
    '[1, .inf]',
    '[1, text]',
    '[[1]]',
    '[true]',
]


def bound_of(section, key):
    return bounds_of(sections()[section])[key]


def ends_of(bound):
    "The lowest and the highest value that a bound allows"
    if isinstance(bound, Several):
        low, high = ends_of(bound.each)
        return [low], [high]
    if bound.kind.__name__ == 'Integral':
        return bound.low, bound.high
    low = math.nextafter(bound.low, math.inf) if bound.above else float(bound.low)
    high = math.nextafter(bound.high, -math.inf) if bound.below else float(bound.high)
    return low, high


def test_every_number_has_a_bound():
    missing = [
        (section, key) for section, key in NUMBERS if key not in bounds_of(sections()[section])
    ]
    assert not missing
    assert len(NUMBERS) > 40


def refusal(path):
    "What read_config says; None if it accepts the file"
    try:
        read_config(path)
    except InputError as e:
        return str(e)


# What zero means something for; every other value of ODD is refused everywhere.
ZERO = {
    'levels',
    'near',
    'cosine',
    'min_side',
    'turns',
    'epochs',
    'weight_decay',
    'views',
    'val_frac',
    'absent',
    'finetune_epochs',
    'frozen',
    'hard_negatives',
    'full_size',
    'average',
    'margin',
    'port',
    'per_address',
    'weight',
}


def allowed(bound, key, text):
    if text == '[]':
        return key == 'matryoshka'
    if text == '-0.0':
        return key in ZERO and bound.kind.__name__ == 'Real'
    return text == '0' and key in ZERO


@pytest.mark.parametrize('section,key', NUMBERS)
def test_odd_values_are_accepted_or_refused_with_the_range(section, key, tmp_path):
    bound = bound_of(section, key)
    config = tmp_path / 'config.yaml'
    for text in ODD:
        config.write_text(f'{section}: {{{key}: {text}}}')
        said = refusal(config)
        if allowed(bound, key, text):
            assert said is None, (text, said)
        else:
            assert said and said.startswith(f'{config}: {section}.{key} is '), (text, said)
            assert bound.text() in said, (text, said)
            assert '\n' not in said and len(said) < 500


@pytest.mark.parametrize('section,key', NUMBERS)
def test_both_ends_are_accepted(section, key, tmp_path):
    config = tmp_path / 'config.yaml'
    for value in ends_of(bound_of(section, key)):
        config.write_text(yaml.safe_dump({section: {key: value}}))
        assert read_config(config)[section][key] == value


def refused_values():
    "Whatever the bound"
    return [
        math.nan,
        math.inf,
        -math.inf,
        -1e308,
        1e308,
        '1e400',
        '1',
        True,
        10**400,
        [math.nan],
        [-1],
        [True],
        {},
        b'1',
    ]


def arguments_of(f):
    "None for each parameter that has no default"
    required = [
        name
        for name, p in inspect.signature(f).parameters.items()
        if p.default is p.empty and name != 'self'
    ]
    return dict.fromkeys(required)


@pytest.mark.parametrize('section,key', NUMBERS)
def test_the_api_refuses_what_the_config_refuses(section, key):
    f = sections()[section]
    bound = bound_of(section, key)
    for value in refused_values():
        with pytest.raises(InputError) as e:
            f(**{**arguments_of(f), **SPARE.get(section, {}), key: value})
        assert f'{f.__name__}: {key} is ' in str(e.value)
        assert bound.text() in str(e.value)


SPARE = {'serve': dict(topk=10)}  # parameters without a default that have a bound


@pytest.mark.parametrize('section', sections())
def test_none_is_refused_unless_it_is_the_default(section):
    f = sections()[section]
    parameters = inspect.signature(f).parameters
    for key, bound in bounds_of(f).items():
        if bound.optional or parameters[key].default is None:
            continue
        with pytest.raises(InputError, match=f'{key} is empty'):
            f(**{**arguments_of(f), **SPARE.get(section, {}), key: None})


def test_the_issue_s_own_list_from_the_command_line(fresh, cli):
    wrong = [
        'train: {temperature: 0}',
        'train: {lr: -0.1}',
        'train: {lr: .nan}',
        'train: {weight_decay: -1}',
        'train: {val_frac: 3}',
        'embed: {batch_size: -1}',
        'finetune: {hard_negatives: -3}',
        'finetune: {decay: -1}',
        'finetune: {size: 0}',
        'embed: {batch_size: 1000000000000}',
        'eval: {k: [1, .nan]}',
        'eval: {k: []}',
        'seed: -1',
        'seed: true',
        'seed: .nan',
        'train: 0',
        'out: 3',
    ]
    for text in wrong:
        (fresh / 'wrong.yaml').write_text(text)
        status, _, err = cli('--config', fresh / 'wrong.yaml', '--stage', 'train')
        assert status == 2, text
        assert len(err.splitlines()) == 1 and err.startswith('two_tower_vs: '), err


@pytest.mark.parametrize(
    'flags',
    [
        ('--k', '0'),
        ('--k', '1', '-5'),
        ('--topk', '0'),
        ('--topk', str(10**12)),
        ('--port', '-1'),
        ('--port', '65536'),
    ],
)
def test_flags_have_the_same_bounds(fresh, cli, flags):
    status, _, err = cli('--config', fresh / 'config.yaml', '--stage', 'check', *flags)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert f'{flags[0]} is ' in err and 'Use a' in err


def test_comments_of_parameters_survive_the_table():
    from fastcore.docments import docments

    from two_tower_vs.finetune import finetune
    from two_tower_vs.train import train

    assert docments(finetune)['chunk'].startswith('pictures whose activations')
    assert 'lr' in inspect.signature(train).parameters
    assert train.__doc__.startswith('Train two towers')
