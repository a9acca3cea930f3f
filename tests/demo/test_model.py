"""The demo model: a real checkpoint, trained the same way every time."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from efficientllava.allocation.uniform import matrix_names
from efficientllava.data.images import image_bytes
from efficientllava.data.prompts import answer_text, question_prompt
from efficientllava.data.questions import read_questions
from efficientllava.data.text import demo_text
from efficientllava.demo.model import IMAGE_TOKENS, train_demo_model
from efficientllava.demo.questions.generator import draw_item
from efficientllava.demo.questions.items import SPLITS
from efficientllava.demo.questions.layout import write_questions
from efficientllava.demo.sequences import ANSWER, pack_conversations
from efficientllava.demo.tokenizer import build_tokenizer
from efficientllava.demo.training import image_features, normalise
from efficientllava.errors import UserError
from efficientllava.files import folder_digest
from efficientllava.models.checkpoint import skeleton
from efficientllava.models.families import adapter_for
from efficientllava.parameters import DemoParameters
from efficientllava.progress import Event, silent

PARAMETERS = DemoParameters(
    width=32,
    mlp_width=48,
    blocks=2,
    vocabulary=2048,
    vision_steps=2,
    steps=4,
    batch_size=4,
    train_questions=8,
    validation_questions=20,
    test_questions=20,
)


@pytest.fixture(scope="module")
def questions_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions") / "questions"
    write_questions(folder, PARAMETERS, silent)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, questions_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    train_demo_model(folder, PARAMETERS, questions_folder, silent)
    return folder


def test_same_parameters_same_bytes(
    tmp_path: Path, checkpoint: Path, questions_folder: Path
) -> None:
    events: list[Event] = []
    torch.manual_seed(99)  # what the caller did before makes no difference
    metrics = train_demo_model(tmp_path / "again", PARAMETERS, questions_folder, events.append)
    assert folder_digest(tmp_path / "again") == folder_digest(checkpoint)
    assert metrics == json.loads((checkpoint / "training.json").read_text())["validation"]
    assert 0 <= metrics["accuracy"] <= 1 and metrics["answer_nll"] > 0
    assert [each.done for each in events if each.name == "training step"] == [4]
    other = PARAMETERS.model_copy(update={"seed": 1})
    train_demo_model(tmp_path / "other", other, questions_folder, silent)
    assert folder_digest(tmp_path / "other") != folder_digest(checkpoint)


def test_training_leaves_the_caller_s_randomness_alone(
    tmp_path: Path, questions_folder: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quick = PARAMETERS.model_copy(update={"steps": 1, "vision_steps": 1, "blocks": 1})
    train_demo_model(tmp_path / "model", quick, questions_folder, silent)
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_plain_transformers_loads_and_answers(
    checkpoint: Path, questions_folder: Path, tmp_path: Path
) -> None:
    """In a process that never imports this package, with text alone and with pictures."""
    question = next(each for each in read_questions(questions_folder, "test") if each.image)
    assert question.image is not None
    picture = tmp_path / "picture.png"
    picture.write_bytes(image_bytes(question.image))
    script = f"""
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained({str(checkpoint)!r})
model = AutoModelForImageTextToText.from_pretrained({str(checkpoint)!r}).eval()
image = Image.open({str(picture)!r})
inputs = processor(text=[{question_prompt(question)!r}, "<image> which?"], images=[image, image],
                   padding=True, return_tensors="pt")
assert (inputs["input_ids"] == model.config.image_token_id).sum().item() == 32
with torch.no_grad():
    assert torch.isfinite(model(**inputs).logits).all()
    tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
assert tokens.shape[0] == 2
text = processor(text=["What is the capital of France?"], return_tensors="pt")
assert torch.isfinite(model(**text).logits).all()
assert not any(name.startswith(("efficientllava", "torchvision")) for name in sys.modules)
print(type(model).__name__, type(processor).__name__)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.stdout.split() == ["LlavaForConditionalGeneration", "LlavaProcessor"], told.stderr


def test_training_sees_what_the_processor_makes(checkpoint: Path, questions_folder: Path) -> None:
    """Pixels, features and tokens in training equal those of the standard forward pass."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    question = next(each for each in read_questions(questions_folder, "test") if each.image)
    image = question.open_image()
    assert image is not None
    inputs = processor(text=[question_prompt(question)], images=[image], return_tensors="pt")
    raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = raw.view(1, 32, 32, 3).permute(0, 3, 1, 2)
    assert torch.allclose(normalise(pixels), inputs["pixel_values"], atol=1e-6)
    with torch.no_grad():
        projected = model.model.multi_modal_projector(image_features(model, pixels))
        expected = model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    assert projected.shape == (1, IMAGE_TOKENS, PARAMETERS.width)
    assert torch.allclose(projected[0], expected, atol=1e-6)


def test_packed_rows_are_prompts_and_answers() -> None:
    tokenizer = build_tokenizer(2048)
    packed = pack_conversations(tokenizer, IMAGE_TOKENS, count=40, length=100, seed=0)
    assert packed.ids.shape == packed.roles.shape == (40, 100)
    image = tokenizer.convert_tokens_to_ids("<image>")
    for ids, roles, picture in zip(packed.ids, packed.roles, packed.picture, strict=True):
        assert int((ids == image).sum()) == (IMAGE_TOKENS if picture >= 0 else 0)
        ends = (ids == tokenizer.eos_token_id).nonzero()[:, 0]
        assert len(ends) >= 2
        for end in ends.tolist():  # an answer is one word and the end token, after a question
            assert roles[end - 2 : end + 1].tolist()[1:] == [ANSWER, ANSWER]
            assert tokenizer.convert_ids_to_tokens(int(ids[end - 2])) == "?"
        assert int((roles == ANSWER).sum()) == 2 * len(ends)
    assert len(packed.pixels) == int((packed.picture >= 0).sum())
    again = pack_conversations(tokenizer, IMAGE_TOKENS, count=40, length=100, seed=0)
    assert torch.equal(packed.ids, again.ids) and torch.equal(packed.pixels, again.pixels)


def test_every_choice_is_one_token_and_nothing_is_unknown() -> None:
    tokenizer = build_tokenizer(2048)
    draw = random.Random(2)
    for split in SPLITS:
        for _ in range(200):
            item = draw_item(draw, split)
            for choice in item.choices:
                assert len(tokenizer(choice, add_special_tokens=False)["input_ids"]) == 1
            text = f"{item.hint} {item.question}"
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


@pytest.mark.parametrize("size", [2048, 2560])
def test_tokenizer_fills_its_vocabulary_and_knows_english(size: int) -> None:
    tokenizer = build_tokenizer(size)
    assert len(tokenizer) == size
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    text = demo_text("held_out")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert ids.count(tokenizer.unk_token_id) / len(ids) < 0.005
    assert len(ids) / len(text.split()) < 2.2
    sentence = "the quick parser returns a list of names"
    assert tokenizer.decode(tokenizer(sentence, add_special_tokens=False)["input_ids"]) == sentence
    assert tokenizer("<unk> of", add_special_tokens=False)["input_ids"][0] == tokenizer.unk_token_id


def test_a_vocabulary_too_small_for_the_questions_is_refused() -> None:
    with pytest.raises(UserError, match="vocabulary 700 is too small: the questions alone need"):
        build_tokenizer(700)


def test_answer_text_is_the_training_s_answer(questions_folder: Path) -> None:
    for question in read_questions(questions_folder, "test"):
        assert answer_text(question) == question.choices[question.answer]


def test_names_of_the_matrices_lie_beside_the_weights(tmp_path: Path) -> None:
    """The same ratio for all of them is allotted without loading the model, or torch."""
    model = tmp_path / "model"
    write_questions(tmp_path / "questions", PARAMETERS, silent)
    train_demo_model(model, PARAMETERS, tmp_path / "questions", silent)
    script = (
        "import json, sys; from pathlib import Path\n"
        "from efficientllava.allocation.context import Context\n"
        "from efficientllava.registry import METHODS\n"
        "from efficientllava.parameters import Parameters\n"
        "context = Context(Path(sys.argv[1]), Path('none'), 0.5, Parameters(), Path('none'))\n"
        "policy = METHODS['sparsegpt'].allocate(context).policy\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
        "print(json.dumps(policy))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(model)], capture_output=True, text=True, check=True
    )
    matrices = adapter_for(skeleton(model)).matrices
    assert json.loads(told.stdout) == {matrix.name: 0.5 for matrix in matrices}
    (model / "matrices.json").unlink()
    assert matrix_names(model) == [matrix.name for matrix in matrices]
