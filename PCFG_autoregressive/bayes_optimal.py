"""The Bayes-optimal predictor of next tokens: no model can have a lower expected loss or a higher expected accuracy.

It knows the grammar and the tokens before, and gives the exact posterior of the next one, by prefix probabilities. Where
labels are only on tokens that close a span at some depth of the tree, a model that is trained on these alone is told
by the mere presence of a label that a span closes, which the predictor is not; where the label is, is however
no part of a model's input. So its posterior given a label at the position, which is what such a model learns, may be
better than this one at these positions; this one is the ceiling for a model of all tokens.
"""

from collections.abc import Sequence

import numpy as np

from common.pcfg.bayes_optimal import BayesOptimal, means
from common.pcfg.prefix import posteriors_of_all
from PCFG_autoregressive.data import Batch, NextTokenTask, sentences_of
