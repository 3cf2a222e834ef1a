"""LoRA adapters (arXiv 2106.09685): trained beside a model and merged where it is saved or loaded.

So everything else sees plain weights. Needs peft, which is not installed by default.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rgtg.errors import UserError, first_line
from rgtg.models.description import read_object

DESCRIPTION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Adapters:
    """The adapters of a module in training, and the merged weights."""

    def __init__(self, backbone: nn.Module, rank: int, alpha: float) -> None:
        """Add an adapter to every linear layer of `backbone`, and freeze everything else in it.

        Adapters start at zero: the outputs stay the same. Raises UserError where peft is missing.
        """
        peft = _peft()
        linear = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear | Conv1D)}
        self.scaling = alpha / rank
        self.transposed = {name for name, module in linear.items() if isinstance(module, Conv1D)}  # GPT-2's
        config = peft.LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=list(linear), fan_in_fan_out=bool(self.transposed)
        )
        peft.inject_adapter_in_model(config, backbone)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def merged(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict without adapters, from one of a module around the backbone: W + alpha / rank * B A."""
        weights = {}
        for key, value in state.items():
            if ".lora_A." in key or ".lora_B." in key:
                continue
            layer, base, kind = key.partition(".base_layer.")
            if base and kind == "weight":
                change = state[f"{layer}.lora_B.default.weight"] @ state[f"{layer}.lora_A.default.weight"]
                turned = any(layer.endswith(f".{name}") for name in self.transposed)
                value = value + self.scaling * (change.T if turned else change)
            weights[f"{layer}.{kind}" if base else key] = value
        return weights


def is_adapter(directory: str | Path) -> bool:
    return Path(directory, DESCRIPTION).is_file() and not Path(directory, "config.json").is_file()


def describe(directory: str | Path, what: str) -> tuple[str, bool]:
    """The base model of the adapters in `directory`, a path or hub id, and whether they make it a classifier.

    Raises UserError where they are not plain LoRA: some kinds of peft read other files that the description names.
    """
    config = read_object(Path(directory, DESCRIPTION), what)
    base, kind = config.get("base_model_name_or_path"), config.get("peft_type", "LORA")
    if not isinstance(base, str):
        raise UserError(f"{what}: the {DESCRIPTION} in {str(directory)!r} names no base_model_name_or_path")
    if kind != "LORA" or config.get("megatron_config"):  # peft would import the module that megatron_core names
        raise UserError(f"{what}: the adapters in {str(directory)!r} are not plain LoRA; merge them into their base")
    return base, config.get("task_type") == "SEQ_CLS"


def heads(directory: str | Path, what: str) -> tuple[str, ...]:
    """Prefixes of the weights that the adapters replace as a whole: the head of a classifier, or nothing."""
    path = Path(directory, WEIGHTS)
    if not path.is_file():
        raise UserError(f"{what}: there is no {WEIGHTS} in {str(directory)!r}; pickled weights are not read")
    try:
        with safe_open(path, "pt") as file:
            return ("score.",) if any(name.endswith("score.weight") for name in file.keys()) else ()  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{what}: cannot load {str(path)!r}: {first_line(error)}") from error


def merge_into(model: Any, directory: str | Path, what: str) -> Any:
    """The base model with the adapters in `directory` merged into its weights. Reads only safetensors.

    Raises UserError where a weight is missing, which peft would initialize at random, or fits another model.
    """
    peft = _peft()
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(directory))
        with safe_open(Path(directory, WEIGHTS), "pt") as file:
            needed = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
            given = {name for name in file.keys() if name in needed or "lora_" in name}  # noqa: SIM118
        if wrong := sorted(needed ^ given):
            raise UserError(
                f"{what}: {len(wrong)} weights of the adapters in {str(directory)!r} are missing or fit nowhere in "
                f"their base model ({wrong[0]}); give complete adapters, and the base model they were trained on"
            )
        return adapted.merge_and_unload()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{what}: cannot merge the adapters in {str(directory)!r}: {first_line(error)}") from error


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("LoRA adapters need peft: pip install 'rgtg[lora]'") from error
    return peft
