"""Probe every checkpoint of a run: n-grams it relies on, what it knows about the parse tree, what it generates.

    python probe.py ngrams --run ../runs/PCFG_autoregressive/laptop
    python probe.py nonterminals --run ../runs/PCFG_autoregressive/laptop --training 2048 --heldout 512
    python probe.py generation --run ../runs/PCFG_autoregressive/laptop
    python probe.py windows --run ../runs/PCFG_autoregressive/laptop
    python probe.py bayes-optimal --run ../runs/PCFG_autoregressive/laptop
    python probe.py ngrams --run teachers/theirs --grammar cfg3b

Writes probes/ngrams.json, nonterminals.json, generation.json or windows.json in the run's directory (arguments other
than the defaults become part of the name) after each checkpoint; rerun the command to resume. For the checkpoints of a
teacher that is not a run, give its task; the file is then in runs/PCFG_autoregressive/probes-of-<teacher>/, or --out.

In ngrams.json the n-gram of a token is the token and the n - 1 tokens before it, see common/probes/ngrams.py. Beside
the checkpoints, nonterminals.json has the accuracy at each level of the most probable ancestor given the whole
sentence, which is 1 only if sentences have one parse; it is left out for a grammar whose tokens are at different
depths. generation.json has the fraction of continuations of given prefixes that the grammar accepts.

windows.json has KL(posterior || model) in nats for posteriors of a token given its position and the n - 1 tokens before
it (`tokens` is n; null for all tokens before it), as a mean over labelled tokens of the run's evaluation sentences. A
model that predicts as the best n-gram model would has 0 for that n. With labels at one depth of the tree, that the
token has a label is given as well. Beside the checkpoints are the expected loss of each posterior (`entropy`) and its
loss and accuracy on these tokens.

`bayes-optimal` needs no checkpoint. probes/bayes_optimal.json has loss, accuracy and expected accuracy of the
Bayes-optimal predictor on the run's evaluation sentences, the best values that any model can reach there. With labels
at one depth of the tree, `without_label` has loss and accuracy, at the same tokens, of a predictor that does not know
where labels are. Its expected accuracy is left out, as labelled tokens are not a random sample of all tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tyro

from common.cli import command, command_line
from PCFG_autoregressive.arguments import (
    BayesOptimalArguments,
    GenerationArguments,
    NgramArguments,
    NonterminalArguments,
    WindowArguments,
)

PROBES: dict[str, Callable[..., Any]] = {
    "ngrams": NgramArguments,
    "nonterminals": NonterminalArguments,
    "generation": GenerationArguments,
    "windows": WindowArguments,
    "bayes-optimal": BayesOptimalArguments,
}


def probe(
    arguments: NgramArguments | NonterminalArguments | GenerationArguments | WindowArguments | BayesOptimalArguments,
    argv: Sequence[str] = (),
) -> None:
    """Measure what is not in the probe's file yet."""
    # these take seconds to import, and `command` prepares the process first
    import numpy as np

    from common.pcfg import probing
    from common.pcfg.windows import windows
    from common.probes.ngrams import CausalNgramVariants, gpt2_predictor
    from common.probes.nonterminals import gpt2_encoder
    from PCFG_autoregressive.bayes_optimal import bayes_optimal_values, window_posteriors_of_label
    from PCFG_autoregressive.generation import probe_generation
    from PCFG_autoregressive.training import SETTING

    match arguments:
        case NgramArguments():

            def variants(task: Any, sequences: Sequence[Any], **options: Any) -> CausalNgramVariants:
                return CausalNgramVariants(sequences, np.arange(task.terminals), **options)

            probing.ngrams(arguments, argv, SETTING, variants, gpt2_predictor)
        case NonterminalArguments():
            probing.nonterminals(arguments, argv, SETTING, gpt2_encoder)
        case GenerationArguments():
            probe_generation(arguments, argv, SETTING)
        case WindowArguments():
            windows(arguments, argv, SETTING, window_posteriors_of_label)
        case BayesOptimalArguments():
            probing.bayes_optimal(arguments, argv, SETTING, bayes_optimal_values)


def main() -> None:
    """Parse the command line."""
    probe(tyro.extras.subcommand_cli_from_dict(PROBES, description=__doc__), command_line(probe))


if __name__ == "__main__":
    command(main)
