"""Sections `obs`, `allocation` and `finalize`: how weights are removed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from efficientllava.parameters.section import Section
from efficientllava.registry import METHODS

MOST_DENSE_LEVELS = 5
"""Levels up to which a database is stored as it is, unless `obs.storage` says otherwise."""


class ObsParameters(Section):
    """Optimal Brain Surgeon."""

    pattern: str = Field(
        "unstructured", pattern=r"^(unstructured|[0-9]+:[0-9]+)$", description="`unstructured`, or n:m: n zeros (not n kept weights) in every m consecutive weights of a row, e.g. 2:4; it fixes `ratios` to n/m, and a search varies nothing"
    )
    patterns: tuple[Annotated[str, Field(pattern=r"^[0-9]+:[0-9]+$")], ...] | None = Field(
        None, description='n:m patterns of one m that a search gives to single matrices, in quotes: ["1:4", "2:4", "3:4"]. Its levels are then their n/m, `search.offsets` do not apply, `ratios` lie between them; other methods need one of them'
    )
    block_size: int = Field(
        128, ge=1, le=65536, description="columns pruned together before the columns to the right are updated"
    )
    damping: float = Field(
        0.01, gt=0.0, le=1.0, description="added to the Hessian's diagonal, as a share of its mean"
    )
    calibration: Literal["text", "text_and_pairs"] = Field(
        "text_and_pairs", description="what Hessians are accumulated on (paper: text)"
    )
    calibration_tokens: Literal["text", "all", "text_and_drifting_visual"] = Field(
        "all", description="tokens of image-text pairs that Hessians see: text alone, all, or text and the visual tokens that a block changes most"
    )
    drifting_share: float = Field(
        0.1, gt=0.0, le=1.0, description="share of a sample's visual tokens that `text_and_drifting_visual` takes"
    )
    precision: Literal["float32", "float64"] = Field(
        "float32", description="precision of the factorisation and of the column loop"
    )
    kernel: Literal["auto", "eager", "compiled", "triton"] = Field(
        "auto", description="column loop: plain torch, compiled for the CPU (float32; same bits), Triton for CUDA (float32), or the fastest that can run"
    )

    storage: Literal["auto", "dense", "compact"] = Field(
        "auto", description="the database on disk: matrices as they are, or a bitmask and the weights that are left (half the size, decoded when used); auto: compact above five levels"
    )

    @model_validator(mode="after")
    def kernel_fits_precision(self) -> Self:
        if self.kernel in ("compiled", "triton") and self.precision != "float32":
            raise ValueError(f"kernel {self.kernel} works in float32 only, not in {self.precision}")
        return self

    @model_validator(mode="after")
    def patterns_fit(self) -> Self:
        if self.patterns is not None and self.pattern != "unstructured":
            raise ValueError(f"pattern {self.pattern} and patterns contradict each other: give one")
        if self.patterns == () or len({group for _, group in self.groups}) > 1:
            raise ValueError("patterns must name at least one n:m, all of the same m")
        if len(set(self.groups)) != len(self.groups):
            raise ValueError("patterns name one twice")
        for zeros, group in self.groups:
            if not 0 < zeros < group:
                raise ValueError(f"pattern {zeros}:{group}: n must lie between 1 and m - 1")
            if self.block_size % group:
                raise ValueError(
                    f"block_size {self.block_size} is not a multiple of {group}: groups of pattern "
                    f"{zeros}:{group} would be cut; use {self.block_size // group * group or group}"
                )
        return self

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(n, m) of `pattern`, or of each of `patterns` by rising n; empty when unstructured."""
        single = () if self.pattern == "unstructured" else (self.pattern,)
        named = [pattern.split(":") for pattern in self.patterns or single]
        return sorted((int(zeros), int(group)) for zeros, group in named)

    @property
    def group_size(self) -> int | None:
        """m of the n:m patterns; None when unstructured."""
        return self.groups[0][1] if self.groups else None

    @property
    def named(self) -> str:
        """The pattern or the set as messages name it, e.g. "patterns 1:4, 2:4"."""
        if self.patterns is None:
            return f"pattern {self.pattern}"
        return "patterns " + ", ".join(f"{zeros}:{group}" for zeros, group in self.groups)

    def stores_compact(self, levels: int) -> bool:
        """Whether a database of so many levels is stored as bitmasks and the weights left."""
        return self.storage == "compact" or (self.storage == "auto" and levels > MOST_DENSE_LEVELS)

    def misfit(self, ratio: float, method: str) -> tuple[str, str] | None:
        """Why a method cannot meet a ratio with the n:m patterns, and which it can; None if it can.

        Only a method that searches gives matrices different patterns of a set.
        """
        shares = [zeros / group for zeros, group in self.groups]
        mixes = "database" in METHODS[method].needs
        fits = any(abs(ratio * group - zeros) <= 1e-6 for zeros, group in self.groups)
        if fits or not shares or (mixes and shares[0] < ratio < shares[-1]):
            return None
        told = f"ratio {ratio} contradicts obs.{self.named}, "
        if self.patterns is None:
            zeros, group = self.groups[0]
            return f"{told}which is {zeros} zeros in every group of {group}", f"{shares[0]:.10g}"
        if mixes:
            return f"{told}which {method} mixes", f"from {shares[0]:.10g} to {shares[-1]:.10g}"
        one = ", ".join(f"{share:.10g}" for share in shares)
        return f"{told}of which {method} gives all matrices the same one", one


class AllocationParameters(Section):
    """Heuristics that give each block its ratio: `owl` and `slope`."""

    outlier_threshold: float = Field(
        5.0, gt=1.0, le=1_000_000.0, description="owl: an outlier is this many times the mean |w| * ||x|| of a block"
    )
    outlier_spread: float = Field(
        0.08, ge=0.0, le=0.5, description="owl: ratios differ by at most twice this between blocks"
    )
    slope: float = Field(
        0.05, ge=-0.5, le=0.5, description="slope: ratios rise linearly over the blocks, from this much below the target to this much above (ATP)"
    )


class FinalizeParameters(Section):
    """What only the final pruning needs: a change here builds no database again."""

    refine: Literal["none", "least_squares", "admm"] = Field(
        "none", description="solve for the kept weights again on the final mask of the OBS methods: exactly, or by ADMM"
    )
    protect_first: int = Field(
        0, ge=0, le=1000, description="llm_pruner: first blocks that stay whole; above 0 removed parts are stored as zeros"
    )
    protect_last: int = Field(0, ge=0, le=1000, description="llm_pruner: last blocks that stay whole, too")
    keep_last_block: bool = Field(
        True, description="short_lvlm, shortgpt, sleb: never remove the last block (the first never goes)"
    )
    important_tokens: float = Field(
        0.2, gt=0.0, le=1.0, description="short_lvlm: share of tokens per modality that ranks blocks"
    )
    compensation: Literal["scp", "replaceme", "none"] = Field(
        "scp", description="short_lvlm: what is folded into the block before removed ones (published: scp)"
    )
    components: int = Field(8, ge=1, le=100_000, description="short_lvlm: singular vectors that scp keeps")
