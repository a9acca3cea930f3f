"""Stage `proxy`: draw the text segments and image-text pairs that stand in for training data.

In:  params proxy; artifacts/model (tokenizer, processor), artifacts/questions
Out: artifacts/proxy/ (segments.safetensors, pairs.safetensors, manifest.json)
"""

from __future__ import annotations

from pathlib import Path

from tasks.runtime.stage import ARTIFACTS, Stage, run_stage


def proxy(stage: Stage) -> None:
    """Draw and save the proxy data."""
    from efficientllava.data.proxy import ProxyData, build_pairs, save_proxy
    from efficientllava.data.questions import read_questions
    from efficientllava.data.text import read_text, sample_segments
    from efficientllava.files import read_json, value_digest
    from efficientllava.models.checkpoint import load_processor
    from efficientllava.models.families import require_family

    wanted = stage.parameters.proxy
    processor = load_processor(ARTIFACTS / "model")
    text = read_text(wanted.text)
    segments = sample_segments(
        processor.tokenizer, text, wanted.segments, wanted.segment_length, wanted.seed
    )
    pairs = None
    if wanted.pairs:
        own = wanted.pairs_source != "embedded"
        folder = Path(wanted.pairs_source).expanduser() if own else ARTIFACTS / "questions"
        model_type = read_json(ARTIFACTS / "model" / "config.json")["model_type"]
        pairs = build_pairs(
            read_questions(folder, "train"),
            processor,
            wanted.pairs,
            wanted.seed,
            require_family(model_type).image_token,
        )
    manifest = {**wanted.model_dump(mode="json"), "text_digest": value_digest(text)}
    save_proxy(ARTIFACTS / "proxy", ProxyData(segments, pairs), manifest)


if __name__ == "__main__":
    run_stage(proxy)
