"""Which matrices of a checkpoint are packed, and how one of them becomes tensors of a file."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from efficientllava.errors import UserError
from efficientllava.finite import all_finite
from efficientllava.models.checkpoint import skeleton
from efficientllava.models.weight_files import FLOATS
from efficientllava.reading import TensorReader
from efficientllava.sparse.experts.files import expert_matrices, stacks_in
from efficientllava.sparse.format import PackedMatrix, pack, packed_bytes, quantize, unpack
from efficientllava.sparse.layout import LAYOUTS, ROWS, dtype_name, layout_of, padding_of
from efficientllava.sparse.names import names_in_model, packable_layers
from efficientllava.sparse.record import PIECES, Settings, Stack, member_of
from efficientllava.sparse.tensor_file import NAMES, Entry, entries_of, in_threads

logger = logging.getLogger(__name__)

WEIGHT = ".weight"


class NothingToPack(UserError):
    """No matrix of a checkpoint becomes smaller packed."""


@dataclass(frozen=True)
class Packing:
    """A matrix that is packed.

    Attributes:
        module: its name in the files, without `.weight`.
        stored: dtype of the weight as it is.
        dtype: of the packed values.
        kept: packed values, those that are not zero.
        error: of int8 codes, see `format.quantize`; None where nothing is lost.
    """

    module: str
    rows: int
    columns: int
    stored: torch.dtype
    dtype: torch.dtype
    kept: int
    error: float | None = None

    def entries(self) -> list[Entry]:
        """Its tensors in a packed file."""
        layout, name = layout_of(self.dtype), NAMES[self.dtype]
        groups, steps = -(-self.rows // ROWS), -(-self.columns // layout.columns)
        entries = [
            Entry(f"{self.module}{WEIGHT}", name, (0,)),
            Entry(f"{self.module}.masks", NAMES[layout.mask], (groups, steps)),
            Entry(f"{self.module}.values", name, (self.kept + padding_of(self.dtype),)),
            Entry(f"{self.module}.offsets", "I64", (groups + 1,)),
        ]
        if self.dtype == torch.int8:
            entries.append(Entry(f"{self.module}.scales", "F32", (self.rows,)))
        return entries

    def tensors(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of those entries; an empty one stands at the weight's own name."""
        scales = None
        if self.dtype == torch.int8:
            weight, scales, _ = quantize(weight)
        packed = pack(weight, scales, threads=1)
        pieces = {f"{self.module}.{piece}": each for piece, each in packed.tensors.items()}
        return pieces | {f"{self.module}{WEIGHT}": torch.empty(0, dtype=packed.dtype)}


class _Looked(NamedTuple):
    """What was seen of a tensor.

    Attributes:
        share: of zeros.
        negative: weights that are -0.0.
        packing: None where the tensor stays as it is.
    """

    share: float = 0.0
    negative: int = 0
    packing: Packing | None = None


@dataclass(frozen=True)
class Piece:
    """A tensor of a dense checkpoint, or one expert's part of a tensor that stacks them.

    Attributes:
        name: of the tensor.
        module: of the matrix in a packed file; empty where the tensor is none.
        expert: which part; None for a whole tensor.
        transposed: whether the part is [columns, rows].
    """

    name: str
    module: str
    expert: int | None = None
    transposed: bool = False

    def read(self, reader: TensorReader, file: Path) -> torch.Tensor:
        """The tensor, or the matrix [rows, columns] of the expert."""
        tensor = reader.tensor(file, self.name, self.expert)
        return tensor.t().contiguous() if self.transposed else tensor

    def entries(self, entry: Entry, packing: Packing | None) -> list[Entry]:
        """What stands for it in a packed file.

        Args:
            entry: of the whole tensor in the dense file.
        """
        if self.expert is None:
            return [entry] if packing is None else packing.entries()
        shape = entry.shape[:0:-1] if self.transposed else entry.shape[1:]
        marker = [Entry(self.name, entry.dtype, (0,))] if self.expert == 0 else []
        alone = Entry(f"{self.module}{WEIGHT}", entry.dtype, shape)
        return marker + ([alone] if packing is None else packing.entries())

    def tensors(self, tensor: torch.Tensor, packing: Packing | None) -> dict[str, torch.Tensor]:
        """The tensors of those entries.

        Args:
            tensor: as it was read.
        """
        if packing is not None:
            tensors = packing.tensors(tensor)
        else:
            tensors = {self.name if self.expert is None else f"{self.module}{WEIGHT}": tensor}
        if self.expert == 0:
            tensors[self.name] = tensor.new_empty(0)
        return tensors


def pieces_of(names: Iterable[str], stacks: Mapping[str, Stack]) -> list[Piece]:
    """The pieces of tensors: one each, or of a stack one an expert."""
    pieces = []
    for name in names:
        stack = stacks.get(name)
        if stack is None:
            pieces.append(Piece(name, module_of(name)))
        else:
            pieces += [
                Piece(name, member_of(name, expert), expert, stack.transposed)
                for expert in range(stack.shape[0])
            ]
    return pieces


def find_pruned(
    folder: Path, files: Sequence[Path], dtype: str | None
) -> tuple[dict[str, Packing], dict[str, Stack]]:
    """The matrices that are smaller packed, by module; every tensor is read once.

    A warning names the weights that are -0.0: bit by bit they are no zeros, and are kept.

    Args:
        dtype: as in `pack_checkpoint`. int8 codes are made of the same matrices.

    Returns:
        Also the tensors that have to be taken apart: those that stack experts, if an expert has
        such a matrix.

    Raises:
        UserError: a weight lies in two files, or holds NaN or inf (named); there is no such matrix.
    """
    model = skeleton(folder)
    file_of, reader = places_of(files), TensorReader()
    stacks = stacks_in(
        model, {name: each for file in files for name, each in entries_of(file).items()}
    )
    experts = expert_matrices(model, file_of, stacks)
    stacks = stacks if experts else {}
    layers = packable_layers(model)
    packable = set(experts) | {
        module_of(name)
        for name, known in names_in_model(model, file_of).items()
        if module_of(name) and module_of(known) in layers
    }

    def look(piece: Piece) -> _Looked:
        tensor = piece.read(reader, file_of[piece.name])
        if tensor.dtype in FLOATS and not all_finite(tensor):
            raise UserError(
                f"weight {piece.name} holds NaN or inf",
                str(folder),
                "the checkpoint is damaged: get it again",
            )
        if piece.module not in packable or tensor.dtype not in LAYOUTS or tensor.numel() == 0:
            return _Looked()
        return _look_at(piece.module, tensor, dtype)

    pieces = pieces_of(file_of, stacks)
    found = list(zip(pieces, in_threads(look, pieces), strict=True))
    _warn_of_negative_zeros(folder, sum(looked.negative for _, looked in found))
    packings = {each.module: each for _, (*_, each) in found if each is not None}
    if not packings:
        piece, looked = max(found, key=lambda each: each[1].share)
        told = f"; most zeros has {piece.module}, {looked.share:.1%}" if looked.share else ""
        raise NothingToPack(
            f"no matrix has enough zeros to become smaller{told}",
            str(folder),
            "prune it first: efficientllava prune",
        )
    return packings, stacks if packings.keys() & experts.keys() else {}


def _warn_of_negative_zeros(folder: Path, count: int) -> None:
    if count:
        logger.warning(
            "%s: %d weights are -0.0; they are kept, for unpacking gives back every bit. "
            "weight[weight == 0] = 0 makes them zeros that take no space",
            folder,
            count,
        )


def places_of(files: Sequence[Path]) -> dict[str, Path]:
    """The file in which each tensor lies, by name.

    Raises:
        UserError: one lies in two files.
    """
    places: dict[str, Path] = {}
    for file in files:
        for name in entries_of(file):
            if name in places:
                raise UserError(f"{name} lies in {places[name].name} too", str(file))
            places[name] = file
    return places


def _look_at(module: str, weight: torch.Tensor, dtype: str | None) -> _Looked:
    """The zeros of a matrix, and how it is packed if that makes it smaller."""
    rows, columns = weight.shape
    # by bits: -0.0 is kept
    kept = int(torch.count_nonzero(weight.view(LAYOUTS[weight.dtype].bits)))
    share, negative = 1 - kept / weight.numel(), kept - int(torch.count_nonzero(weight))
    if packed_bytes(rows, columns, kept, weight.dtype) >= weight.nbytes:
        return _Looked(share, negative)
    if dtype is None:
        packing = Packing(module, rows, columns, weight.dtype, weight.dtype, kept)
        return _Looked(share, negative, packing)
    codes, _, error = quantize(weight)
    kept = int(torch.count_nonzero(codes))
    packing = Packing(module, rows, columns, weight.dtype, torch.int8, kept, error)
    return _Looked(share, packing=packing)


def settings_for(packings: dict[str, Packing], stacks: dict[str, Stack]) -> Settings:
    """What config.json says of packed matrices.

    Args:
        stacks: tensors that are taken apart.

    Raises:
        UserError: int8 codes are made of matrices of several dtypes.
    """
    ordered = sorted(packings.values(), key=lambda packing: packing.module)
    modules = {each.module: [each.rows, each.columns] for each in ordered}
    errors = {each.module: each.error for each in ordered if each.error is not None}
    dtypes = sorted({dtype_name(each.dtype) for each in ordered})
    stored = sorted({dtype_name(each.stored) for each in ordered})
    if errors and len(stored) > 1:
        raise UserError(
            f"the pruned matrices have several dtypes: {', '.join(stored)}",
            "dtype int8",
            "convert the checkpoint to one of them first",
        )
    dtype, unpacked = dtypes[0] if len(dtypes) == 1 else "mixed", stored[0] if errors else None
    return Settings(dtype, modules, errors, unpacked, stacks)


def module_of(name: str) -> str:
    """The module of a weight's name; empty where it is none."""
    return name.removesuffix(WEIGHT) if name.endswith(WEIGHT) else ""


def unpacked_weight(
    module: str, file_of: Mapping[str, Path], settings: Settings, reader: TensorReader
) -> torch.Tensor:
    """The matrix of a packed module, or of one beside them that is not packed.

    Args:
        file_of: where each tensor of the checkpoint lies, by name: transformers may put those of
            one matrix into several files.
    """
    if module not in settings.modules:
        name = f"{module}{WEIGHT}"
        return reader.tensor(file_of[name], name)
    names = {piece: f"{module}.{piece}" for piece in PIECES}
    tensors = {
        piece: reader.tensor(file_of[name], name)
        for piece, name in names.items()
        if name in file_of
    }
    rows, columns = settings.modules[module]
    weight = unpack(PackedMatrix(rows, columns, **tensors), threads=1)
    if settings.unpacked_dtype is not None:
        weight = weight.to(getattr(torch, settings.unpacked_dtype))
    return weight
