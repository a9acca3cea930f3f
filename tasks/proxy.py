"""Stage `proxy`: draw the text segments and image-text pairs that stand in for training data.

A model that takes no images gets no pairs.

In:  params proxy, evaluation.style, evaluation.chat_template; artifacts/model (tokenizer,
     processor), artifacts/questions
Out: artifacts/proxy/ (segments.safetensors, pairs.safetensors, manifest.json)
"""

from __future__ import annotations

import sys

from tasks.runtime.stage import ARTIFACTS, Stage, run_stage


def proxy(stage: Stage) -> None:
    """Draw and save the proxy data."""
    from efficientllava.data.proxy import ProxyData, build_pairs, save_proxy
    from efficientllava.data.questions import read_questions
    from efficientllava.data.text import read_text, sample_segments
    from efficientllava.files import value_digest
    from efficientllava.models.checkpoint import load_processor
    from efficientllava.models.families import family_of
    from efficientllava.reading import expanded, read_model_config

    settings, asked = stage.parameters.proxy, stage.parameters.evaluation
    stage.check_settings(ARTIFACTS / "model")
    processor = load_processor(ARTIFACTS / "model", asked.style, asked.chat_template)
    text = read_text(settings.text)
    segments = sample_segments(
        processor.tokenizer, text, settings.segments, settings.segment_length, settings.seed
    )
    pairs = None
    family = family_of(read_model_config(ARTIFACTS / "model"))
    manifest = {**settings.model_dump(mode="json"), "text_digest": value_digest(text)}
    if settings.pairs and not family.takes_images:
        manifest["pairs"] = 0
        print("no image-text pairs: the model takes no images", file=sys.stderr)
    elif settings.pairs:
        own = settings.pairs_source != "demo"
        folder = expanded(settings.pairs_source) if own else ARTIFACTS / "questions"
        pairs = build_pairs(
            read_questions(folder, "train"),
            processor,
            settings.pairs,
            settings.seed,
            family.image_token,
        )
    save_proxy(ARTIFACTS / "proxy", ProxyData(segments, pairs), manifest)


if __name__ == "__main__":
    run_stage(proxy)
