"""What an allocation gained, in words."""

from __future__ import annotations

from collections.abc import Mapping


def gained_over_uniform(gain: Mapping[str, float]) -> str:
    """What an allocation gained over the uniform one, with its error, in one line.

    It is measured where the policy was chosen, which makes it look a little better than it is.
    """
    if gain["compared"] == 1:
        return "not measured: the levels allow no other ratios"
    mixed = gain["uniform_ratios"] > 1
    if gain["difference"] == 0.0:
        other = "the nearest to one ratio" if mixed else "the same one everywhere"
        return f"nothing: no ratios were better than {other}"
    error = f"± {_nats(gain['error'])}" if "error" in gain else "(error unknown: one sample)"
    told = (
        f"KL lower by {_nats(-gain['difference'])} {error} ({_nats(gain['uniform_kl'])} to "
        f"{_nats(gain['kl'])}) before the final pruning, on the {gain['positions']:,} positions "
        "that chose the ratios"
    )
    if mixed:
        told += "; no single ratio meets the target, so the nearest to it stands for uniform"
    shares = [f"{gain[name]:.2%}" for name in ("zeros", "uniform_zeros")]
    if shares[0] != shares[1]:
        told += f"; {shares[0]} zeros, uniform {shares[1]}: some were there before"
    return told


def _nats(loss: float) -> str:
    return f"{loss:.4f}" if loss >= 0.001 else f"{loss:.2g}"
