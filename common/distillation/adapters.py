"""Students with adapters, such as LoRA: only the adapter is saved. PEFT is an optional package."""

import json
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.errors import UserError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

FINGERPRINT = 1024
"""Elements of a parameter in a fingerprint, or up to twice as many."""


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has adapters: a `PeftModel`, or a model after `add_adapter`."""
    return getattr(model, "peft_config", None) is not None


def adapter_files(model: nn.Module) -> dict[str, bytes]:
    """The files that `PeftModel.from_pretrained` loads, by name, for the active adapter.

    Raises:
        UserError: as for `adapter_tensors`.
    """
    adapter_tensors(model)
    with TemporaryDirectory() as folder:
        only = {} if isinstance(model, PreTrainedModel) else {"selected_adapters": [_active(model)]}
        cast(Any, model).save_pretrained(folder, **only)
        config, weights = (next(Path(folder).rglob(name)).read_bytes() for name in (CONFIG, WEIGHTS))
    values = json.loads(config)
    for name, value in vars(cast(Any, model).peft_config[_active(model)]).items():
        if isinstance(value, set):  # its order differs between processes
            values[name] = sorted(value)
    return {CONFIG: (json.dumps(values, indent=2, sort_keys=True) + "\n").encode(), WEIGHTS: weights}


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of the active adapter, by their names in its file.

    Raises:
        UserError: the adapter adds tokens, or other parameters are trained, which would be lost.
    """
    from peft import get_peft_model_state_dict

    name = _active(model)
    require_no_prompt(model)
    tensors = get_peft_model_state_dict(model, adapter_name=name)
    saved = {tensor.data_ptr() for tensor in tensors.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.data_ptr() not in saved:
            raise UserError(f"{name} is trained, but not saved with the adapter: list it in modules_to_save")
    return tensors


def frozen_fingerprint(model: nn.Module) -> str:
    """A checksum of the adapter's configuration and of samples of every parameter that is not trained."""
    config = adapter_files(model)[CONFIG]
    checksum = zlib.crc32(config)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            values = parameter.detach().flatten()
            sample = values[:: max(1, len(values) // FINGERPRINT)].float().cpu().numpy()
            checksum = zlib.crc32(sample.tobytes(), zlib.crc32(f"{name} {tuple(parameter.shape)}".encode(), checksum))
    return f"{checksum:08x}"


def require_no_prompt(model: nn.Module) -> None:
    """Reject an adapter that adds tokens to the samples.

    Raises:
        UserError: says so.
    """
    if cast(Any, model).peft_config[_active(model)].is_prompt_learning:
        raise UserError("the student's adapter adds tokens, which have no labels: use one that does not, such as LoRA")


def load_adapter(model: nn.Module, checkpoint: Path) -> None:
    """Copy the active adapter's tensors from a Trainer's checkpoint.

    Raises:
        UserError: one of them is missing.
    """
    from peft import set_peft_model_state_dict

    found = [path for path in (checkpoint / _active(model) / WEIGHTS, checkpoint / WEIGHTS) if path.is_file()]
    if not found:
        raise UserError(f"{checkpoint} has no {WEIGHTS}, but the student has an adapter: resume with the same student")
    file = found[0]
    tensors = load_file(file)
    if isinstance(model, PreTrainedModel):  # after add_adapter; the file has the names of a PeftModel
        tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    missing = adapter_tensors(model).keys() - tensors.keys()
    if missing:
        raise UserError(f"{file} lacks the student's {min(missing)}: resume with the same adapter")
    set_peft_model_state_dict(model, tensors, adapter_name=_active(model))


def _active(model: nn.Module) -> str:
    active = cast(Any, model).active_adapters
    names = active() if callable(active) else active
    if len(names) != 1:
        raise UserError(f"the student has {len(names)} active adapters ({', '.join(names)}): activate one")
    return names[0]
