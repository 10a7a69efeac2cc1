"""Probe every checkpoint of a run: how much it relies on n-grams, and what it knows about the parse tree.

    python probe.py ngrams --run ../runs/PCFG_mlm/laptop
    python probe.py nonterminals --run ../runs/PCFG_mlm/laptop --training 2048 --heldout 512
    python probe.py windows --run ../runs/PCFG_mlm/laptop
    python probe.py bayes-optimal --run ../runs/PCFG_mlm/laptop
    python probe.py ngrams --run teachers/theirs --grammar cfg3b

Writes probes/ngrams.json, nonterminals.json or windows.json in the run's directory (arguments other than the defaults
become part of the name) after each checkpoint; rerun the command to resume. For the checkpoints of a teacher that is
not a run, give its task; the file is then in runs/PCFG_mlm/probes-of-<teacher>/, or --out.

Beside the checkpoints, ngrams.json has M_robust and M_close of the Bayes-optimal predictor, on the first few of the
same sentences. It knows the grammar and the sentence's length; a model whose masked positions are hidden does not know
the length, which matters for M_close. Likewise, nonterminals.json has the accuracy at each level of the most probable
ancestor given the whole sentence, which is 1 only if sentences have one parse; it is left out for a grammar whose
tokens are at different depths.

windows.json has KL(posterior || model) in nats for posteriors given only a window of the input: the n tokens around a
position (`tokens`; null for the whole input), where the window is, and the sentence's length. It is a mean over
labelled positions of the run's evaluation sentences. A model that predicts as the best n-gram model would has 0 for
that n. Beside the checkpoints are the expected loss of each posterior (`entropy`) and its loss and accuracy on these
positions.

`bayes-optimal` needs no checkpoint. probes/bayes_optimal.json has loss, accuracy and expected accuracy of the
Bayes-optimal predictor on the run's evaluation sentences, the best values that any model can reach there.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import tyro

from common.arguments import require_at_least
from common.cli import command, command_line
from common.errors import UserError
from PCFG_mlm.arguments import BayesOptimalArguments, NgramArguments, NonterminalArguments, WindowArguments

PROBES: dict[str, Callable[..., Any]] = {
    "ngrams": NgramArguments,
    "nonterminals": NonterminalArguments,
    "windows": WindowArguments,
    "bayes-optimal": BayesOptimalArguments,
}


def probe(
    arguments: NgramArguments | NonterminalArguments | WindowArguments | BayesOptimalArguments, argv: Sequence[str] = ()
) -> None:
    """Measure what is not in the probe's file yet."""
    # these take seconds to import, and `command` prepares the process first
    from common.pcfg import probing
    from common.pcfg.windows import windows
    from common.probes.ngrams import NgramVariants, Predictor, bert_predictor
    from common.probes.nonterminals import bert_encoder
    from PCFG_mlm.bayes_optimal import bayes_optimal, bayes_optimal_predictor, window_posteriors_of_label
    from PCFG_mlm.training import SETTING

    match arguments:
        case NgramArguments():
            require_at_least(0, arguments, "exact")

            def variants(task: Any, sequences: Sequence[Any], **options: Any) -> NgramVariants:
                return NgramVariants(sequences, task.mask, task.hide_masked, **options)

            def optimal(task: Any, sequences: Sequence[Any], **options: Any) -> tuple[NgramVariants, Predictor]:
                few = sequences[: arguments.exact]
                return NgramVariants(few, task.mask, hide_masked=False, **options), bayes_optimal_predictor(task)

            exact = optimal if arguments.exact else None
            probing.ngrams(arguments, argv, SETTING, variants, bert_predictor, exact)
        case NonterminalArguments():
            probing.nonterminals(arguments, argv, SETTING, bert_encoder)
        case WindowArguments():
            if even := [size for size in arguments.sizes if size % 2 == 0]:
                raise UserError(f"--sizes must be odd, as windows have as many tokens on each side; got {even[0]}")
            windows(arguments, argv, SETTING, window_posteriors_of_label)
        case BayesOptimalArguments():
            probing.bayes_optimal(arguments, argv, SETTING, lambda *inputs: asdict(bayes_optimal(*inputs)))


def main() -> None:
    """Parse the command line."""
    probe(tyro.extras.subcommand_cli_from_dict(PROBES, description=__doc__), command_line(probe))


if __name__ == "__main__":
    command(main)
