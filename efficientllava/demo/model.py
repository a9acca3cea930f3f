"""The tiny LLaVA that the `model` stage trains itself: a real one, small enough for two cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from efficientllava.data.questions import Question, read_questions
from efficientllava.data.text import read_text
from efficientllava.demo.sequences import pack_conversations
from efficientllava.demo.tokenizer import build_tokenizer
from efficientllava.demo.training import (
    PIXEL_MEAN,
    PIXEL_STD,
    DecoderRecipe,
    train_decoder,
    train_vision_tower,
)
from efficientllava.models.checkpoint import save_checkpoint
from efficientllava.models.families import adapter_for
from efficientllava.models.likelihood import choice_likelihoods
from efficientllava.models.source import MATRICES
from efficientllava.parameters import DemoParameters
from efficientllava.progress import Progress

IMAGE_SIZE, PATCH_SIZE = 32, 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
VISION_WIDTH = 96
SEQUENCE_LENGTH = 100
CONTEXT_LENGTH = 512
_EMBEDDING_DEVIATION = 0.1
TRAINING_RECORD = "training.json"


def train_demo_model(
    folder: Path, parameters: DemoParameters, questions_folder: Path, progress: Progress
) -> dict[str, float]:
    """Train the demo model and write it as a transformers checkpoint.

    The same parameters and the same number of threads give the same bytes.

    Returns:
        Accuracy and the answers' mean negative log-likelihood on the validation split.
    """
    with _reproducible(parameters.seed):
        tokenizer = build_tokenizer(parameters.vocabulary)
        processor = build_processor(tokenizer)
        model = build_model(parameters, tokenizer)
        model.train()
        train_vision_tower(model, parameters.vision_steps, parameters.seed, progress)
        conversations = pack_conversations(
            tokenizer,
            IMAGE_TOKENS,
            count=parameters.steps * parameters.batch_size,
            length=SEQUENCE_LENGTH,
            seed=parameters.seed,
        )
        text = tokenizer(read_text("demo"), add_special_tokens=False, verbose=False)
        recipe = DecoderRecipe(parameters.steps, parameters.batch_size, parameters.seed)
        train_decoder(model, conversations, torch.tensor(text["input_ids"]), recipe, progress)
        model.eval()
        model.requires_grad_(True)
        validation = read_questions(questions_folder, "val")
        metrics = _validation_metrics(model, processor, validation, progress)
    record = {"validation": metrics, "parameters": parameters.model_dump(mode="json")}
    names = [matrix.name for matrix in adapter_for(model).matrices]
    save_checkpoint(
        model, processor, folder, {TRAINING_RECORD: record, MATRICES: names}, sealed=True
    )
    return metrics


def _validation_metrics(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: list[Question],
    progress: Progress,
) -> dict[str, float]:
    likelihoods = choice_likelihoods(model, processor, questions, 64, progress)
    answers = [question.answer for question in questions]
    right = sum(
        values[answer] == max(values) for values, answer in zip(likelihoods, answers, strict=True)
    )
    nll = -sum(values[answer] for values, answer in zip(likelihoods, answers, strict=True))
    return {"accuracy": right / len(questions), "answer_nll": nll / len(questions)}


def vision_config() -> CLIPVisionConfig:
    """The vision tower of the demo model, and of the LLaVA around a pretrained language model."""
    return CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=2 * VISION_WIDTH,
        projection_dim=VISION_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )


def build_model(
    parameters: DemoParameters, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """The untrained model; weights are drawn from torch's generator."""
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=parameters.width,
        intermediate_size=parameters.mlp_width,
        num_hidden_layers=parameters.blocks,
        num_attention_heads=parameters.heads,
        num_key_value_heads=parameters.heads,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        # wider than usual and with a part that all tokens share, to which attention to positions
        # can hold on: on one set of questions the loss after 100 steps was 2.1 instead of 2.8
        embeddings = model.model.language_model.embed_tokens.weight
        embeddings.mul_(_EMBEDDING_DEVIATION / language.initializer_range)
        embeddings[:, 0] += 3 * _EMBEDDING_DEVIATION
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Images of any size are brought to 32 x 32; <image> becomes 16 tokens, CLS is dropped."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seeded and deterministic inside; outside, torch's state is as before."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
