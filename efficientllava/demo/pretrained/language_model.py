"""SmolLM2-135M-Instruct and its tokenizer from the GGUF file, as plain float32 weights."""

from __future__ import annotations

import struct
from contextlib import redirect_stderr
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

from efficientllava.errors import UserError
from efficientllava.terminal import quiet_transformers

IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nAnswer:{% endif %}"
)
"""SmolLM2's turns with LLaVA's image line, without the system sentence.

The assistant's turn is begun with "Answer:", so that an answer follows after a space and nearly
every choice of the demo questions is a single token.
"""


def require_gguf() -> None:
    """Check that the extra `gguf` is installed.

    Raises:
        UserError: it is not.
    """
    for package in ("gguf", "accelerate"):
        try:
            version(package)
        except PackageNotFoundError as error:
            raise UserError(
                f"the package {package} is not installed, which reads the language model",
                where="params.yaml, model.source: smollm2",
                remedy="pip install -c constraints.txt -e '.[gguf]'",
            ) from error


@quiet_transformers()
def read_language_model(gguf: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    """The language model in float32 (4-bit weights are dequantised), and its tokenizer.

    Raises:
        UserError: transformers cannot read the file.
    """
    try:
        with redirect_stderr(StringIO()):  # a bar that transformers' switch does not turn off
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (ValueError, KeyError, RuntimeError, OSError, IndexError, struct.error) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"transformers cannot read it: {first}", where=str(gguf)) from error
    # the weights are plain ones now; saved as they are, the checkpoint must not say otherwise
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _mend(tokenizer)
    return model.eval(), tokenizer


def _mend(tokenizer: Tokenizer) -> None:
    """Put back what GGUF does not hold: single digits, the image token, the begin of a turn.

    The original tokenizer.json splits numbers into digits before it splits words; transformers'
    conversion leaves this out. The GGUF file names <|im_start|> as BOS, as the original does, and
    neither puts it in front of a text: the chat template writes it.
    """
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    tokenizer.image_token = IMAGE_TOKEN
    tokenizer.padding_side = "left"
