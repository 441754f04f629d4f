"""Randomness that depends on the place in the run alone."""

import random

import numpy as np
import torch


def seed_place(seed: int, *place: int) -> None:
    """Seed torch (CPU), numpy and random from a seed and a place in the run, such as (epoch, sample).

    A draw then does not depend on what was drawn before, by which worker or in which process, and a run that was
    stopped and resumed draws what it would have drawn.
    """
    state = np.random.SeedSequence((seed, *place)).generate_state(3, np.uint64)
    # not torch.manual_seed: where CUDA is not in use yet, that formats a stack trace at every call
    torch.default_generator.manual_seed(int(state[0]))
    np.random.seed(int(state[1]) & 0xFFFFFFFF)
    random.seed(int(state[2]))
