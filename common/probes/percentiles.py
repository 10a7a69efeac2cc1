"""Percentiles as the files of probes have them."""

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (25, 50, 75, 90)


def percentiles_of(values: NDArray[np.floating]) -> dict[str, float]:
    """The `PERCENTILES` of some values, (values,), by their number."""
    return {str(q): float(np.percentile(values, q)) for q in PERCENTILES}
