"""Probes of every checkpoint of a run: how far it rests on n-grams, and what it knows of the parse tree.

    python probe.py ngrams --run ../runs/PCFG_mlm/laptop
    python probe.py nonterminals --run ../runs/PCFG_mlm/laptop --training 2048 --heldout 512
    python probe.py bayes-optimal --run ../runs/PCFG_mlm/laptop

Writes probes/ngrams.json or probes/nonterminals.json in the run's directory (arguments other than the defaults become
part of the name), after each checkpoint, so that a probe that is cut off goes on.

Beside the checkpoints, ngrams.json has M_robust and M_close of the Bayes-optimal predictor, on the first few of the
same sentences. It knows the grammar and the sentence's length; a model from which masked positions are hidden is not
told the length, which matters for M_close. Likewise, nonterminals.json has the accuracy at each level of the most
probable ancestor given the whole sentence, which is 1 only if sentences have one parse; it is left out for a grammar
whose tokens are at different depths.

The third command looks at no checkpoint. probes/bayes_optimal.json has loss, accuracy and expected accuracy of the
Bayes-optimal predictor on the sentences that the run is evaluated on, the best values that any model can have there.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
import tyro

from common.arguments import require_at_least
from common.cli import command
from common.pcfg import probing
from common.pcfg.inside_outside import cavities
from common.pcfg.probing import (
    BayesOptimalArguments,
    NonterminalArguments,
    probe_checkpoints,
    spacing_of,
    with_bos,
)
from common.pcfg.sampler import sample
from common.pcfg.training import task_of_run
from common.probes.ngrams import NgramVariants, Predictor, Questions, bert_predictor, probe_ngrams
from common.probes.nonterminals import bert_encoder
from PCFG_mlm.bayes_optimal import bayes_optimal
from PCFG_mlm.data import MaskedTask
from PCFG_mlm.training import SETTING


@dataclass(frozen=True, kw_only=True)
class NgramArguments(probing.NgramArguments):
    """Arguments of `probe.py ngrams`."""

    exact: int = 64
    """Sentences for the Bayes-optimal values; 0 leaves these out."""


def ngrams(arguments: NgramArguments) -> None:
    """M_robust and M_close of every checkpoint that is not in the file yet."""
    require_at_least(0, arguments, "exact")
    task = task_of_run(arguments.run, SETTING)
    spacing = spacing_of(arguments, task)
    drawn = sample(task.grammar, arguments.seed, "probe", 0, arguments.sentences)
    sequences = with_bos(task, drawn)

    def variants(count: int, hide_masked: bool) -> NgramVariants:
        return NgramVariants(
            sequences[:count],
            task.mask,
            hide_masked,
            spacing=spacing,
            limit=arguments.limit,
            positions=arguments.positions or None,
            sizes=arguments.sizes,
            seed=arguments.seed,
        )

    shown = variants(arguments.sentences, task.hide_masked)
    columns, values = arguments.columns, arguments.values

    def optimal() -> object:
        exact = variants(arguments.exact, hide_masked=False)
        return asdict(probe_ngrams(exact, bayes_optimal_predictor(task), columns, values))

    probe_checkpoints(
        arguments,
        NgramArguments(run=arguments.run),
        "ngrams",
        SETTING,
        task,
        lambda model: asdict(probe_ngrams(shown, bert_predictor(model), columns, values)),
        {
            "spacing": lambda: spacing,
            **({"positions": lambda: shown.pairs.tolist()} if values else {}),
            **({"bayes_optimal": optimal} if arguments.exact else {}),
        },
    )


def nonterminals(arguments: NonterminalArguments) -> None:
    """Accuracy of the probe for nonterminals, level by level, on every checkpoint that is not in the file yet."""
    probing.nonterminals(arguments, SETTING, bert_encoder)


def evaluation(arguments: BayesOptimalArguments) -> None:
    """Loss and accuracy of the Bayes-optimal predictor on the run's evaluation sentences, unless the file is there."""
    probing.evaluation(arguments, SETTING, lambda task, batches: asdict(bayes_optimal(task, batches)))


def bayes_optimal_predictor(task: MaskedTask) -> Predictor:
    """The posterior of the token, given all visible ones and the sentence's length, by inside-outside.

    Questions must be whole: every position of the sentence in its column, attention kept from padding alone.
    """

    def predict(questions: Questions) -> torch.Tensor:
        evidence = []
        for row, length in zip(questions.input_ids.numpy(), questions.attention_mask.sum(dim=1).tolist(), strict=True):
            tokens = row[1:length]
            seen = np.eye(task.vocabulary, task.terminals)[tokens]
            evidence.append(np.where(tokens[:, None] == task.mask, 1.0, seen))
        columns = questions.columns.tolist()
        answers = zip(cavities(task.grammar, evidence), columns, strict=True)
        return torch.from_numpy(np.stack([others[column - 1] for (_, others), column in answers]))

    return predict


def main() -> None:
    """Parse the command line."""
    arguments = tyro.extras.subcommand_cli_from_dict(
        {"ngrams": NgramArguments, "nonterminals": NonterminalArguments, "bayes-optimal": BayesOptimalArguments},
        description=__doc__,
    )
    if isinstance(arguments, NgramArguments):
        ngrams(arguments)
    elif isinstance(arguments, NonterminalArguments):
        nonterminals(arguments)
    else:
        evaluation(arguments)


if __name__ == "__main__":
    command(main)
