"""rgtg: preference datasets by reward-guided text generation, without fine-tuning the language model."""

from typing import TYPE_CHECKING, Any

from rgtg.errors import UserError

if TYPE_CHECKING:
    from rgtg.decoding.decoder import Completion, Decoder

__version__ = "0.1.0"

__all__ = ["Completion", "Decoder", "UserError"]


def __getattr__(name: str) -> Any:
    """Load torch and transformers with the first use of what needs them: the command line should answer at once."""
    if name in ("Completion", "Decoder"):
        from rgtg.decoding import decoder

        return getattr(decoder, name)
    raise AttributeError(f"module 'rgtg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
