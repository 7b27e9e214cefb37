"""A file with a function whose source is asked for."""

import math

X = math.pi


def kernel(x):
    return x + 1  # the body
