"""Probes of every checkpoint of a run: how far it rests on n-grams, what it knows of the parse tree, what it writes.

    python probe.py ngrams --run ../runs/PCFG_autoregressive/laptop
    python probe.py nonterminals --run ../runs/PCFG_autoregressive/laptop --training 2048 --heldout 512
    python probe.py generation --run ../runs/PCFG_autoregressive/laptop
    python probe.py bayes-optimal --run ../runs/PCFG_autoregressive/laptop

Writes probes/ngrams.json, probes/nonterminals.json or probes/generation.json in the run's directory (arguments other
than the defaults become part of the name), after each checkpoint, so that a probe that is cut off goes on.

In ngrams.json the n-gram of a token is the token and the n - 1 tokens before it, see common/probes/ngrams.py. Beside
the checkpoints, nonterminals.json has the accuracy at each level of the most probable ancestor given the whole
sentence, which is 1 only if sentences have one parse; it is left out for a grammar whose tokens are at different
depths. generation.json has the share of continuations of given beginnings that the grammar accepts.

The last command looks at no checkpoint. probes/bayes_optimal.json has loss, accuracy and expected accuracy of the
Bayes-optimal predictor on the sentences that the run is evaluated on, the best values that any model can have there;
with labels at one depth of the tree, `without_label` has loss and accuracy, at the same tokens, of a predictor that is
not told where labels are. Its expected accuracy is left out: tokens that have a label are no fair sample to it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tyro
from transformers import GPT2LMHeadModel

from common.arguments import require_at_least, require_seed
from common.cli import command
from common.errors import UserError
from common.pcfg import probing
from common.pcfg.probing import (
    BayesOptimalArguments,
    NgramArguments,
    NonterminalArguments,
    probe_checkpoints,
    spacing_of,
    with_bos,
)
from common.pcfg.sampler import sample
from common.pcfg.training import task_of_run
from common.probes.ngrams import CausalNgramVariants, gpt2_predictor, probe_ngrams
from common.probes.nonterminals import gpt2_encoder
from PCFG_autoregressive.bayes_optimal import bayes_optimal
from PCFG_autoregressive.data import Batch, NextTokenTask
from PCFG_autoregressive.generation import acceptance, beginnings, continuations
from PCFG_autoregressive.training import SETTING

GIVEN = 50


@dataclass(frozen=True, kw_only=True)
class GenerationArguments(probing.Arguments):
    """Arguments of `probe.py generation`."""

    continuations: int = 1000
    """Fresh sentences whose beginnings the model goes on with."""
    given: int | None = None
    """Tokens of each that the model is given; by default 50, or half the expected sentence if that is less."""
    tokens: int = 100
    """The most tokens that it writes."""
    batch_size: int = 250
    """Continuations that are written together."""


def ngrams(arguments: NgramArguments) -> None:
    """M_robust and M_close of every checkpoint that is not in the file yet."""
    task = task_of_run(arguments.run, SETTING)
    spacing = spacing_of(arguments, task)
    shown = CausalNgramVariants(
        with_bos(task, sample(task.grammar, arguments.seed, "probe", 0, arguments.sentences)),
        task.terminals,
        spacing=spacing,
        limit=arguments.limit,
        positions=arguments.positions or None,
        sizes=arguments.sizes,
        seed=arguments.seed,
    )
    columns, values = arguments.columns, arguments.values
    probe_checkpoints(
        arguments,
        NgramArguments(run=arguments.run),
        "ngrams",
        SETTING,
        task,
        lambda model: asdict(probe_ngrams(shown, gpt2_predictor(model), columns, values)),
        {"spacing": lambda: spacing, **({"positions": lambda: shown.pairs.tolist()} if values else {})},
    )


def nonterminals(arguments: NonterminalArguments) -> None:
    """Accuracy of the probe for nonterminals, level by level, on every checkpoint that is not in the file yet."""
    probing.nonterminals(arguments, SETTING, gpt2_encoder)


def generation(arguments: GenerationArguments) -> None:
    """Which continuations the grammar accepts, of every checkpoint that is not in the file yet.

    Raises:
        UserError: a number out of its range, or a run that did not learn to predict all tokens.
    """
    require_at_least(1, arguments, "continuations", "tokens", "batch_size")
    require_seed(arguments, "seed")
    task = task_of_run(arguments.run, SETTING)
    if task.label_level != "all":
        raise UserError(
            f"{arguments.run} learned the tokens that close a span at depth {task.label_level} alone and cannot write "
            "sentences: give a run with --label-level all"
        )
    given = arguments.given
    if given is None:
        given = int(min(GIVEN, max(1, task.grammar.expected_length // 2)))
    elif given < 0:
        raise UserError(f"--given must be at least 0, got {given}")
    known = beginnings(task.grammar, arguments.seed, given, arguments.continuations)

    def measure(model: GPT2LMHeadModel) -> dict[str, Any]:
        written = continuations(model, task, known, arguments.tokens, arguments.seed, arguments.batch_size)
        return asdict(acceptance(task, known, written))

    once = {"given": lambda: given}
    probe_checkpoints(arguments, GenerationArguments(run=arguments.run), "generation", SETTING, task, measure, once)


def evaluation(arguments: BayesOptimalArguments) -> None:
    """Loss and accuracy of the Bayes-optimal predictor on the run's evaluation sentences, unless the file is there."""
    probing.evaluation(arguments, SETTING, _best)


def _best(task: NextTokenTask, batches: Sequence[Batch]) -> dict[str, Any]:
    best = asdict(bayes_optimal(task, batches))
    if task.label_level == "all":
        return best
    untold = bayes_optimal(task, batches, label_is_known=False)
    return {**best, "without_label": {"loss": untold.loss, "accuracy": untold.accuracy}}


def main() -> None:
    """Parse the command line."""
    arguments = tyro.extras.subcommand_cli_from_dict(
        {
            "ngrams": NgramArguments,
            "nonterminals": NonterminalArguments,
            "generation": GenerationArguments,
            "bayes-optimal": BayesOptimalArguments,
        },
        description=__doc__,
    )
    if isinstance(arguments, NgramArguments):
        ngrams(arguments)
    elif isinstance(arguments, NonterminalArguments):
        nonterminals(arguments)
    elif isinstance(arguments, GenerationArguments):
        generation(arguments)
    else:
        evaluation(arguments)


if __name__ == "__main__":
    command(main)
