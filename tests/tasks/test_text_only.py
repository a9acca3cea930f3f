"""The stages on a text-only language model: no pairs, no projector, questions without pictures."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from efficientllava.files import read_json
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.processors.text_processor import TextProcessor
from tests.tasks.conftest import Here, Workspace

STAGES = ("model", "proxy", "search", "prune", "evaluate", "export")


def test_stages_prune_a_text_only_model(
    ready: Workspace, here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ready.folder / "artifacts" / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    given = ready.folder / "given"
    save_checkpoint(LlamaForCausalLM(config).eval(), TextProcessor(tokenizer), given)
    ready.set_parameters({"model": {"source": "./given"}})
    cell = ("--method", "efficientllava", "--ratio", "0.5")
    told = ""
    for stage in STAGES:
        outcome = here(ready.folder, f"tasks.{stage}", *(cell if STAGES.index(stage) > 1 else ()))
        assert outcome.status == 0, (stage, outcome.error)
        told += outcome.error
    assert "no image-text pairs: the model takes no images" in told
    assert "search.evolve_projector is off: the model has no projector" in caplog.text
    artifacts = ready.folder / "artifacts"
    assert read_json(artifacts / "proxy" / "manifest.json")["pairs"] == 0
    assert not (artifacts / "proxy" / "pairs.safetensors").exists()
    summary = read_json(artifacts / "search" / "efficientllava-0.5" / "search.json")
    assert summary["projector_evolution"] == "off: the model has no projector"
    metrics = read_json(artifacts / "pruned_metrics" / "efficientllava-0.5.json")
    assert 0.5 <= metrics["achieved_sparsity"] <= 0.51
    scores = read_json(artifacts / "evaluation" / "efficientllava-0.5" / "scores.json")
    assert 0 < scores["n"] == scores["breakdowns"]["TXT"]["n"] + scores["breakdowns"]["NO"]["n"]
    record = read_json(artifacts / "export" / "efficientllava-0.5" / "export.json")
    assert record["runtimes"]["sparse"]["available"] and record["tokens_match"]
    assert "models of type 'llama' are not exported" in record["runtimes"]["onnxruntime"]["reason"]
