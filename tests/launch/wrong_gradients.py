"""`triaxial` with an engine whose gradients are wrong on two data ranks; tests of `triaxial parity` must see it.

    WRONG_GRADIENTS="PATTERN FACTOR" python wrong_gradients.py parity ...

multiplies the gradients of the parameters that match PATTERN by FACTOR. The ranks are forked from a process that has
imported this module, so their engine is wrong too.
"""

import os
import sys
from fnmatch import fnmatch

import launch.parity.ranks
from launch.main import main
from parallel.engines.native import NativeEngine

PATTERN, FACTOR = os.environ["WRONG_GRADIENTS"].split()
right_forward_backward = NativeEngine.forward_backward


def wrong_forward_backward(self, batch):
    right_forward_backward(self, batch)
    if self.data_size == 2:
        for name, parameter in self.parameters:
            if fnmatch(name, PATTERN):
                parameter.grad.mul_(float(FACTOR))


NativeEngine.forward_backward = wrong_forward_backward

if __name__ == "__main__":
    launch.parity.ranks.PRELOAD = (*launch.parity.ranks.PRELOAD, "wrong_gradients")
    sys.exit(main(sys.argv[1:]))
