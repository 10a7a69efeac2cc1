"""A teacher's targets from the disk, beside its forward pass; their bytes; and the bias of top-k targets.

    python benchmarks/targets.py

A GPT-NeoX with 50,304 classes teaches on steps of 2,048 positions. Its weights are random, and its output layer is
scaled so that its predictions have the given entropy. The plain way is its forward pass, logits chunk by chunk and
their softmax, as in training; here, targets are read from shards, checked, and decoded. Bytes are those of the shards
per position, and the plain number is that of the logits.

The bias is the error of the mean gradient at the logits of a student, which are the teacher's with noise, relative to
the norm of the gradient: of the k most probable classes that have no fewer bytes than the samples, and of the mean of
many draws. The ratio is that of the two, and grows with the square root of the number of draws.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import measuring
import torch
import tyro
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, TrainingArguments

from common.distillation.labelled_head import LabelledHead, LabelledOutput
from common.distillation.losses import LossArguments
from common.distillation.sparse_targets import SparseTargets
from common.distillation.target_cache import Place, TargetCache
from common.distillation.target_shards import batch_hash
from common.distillation.targets import TargetKind, decode, encode

CLASSES, SAMPLES, LENGTH = 50_304, 8, 256
POSITIONS = SAMPLES * LENGTH


@dataclass(frozen=True)
class Arguments(measuring.Arguments):
    repetitions: int = 3
    """Each time is the best of so many."""
    threads: int = 2
    """Of torch."""
    width: int = 512
    """Hidden size of the teacher."""
    layers: int = 6
    """Blocks of the teacher."""
    entropy: float = 3.0
    """Nats of the teacher's predictions, on average."""
    draws: int = 200
    """Of which the mean gradient is taken."""
    steps: int = 4
    """Training steps that are measured."""


def teacher_of(arguments: Arguments) -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    shape = {"num_attention_heads": 8, "max_position_embeddings": LENGTH, "num_hidden_layers": arguments.layers}
    sizes = {"hidden_size": arguments.width, "intermediate_size": 4 * arguments.width, "vocab_size": CLASSES}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, **sizes)).eval().requires_grad_(False)
    logits = model(tokens(0)[:1, :64]).logits[0]
    low, high = 0.1, 1000.0
    for _ in range(40):
        scale = (low * high) ** 0.5
        q = (scale * logits).softmax(-1)
        low, high = (scale, high) if torch.special.entr(q).sum(-1).mean() > arguments.entropy else (low, scale)
    model.get_output_embeddings().weight.mul_(scale)
    return model


def tokens(step: int) -> Tensor:
    return torch.randint(CLASSES, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(step))


def gradient(student: Tensor, targets: SparseTargets) -> Tensor:
    """Of the forward KL divergence, at the logits (positions, classes)."""
    result = student.softmax(-1)
    targets.subtract_from(result, slice(None), 1.0)
    return result


def biases(teacher: Tensor, sampled: TargetKind, top_k: TargetKind, draws: int) -> tuple[float, float]:
    """Relative errors of the mean gradient, for top-k and for the mean of sampled targets."""
    student = teacher + torch.randn(teacher.shape, generator=torch.Generator().manual_seed(1))
    expected = student.softmax(-1) - teacher.softmax(-1)

    def error(kind: TargetKind, keys: Iterable[int]) -> float:
        total, count = torch.zeros_like(student), 0
        for key in keys:
            targets = decode(encode(LabelledOutput(teacher), kind, (0, key, 0)), teacher.device)
            assert isinstance(targets, SparseTargets)
            total, count = total + gradient(student, targets), count + 1
        return float((total / count - expected).norm() / expected.norm())

    return error(top_k, range(1)), error(sampled, range(draws))


@torch.no_grad()
def main(arguments: Arguments) -> None:
    torch.set_num_threads(arguments.threads)
    model = teacher_of(arguments)
    head, positions = LabelledHead(model), torch.arange(POSITIONS)
    batches = [{"input_ids": tokens(step)} for step in range(arguments.steps)]
    places = [Place(1, "", step, 0, batch_hash(batch, positions), POSITIONS) for step, batch in enumerate(batches)]

    def output(step: int) -> LabelledOutput:
        return head(model, batches[step], positions, chunked=True)

    def forward() -> float:
        def all_steps() -> None:
            for step in range(arguments.steps):
                found = output(step)
                for rows in found.chunks():
                    found.targets(rows, 1.0, None)

        return measuring.seconds(all_steps) / arguments.steps

    rows = []
    with tempfile.TemporaryDirectory() as directory:
        args = TrainingArguments(directory, use_cpu=True, report_to="none")
        per_position = {}
        for name, loss in (("sampled", LossArguments()), ("top-k", LossArguments(top_k=8))):
            folder = Path(directory) / name

            def opened(folder: Path = folder, name: str = name, loss: LossArguments = loss) -> TargetCache:
                cache = TargetCache(folder, "sampled" if name == "sampled" else "top-k")
                cache.prepare(args, loss)
                return cache

            def read(open_cache=opened) -> float:  # type: ignore[no-untyped-def]
                def all_steps() -> None:
                    cache = open_cache()
                    for place in places:
                        stored = cache.find(place)
                        assert stored is not None
                        decode(stored, torch.device("cpu"))

                return measuring.seconds(all_steps) / arguments.steps

            cache = opened()
            for step, place in enumerate(places):
                cache.add(place, output(step), "weights")
            cache.flush()
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            per_position[name] = size / (POSITIONS * arguments.steps)
            plain, here = measuring.best(arguments.repetitions, forward, read)
            rate = {"positions_per_second": POSITIONS / here}
            rows.append(measuring.row(f"{name} targets, a step", "seconds", plain, here, plain / here, **rate))
    for name, size in per_position.items():
        rows.append(measuring.row(f"{name} targets, a position", "bytes", 4 * CLASSES, size, 4 * CLASSES / size))

    sampled = TargetKind("sampled", 1.0, 50)
    logits = output(0).logits(slice(0, 64))
    stored = encode(LabelledOutput(logits), sampled, (0, 0, 0))
    top_k = TargetKind("top-k", 1.0, -(-stored.nbytes // (len(logits) * 6)))
    of_top_k, of_samples = biases(logits, sampled, top_k, arguments.draws)
    more = {"k": float(top_k.number or 0), "classes_of_samples": float(stored.fields["numbers"].mean())}
    rows.append(
        measuring.row("bias of top-k, of sampled targets", "error", of_top_k, of_samples, of_top_k / of_samples, **more)
    )
    measuring.write(arguments.out, arguments.threads, rows, entropy=arguments.entropy, draws=arguments.draws)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
