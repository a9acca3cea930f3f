"""Every family of the adapter's table through the whole chain, on tiny random configurations."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    ProcessorMixin,
)
from typer.testing import CliRunner

from efficientllava.allocation.context import Allocation, Risk
from efficientllava.allocation.search.algorithm import (
    NO_PROJECTOR,
    Search,
    SearchGoal,
    SearchInputs,
)
from efficientllava.benchmarks.text_loss import segment_losses
from efficientllava.calibration.block_walk import BlockWalk, calibration_inputs, language_inputs
from efficientllava.calibration.opened import OpenModel
from efficientllava.calibration.proxy_loss import ProxyLoss, hidden_states
from efficientllava.cli import commands
from efficientllava.data.proxy import Pairs, ProxyData, build_pairs, load_proxy, save_proxy
from efficientllava.data.questions import Question
from efficientllava.database.build import build_database
from efficientllava.database.solutions import open_database
from efficientllava.errors import UserError
from efficientllava.models.checkpoint import (
    check_tokenizer,
    load_model,
    load_processor,
    save_checkpoint,
)
from efficientllava.models.families import FAMILIES, Adapter, Matrix, adapter_for, text_inputs
from efficientllava.models.weight_files import weight_files
from efficientllava.offload.blocks_on_disk import blocks_on_disk
from efficientllava.parameters import (
    MachineParameters,
    ObsParameters,
    Parameters,
    SearchParameters,
)
from efficientllava.pruning.finalize import require_same_logits
from efficientllava.pruning.masked import prune_masked
from efficientllava.pruning.sequential import prune_model
from tests.models.families import PICTURED, TINY
from tests.models.families.by_hand import ByHand
from tests.pretend_gpu import GPU, pretend_gpu

LEVELS = [0.4, 0.5, 0.6]
SIZES = [(20, 30), (40, 16), (16, 16), (30, 30), (17, 64), (33, 20)]
"""Width and height: the families cut these into different numbers of patches."""

RISK = Risk("mean_log_norm", 0.5)


@dataclass
class Case:
    name: str
    folder: Path
    processor: ProcessorMixin
    proxy: ProxyData

    def model(self) -> PreTrainedModel:
        return load_model(self.folder)


@pytest.fixture(scope="module", params=TINY)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A checkpoint on disk, and proxy data that went through its files; pairs where it has eyes."""
    folder = tmp_path_factory.mktemp(request.param)
    model, processor = TINY[request.param].build()
    save_checkpoint(model, processor, folder / "model")
    if not isinstance(processor, ByHand):
        processor = load_processor(folder / "model")
    pairs = _pairs(folder, model, processor) if request.param in PICTURED else None
    vocabulary = model.get_input_embeddings().num_embeddings
    segments = torch.randint(20, vocabulary, (4, 12), generator=torch.Generator().manual_seed(0))
    image = getattr(model.config, "image_token_id", None)
    segments = segments if image is None else segments.masked_fill(segments == image, 20)
    save_proxy(folder / "proxy", ProxyData(segments, pairs), {})
    return Case(request.param, folder / "model", processor, load_proxy(folder / "proxy"))


with_pairs = pytest.mark.parametrize("case", PICTURED, indirect=True, scope="module")


def picture_questions(folder: Path) -> list[Question]:
    """Six questions about pictures of different shapes, written to the folder."""
    generator = np.random.default_rng(0)
    questions = []
    for index, (width, height) in enumerate(SIZES):
        path = folder / f"{index}.png"
        pixels = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        text, choices = " ".join(["w1"] * (index + 1)), ("w2", "w3 w4")
        questions.append(
            Question(str(index), text, choices, index % 2, "", path, "", "grade1", "train")
        )
    return questions


def _pairs(folder: Path, model: PreTrainedModel, processor: ProcessorMixin) -> Pairs:
    image_token = FAMILIES[model.config.model_type].image_token
    return build_pairs(picture_questions(folder), processor, len(SIZES), 0, image_token)


def test_every_family_is_tested() -> None:
    assert FAMILIES.keys() == TINY.keys() - {"paligemma2"}


def test_processor_fits_the_model(case: Case) -> None:
    check_tokenizer(case.processor, case.model(), "here")


@with_pairs
def test_rows_of_a_pair_are_those_of_the_pair_alone(case: Case) -> None:
    """Batches of any pairs give the logits that every pair gives alone."""
    model, pairs = case.model(), case.proxy.pairs
    assert pairs is not None
    chosen = torch.tensor([4, 0, 3])
    with torch.no_grad():
        together = model(**pairs[chosen].inputs).logits
        for row, index in enumerate(chosen.tolist()):
            alone = pairs[torch.tensor([index])]
            torch.testing.assert_close(model(**alone.inputs).logits[0], together[row])
    assert torch.equal(pairs[1:3].labels, pairs.labels[1:3])
    sliced, listed = pairs[1:3].inputs, pairs[torch.tensor([1, 2])].inputs
    assert all(torch.equal(sliced[name], listed[name]) for name in sliced)


@with_pairs
def test_answers_are_labelled(case: Case) -> None:
    pairs, tokenizer = case.proxy.pairs, case.processor.tokenizer
    assert pairs is not None
    answers = {tokenizer.decode(row[row != -100], skip_special_tokens=True) for row in pairs.labels}
    assert {answer.strip() for answer in answers} == {"w2", "w3 w4"}


def test_hessians_equal_those_of_the_whole_model(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks, positions and embeddings that a family makes reach every block as they should."""
    monkeypatch.setattr("efficientllava.calibration.block_walk.FEW_TOKENS", 1)
    adapter, proxy = adapter_for(case.model()), case.proxy
    gathered: dict[str, list[torch.Tensor]] = {}
    mask = [torch.ones_like(proxy.segments, dtype=torch.bool)]
    if proxy.pairs is not None:
        mask.append(proxy.pairs.inputs["attention_mask"].bool())
    current, handles = [0], []
    for matrix in adapter.matrices:

        def keep(module: Any, args: Any, matrix: Matrix = matrix) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            counted = mask[current[0]].flatten()
            if matrix.expert is not None:
                counted = counted & (args[1] == matrix.expert).sum(dim=1).bool()
                if matrix.name.endswith("down_proj"):
                    half = module.gate_up_proj.shape[1] // 2
                    both = rows @ module.gate_up_proj[matrix.expert].T
                    rows = module.act_fn(both[:, :half]) * both[:, half:]
            gathered.setdefault(matrix.name, []).append(rows[counted].double())

        handles.append(matrix.module.register_forward_pre_hook(keep))
    with torch.no_grad():
        adapter.model(**text_inputs(adapter.model, proxy.segments))
        current[0] = 1
        if proxy.pairs is not None:
            adapter.model(**proxy.pairs.inputs)
    for handle in handles:
        handle.remove()
    walk = BlockWalk(adapter, calibration_inputs(adapter, proxy, "text_and_pairs"))
    for block in range(len(adapter.blocks)):
        for group in walk.hessians(block):
            for matrix in group.matrices:
                inputs = torch.cat(gathered[matrix.name])
                assert group.tokens == len(inputs)
                if group.few_tokens:
                    continue
                exact = 2 / len(inputs) * inputs.T @ inputs
                torch.testing.assert_close(group.hessian.double(), exact, rtol=1e-3, atol=1e-4)
        walk.advance(block)


def test_loss_equals_that_of_a_plain_forward_pass(case: Case) -> None:
    adapter, proxy = adapter_for(case.model()), case.proxy
    with torch.no_grad():
        inputs = text_inputs(adapter.model, proxy.segments)
        text = adapter.model(**inputs).logits[:, :-1].double().log_softmax(-1)
        count = proxy.segments[:, 1:].numel()
        expected = -float(text.gather(2, proxy.segments[:, 1:, None]).mean())
        if proxy.pairs is not None:
            answers = adapter.model(**proxy.pairs.inputs).logits[:, :-1].double().log_softmax(-1)
            wanted = proxy.pairs.labels[:, 1:]
            picked = answers.gather(2, wanted.clamp(min=0)[..., None])[..., 0][wanted != -100]
            expected = (expected * count - float(picked.sum())) / (count + picked.numel())
    loss = ProxyLoss(adapter, proxy, "nll", "text_and_pairs")
    assert loss(adapter.language_model) == pytest.approx(expected, rel=1e-4)


def test_text_is_read_forwards(case: Case) -> None:
    """No token of the calibration text, the proxy loss or the text loss sees the next one."""
    adapter, other = adapter_for(case.model()), case.proxy.segments.clone()
    other[:, -1] = 21 + (other[:, -1] == 21).long()
    seen = []
    with torch.no_grad():
        for segments in (case.proxy.segments, other):
            inputs = language_inputs(adapter, {"input_ids": segments})
            seen.append(hidden_states(adapter.language_model, inputs)[:, :-1])
    torch.testing.assert_close(*seen)
    losses = segment_losses(adapter.model, case.proxy.segments, 8)
    expected = ProxyLoss(adapter, ProxyData(case.proxy.segments, None), "nll", "text")
    assert float(losses.mean()) == pytest.approx(expected(adapter.language_model), rel=1e-4)


def test_whole_chain(case: Case, tmp_path: Path) -> None:
    """Database, search, projector evolution if any, sequential pruning, save, reload, generate."""
    pruning = ObsParameters()
    parameters = SearchParameters(
        candidates=4,
        rounds=2,
        survivors=2,
        offsets=(-0.1, 0.0, 0.1),
        band=(-0.02, 0.02),
        projector_steps=3,
        projector_learning_rate=1e-3,
    )
    build_database(
        adapter_for(case.model()),
        case.proxy,
        LEVELS,
        pruning,
        tmp_path / "database",
        tmp_path / "work",
        {},
    )
    database = open_database(tmp_path / "database", LEVELS)
    found = Search(
        SearchInputs(adapter_for(case.model()), case.proxy, database),
        SearchGoal(LEVELS, 0.5, parameters),
        MachineParameters(workers=1),
        tmp_path / "search",
        {},
    ).run()
    last = found.rounds[1]
    if case.name in PICTURED:
        assert last["projector_loss_after"] != last["projector_loss_before"]
        assert "projector_evolution" not in found.summary
    else:
        assert last["projector_loss_after"] is None and found.projector == {}
        assert found.summary["projector_evolution"] == NO_PROJECTOR
    model = case.model()
    adapter = adapter_for(model)
    original = {name: value.clone() for name, value in adapter.projector_state.items()}
    record = prune_masked(
        OpenModel(adapter),
        case.proxy,
        "obs",
        Allocation(found.policy, "search", found.projector, risk=RISK),
        Parameters(obs=pruning, search=parameters),
        database,
    )
    assert record["achieved_sparsity"] == pytest.approx(0.5, abs=0.021)
    moved = any(
        not torch.equal(original[name], value) for name, value in adapter.projector_state.items()
    )
    assert moved == last["projector_kept"]
    save_checkpoint(model, case.folder, tmp_path / "pruned", shard=20_000)
    assert len(weight_files(tmp_path / "pruned")) > 2
    require_same_logits(model, load_model(tmp_path / "pruned"), case.proxy)
    _check_reloaded(tmp_path / "pruned", adapter, case.proxy)


def test_one_block_in_memory_changes_nothing(case: Case, tmp_path: Path) -> None:
    """In bfloat16, from shards into shards: the same weights as with the whole model in memory."""
    dense = tmp_path / "dense"
    save_checkpoint(case.model().to(torch.bfloat16), case.folder, dense, shard=20_000)
    pruning, search = ObsParameters(), SearchParameters(eta=0.0)
    for name in ("memory", "disk"):
        model = load_model(dense)
        assert model.dtype == torch.bfloat16
        adapter = adapter_for(model)
        policy = {matrix.name: 0.5 for matrix in adapter.matrices}
        with ExitStack() as stack:
            kept = stack.enter_context(blocks_on_disk(adapter, dense, tmp_path / "work"))
            on_disk = kept if name == "disk" else None
            if on_disk is None:
                stack.close()
            prune_masked(
                OpenModel(adapter, on_disk),
                case.proxy,
                "obs",
                Allocation(policy, "uniform"),
                Parameters(obs=pruning, search=search),
            )
            save_weights = None if on_disk is None else on_disk.save_weights
            save_checkpoint(model, dense, tmp_path / name, save_weights=save_weights, shard=20_000)
    files = sorted(path.name for path in (tmp_path / "memory").iterdir())
    assert "model.safetensors.index.json" in files
    assert [path.name for path in sorted((tmp_path / "disk").iterdir())] == files
    for file in files:
        assert (tmp_path / "disk" / file).read_bytes() == (tmp_path / "memory" / file).read_bytes()
    assert not list((tmp_path / "work").iterdir())


def test_verify_and_ask(case: Case, tmp_path: Path) -> None:
    """Through the console script; a text-only model refuses an image."""
    model = case.model()
    adapter = adapter_for(model)
    policy = {matrix.name: 0.5 for matrix in adapter.matrices}
    rows = prune_model(adapter, case.proxy, "magnitude", policy, ObsParameters())
    record = {"method": "magnitude", "ratio": 0.5, "policy": policy, "matrices": rows}
    save_checkpoint(model, case.folder, tmp_path / "pruned", {"pruning.json": record})
    done = CliRunner().invoke(commands, ["verify", str(tmp_path / "pruned")])
    assert done.exit_code == 0 and "50.0000% of the weights" in done.output, done.output
    image = tmp_path / "image.png"
    Image.new("RGB", (16, 16), "red").save(image)
    asked = ["ask", str(tmp_path / "pruned"), str(image), "w1 w2", "--raw", "--new-tokens", "3"]
    done = CliRunner().invoke(commands, asked)
    if isinstance(case.processor, ByHand):
        assert "torchvision" in str(done.exception)
        return
    if case.name in PICTURED:
        assert done.exit_code == 0, done.exception
        return
    assert isinstance(done.exception, UserError)
    assert "the model takes no images: it is a text-only language model" in str(done.exception)
    asked[2] = "-"
    done = CliRunner().invoke(commands, asked)
    inputs = case.processor(["w1 w2"], return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=3)[0, length:]
    expected = case.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert length > 0 and done.output.strip() == expected


def _check_reloaded(folder: Path, adapter: Adapter, proxy: ProxyData) -> None:
    """Plain transformers reads the checkpoint, gives the same logits and generates the same."""
    pictures = proxy.pairs is not None
    loader = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
    reloaded = loader.from_pretrained(folder).eval()
    segment = proxy.segments[:1]
    inputs = {"input_ids": segment, "attention_mask": torch.ones_like(segment)}
    if proxy.pairs is not None:
        inputs = proxy.pairs[2:3].inputs
    length = int(inputs["attention_mask"].sum())
    prompt = {
        name: value[:, :length] if value.shape[:2] == inputs["input_ids"].shape else value
        for name, value in inputs.items()
    }
    with torch.no_grad():
        assert torch.equal(reloaded(**prompt).logits, adapter.model(**prompt).logits)
    model: Any = adapter.model
    generated = [m.generate(**prompt, max_new_tokens=3, do_sample=False) for m in (reloaded, model)]
    assert torch.equal(*generated)
    assert generated[0].shape[1] > length


def measured(case: Case, folder: Path, device: torch.device | None) -> tuple[Any, ...]:
    """The proxy loss, the first block's Hessians, and the gradient of the projector or, in a
    text-only model, of the embeddings."""
    adapter, proxy = adapter_for(case.model()), case.proxy
    if any(matrix.expert is not None for matrix in adapter.matrices):
        # an operator of transformers' own, where the pretended device cannot look inside
        adapter.model.set_experts_implementation("eager")  # type: ignore[operator]
    with blocks_on_disk(adapter, case.folder, folder, device):
        loss = ProxyLoss(adapter, proxy, "nll", "text_and_pairs")(adapter.language_model)
        walk = BlockWalk(adapter, calibration_inputs(adapter, proxy, "text_and_pairs"))
        hessians = [group.hessian.cpu() for group in walk.hessians(0)]
        adapter.model.requires_grad_(False)
        trained = adapter.projector or adapter.model.get_input_embeddings()
        trained.requires_grad_(True)
        inputs = {"input_ids": proxy.segments.to(adapter.device)}
        if proxy.pairs is not None:
            inputs = proxy.pairs.to(adapter.device).inputs
        adapter.model.model(**inputs, use_cache=False).last_hidden_state.sum().backward()  # type: ignore[operator,union-attr]
        gradients = [p.grad.cpu() for p in trained.parameters() if p.grad is not None]
    return loss, hessians, gradients


def test_streams_to_a_pretended_gpu(case: Case, tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of a family stays behind on the CPU, and the numbers are the CPU's."""
    loss, hessians, gradients = measured(case, tmp_path / "cpu", None)
    with pretend_gpu(monkeypatch):
        same_loss, same_hessians, same_gradients = measured(case, tmp_path / "gpu", GPU)
    assert loss == same_loss
    assert len(gradients) > 0
    for one, other in zip([*hessians, *gradients], [*same_hessians, *same_gradients], strict=True):
        assert torch.equal(one, other)
