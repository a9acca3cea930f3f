"""The demo model's tokenizer: whole words for the questions, word pieces for other text."""

from __future__ import annotations

import collections
import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from efficientllava.data.prompts import IMAGE_TOKEN, format_prompt
from efficientllava.data.text import read_text
from efficientllava.demo.questions.generator import question_words
from efficientllava.errors import UserError

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<bos>", "<eos>"
SPECIAL_TOKENS = (PAD, UNKNOWN, BEGIN, END, IMAGE_TOKEN)
_PIECE_LENGTHS = range(2, 5)
_PIECE_SHARE = 0.25  # of the vocabulary that is left for ordinary text


def build_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with exactly `size` tokens.

    Its vocabulary holds every word of the questions, so that each choice is one token; single
    characters, so that nothing in plain English is unknown; and the most frequent words, word
    beginnings and word endings of the demo text.

    Raises:
        UserError: `size` is too small for the questions.
    """
    split = _pre_tokenizer()
    vocabulary = _vocabulary(size, split)
    word_piece = models.WordPiece(  # type: ignore[call-arg]
        {token: index for index, token in enumerate(vocabulary)},
        unk_token=UNKNOWN,
        continuing_subword_prefix="##",
    )
    tokenizer = Tokenizer(word_piece)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, vocabulary.index(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=512,
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])


def _vocabulary(size: int, split: pre_tokenizers.PreTokenizer) -> list[str]:
    """Tokens in the order of their ids; the same on every run."""

    def count(texts: list[str]) -> collections.Counter[str]:
        return collections.Counter(
            word for text in texts for word, _ in split.pre_tokenize_str(text.lower())
        )

    prompt = format_prompt("?", ("a", "b"), ".")
    questions = count([*question_words(), prompt])
    characters = list(string.ascii_lowercase + string.digits + string.punctuation)
    pieces = [f"##{character}" for character in string.ascii_lowercase + string.digits]
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *characters, *pieces, *sorted(questions)])
    room = size - len(tokens)
    if room < 0:
        raise UserError(
            f"vocabulary {size} is too small: the questions alone need {len(tokens)} tokens",
            where="params.yaml, model.demo.vocabulary",
        )
    words = count([read_text("demo")])
    by_frequency = sorted(words, key=lambda word: (-words[word], word))
    new_words = [word for word in by_frequency if word not in tokens and word.isalpha()]
    new_words = new_words[: room - int(room * _PIECE_SHARE)]
    tokens.update(dict.fromkeys(new_words))
    parts: collections.Counter[str] = collections.Counter()
    for word in words:
        if word.isalpha() and word not in tokens:
            for length in _PIECE_LENGTHS:
                if length < len(word):
                    parts[word[:length]] += words[word]
                    parts[f"##{word[-length:]}"] += words[word]
    most_frequent = sorted(parts, key=lambda part: (-parts[part], part))
    new_parts = [part for part in most_frequent if part not in tokens]
    tokens.update(dict.fromkeys(new_parts[: size - len(tokens)]))
    filler = (f"<unused{index}>" for index in range(size - len(tokens)))
    return [*tokens, *filler]
