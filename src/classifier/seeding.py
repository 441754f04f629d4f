"""Randomness that depends on the place in the run alone."""

import hashlib
import random
import struct

import numpy as np
import torch


def seed_place(seed: int, *place: int) -> None:
    """Seed torch (CPU), numpy and random from a seed and a place in the run, such as (epoch, sample).

    A draw then does not depend on what was drawn before, by which worker or in which process, and a run that was
    stopped and resumed draws what it would have drawn.
    """
    # a hash, as numpy's SeedSequence costs ten times as much
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=20).digest()
    state = struct.unpack("<QQL", digest)
    # not torch.manual_seed: where CUDA is not in use yet, that formats a stack trace at every call
    torch.default_generator.manual_seed(state[0])
    random.seed(state[1])
    np.random.seed(state[2])
