"""The peak learning rate where a config names none: a rule by what is trained, with its evidence in README.md."""

MEASURED = 100_000_000  # parameters up to which reward models were trained for the rule
ABOVE = 1e-5  # the rate of larger models, for which there is no evidence of ours
LORA = 10.0  # times the rate of all weights
HIGHEST = 1e-3


def default_learning_rate(num_parameters: int, lora: bool) -> float:
    """Peak learning rate of AdamW for a backbone of `num_parameters`, where all are trained, or adapters (`lora`).

    It falls with the sixth root of the size from 5e-4 at half a million parameters, so that it is 3e-4 at ten million.
    """
    rate = 5e-4 * (500_000 / num_parameters) ** (1 / 6) if num_parameters <= MEASURED else ABOVE
    return float(f"{min(HIGHEST, rate) * (LORA if lora else 1.0):.2g}")
