"""A run of the command line with a small smooth network, for tests of several processes.

The network sums up a picture in 2 x 2 cells and their squares. In the tests' pictures, a query is
the negative of its candidate: heads that both sides share find nothing, and a network that is
tuned towards the squares finds nearly all.
"""

import os
import signal
import sys

import numpy as np
import torch
from PIL import Image

CONFIG = """data: {images_root: images}
model: {backbone: polynomial, pretrained: false, levels: 0, image_size: 32, embed_dim: 12,
  share: all}
train: {epochs: 2, views: 0, promote: always, finetune_epochs: 2}
finetune: {batch_size: 32, augmentation: none, frozen: 0, decay: 1, average: 0, lr: 0.3}
"""


class Polynomial(torch.nn.Module):
    "Cells of a picture and their squares, each with a weight."

    def __init__(self):
        super().__init__()
        self.plain = torch.nn.Parameter(torch.ones(12))
        self.square = torch.nn.Parameter(torch.full((12,), 0.2))

    def forward(self, images):  # (b, 3, s, s) -> (b, 12)
        cells = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return self.plain * cells + self.square * cells**2


def make_polynomial(name, pretrained, image_size):
    prep = dict(size=image_size, mean=[0.5] * 3, std=[0.25] * 3, interpolation='bilinear')
    return Polynomial(), prep


def negatives(folder, count=96):
    "A project of pictures and their negatives."
    rng = np.random.default_rng(0)
    (folder / 'images').mkdir(parents=True)
    lines = ['query_path,cand_path']
    for number in range(count):
        cells = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
        for side, values in (('c', cells), ('q', 255 - cells)):
            picture = Image.fromarray(values).resize((32, 32), Image.Resampling.NEAREST)
            picture.save(folder / 'images' / f'{side}{number:03}.png')
        lines.append(f'q{number:03}.png,c{number:03}.png')
    (folder / 'pairs.csv').write_text('\n'.join(lines))
    (folder / 'config.yaml').write_text(CONFIG)
    return folder


def refuse_writing():
    "Let the helpers of a run fail where they write to its folder or lock it"
    from two_tower_vs import files, lock

    start = files._Replacement.__init__

    def checked(self, paths):
        assert 'two_tower_vs-' in str(paths[0]), f'a helper writes {paths[0]}'
        start(self, paths)

    def refused(out):
        raise AssertionError(f'a helper locks {out}')

    files._Replacement.__init__ = checked
    lock._acquired = refused


def kill_last_process(phase, epoch):
    "Let the last process of a run be killed after the first step of an epoch"
    from two_tower_vs import fit

    step = fit.Trainer.step
    run_phase = fit._trained
    now = []

    def noted(name, *args):
        now[:] = [name]
        return run_phase(name, *args)

    def killed(self, rows, at):
        loss = step(self, rows, at)
        if [*now, at] == [phase, epoch]:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    fit._trained = noted
    fit.Trainer.step = killed


def main():
    from two_tower_vs import backbones, cli
    from two_tower_vs.state import State

    backbones._maker = lambda name: make_polynomial
    State.seconds_between_saves = 0
    if os.environ.get('RANK', '0') != '0':
        refuse_writing()
    is_last = int(os.environ.get('RANK', 0)) == int(os.environ.get('WORLD_SIZE', 1)) - 1
    if is_last and 'KILL_IN' in os.environ:
        kill_last_process(os.environ['KILL_IN'], 2)
    return cli.main(sys.argv[1:])


if __name__ == '__main__':
    sys.exit(main())
