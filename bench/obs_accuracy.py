"""Where this engine and SparseGPT as published differ: against float64 runs of both.

    python -m bench.obs_accuracy                           # 2048 wide, 512 rows, 4 problems
    python -m bench.obs_accuracy --width 4096 --rows 4096 --problems 1 --device cuda

Per problem and code: zeros, weights whose mask differs from the float64 run's with the same count,
and the relative difference of the output error from that run's, itself taken in float64.
"""

from __future__ import annotations

import argparse

from bench.obs import Group, in_float32, problem
from tasks.runtime.environment import prepare, use_threads


def main() -> None:
    """Run the variants, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--level", type=float, default=0.5)
    parser.add_argument("--problems", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    wanted = parser.parse_args()
    prepare()
    use_threads(wanted.threads)

    from bench.sparsegpt_reference import fasterprune
    from efficientllava.kernels.hessian import inverse_factor, output_error
    from efficientllava.kernels.obs import prune, quotas_of_blocks
    from efficientllava.kernels.precision import full_float32

    print("| problem | code | zeros | masks differ | error against float64 | float32 sum off by |")
    print("|---|---|---|---|---|---|")
    level = wanted.level
    for seed in range(wanted.problems):
        group = Group(("o",), (wanted.rows,), wanted.width)
        (weight,), single = problem(group, seed, wanted.device)
        double = single.double()
        exact, rounded = inverse_factor(double, dtype=double.dtype), inverse_factor(single)
        mixed = in_float32(exact)
        counts = quotas_of_blocks(wanted.rows, level, exact.dead.cpu(), 128)
        with full_float32():
            results = {
                "ours, float64": prune(weight.double(), exact, level),
                "published, float64, our counts": fasterprune(weight, double, level, quotas=counts),
                "published, float64": fasterprune(weight, double, level),
                "ours, float32": prune(weight, rounded, level),
                "ours, float32, factor made in float64": prune(weight, mixed, level),
                "published, float32, our counts": fasterprune(weight, single, level, quotas=counts),
                "published, float32": fasterprune(weight, single, level),
                "published, float32, our counts and factor": fasterprune(
                    weight, single, level, quotas=counts, factor=rounded.upper
                ),
            }
        base = results["ours, float64"]
        least = output_error(base - weight, double)
        for name, result in results.items():
            error = output_error(result.double() - weight, double)
            single_error = output_error(result.float() - weight, single)
            print(
                f"| {seed} | {name} | {int((result == 0).sum())} "
                f"| {int(((result == 0) != (base == 0)).sum())} | {error / least - 1:+.1e} "
                f"| {single_error / error - 1:+.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
