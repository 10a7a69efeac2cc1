"""Progressive distillation of a suite of checkpoints, such as Pythia, into a smaller model on a text file.

    python examples/pythia.py EleutherAI/pythia-70m text.txt

The student has the teacher's architecture and tokenizer, and fewer layers. Each line of the file is a sample.
"""

from pathlib import Path

import tyro
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    TrainingArguments,
    set_seed,
)

from common.cli import command
from common.distillation.choosing import choose_schedule
from common.distillation.trainer import ProgressiveDistillationTrainer
from common.teachers.discovery import find_checkpoints, local_path


def main(
    teacher: str,
    text: Path,
    /,
    out: Path = Path("runs/pythia-student"),
    layers: int = 2,
    steps: int = 1000,
    every: int = 100,
    batch_size: int = 16,
    length: int = 128,
    lr: float = 1e-3,
) -> None:
    """Train a student.

    Args:
        teacher: a hub id, or a directory with checkpoints.
        text: a file with one sample per line.
        out: the student's directory.
        layers: of the student.
        steps: of training.
        every: steps per checkpoint.
        batch_size: samples per step.
        length: maximum number of tokens per sample.
        lr: the peak learning rate.
    """
    set_seed(0)
    schedule, choice = choose_schedule(teacher, every=every)
    print(choice.reason)
    final = local_path(find_checkpoints(teacher)[-1])
    tokenizer = AutoTokenizer.from_pretrained(final)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    student = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(final, num_hidden_layers=layers))
    lines = Dataset.from_text(str(text)).filter(lambda line: line["text"].strip())
    tokens = lines.map(lambda line: tokenizer(line["text"], truncation=True, max_length=length))
    parts = tokens.remove_columns("text").train_test_split(0.05, seed=0)
    args = TrainingArguments(
        str(out),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        logging_steps=10,
        save_steps=every,
        eval_steps=every,
        eval_strategy="steps",
        report_to="none",
    )
    trainer = ProgressiveDistillationTrainer(
        student,
        args,
        teacher=teacher,
        schedule=schedule,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    command(lambda: tyro.cli(main))
