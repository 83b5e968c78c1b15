"""Which features are kept, in exact decimal arithmetic."""

import math
from fractions import Fraction


def kept_features(rates, keep):
    r, keep = len(rates), Fraction(str(keep))
    start = math.floor(max(Fraction(0), Fraction("0.95") - keep) * r)
    stop = math.ceil(max(Fraction("0.95"), keep) * r)
    return sorted(sorted(range(r), key=lambda j: (rates[j], j))[start:stop])
