"""The tokenizer over the real vocabulary; tests/parity compares its ids with the reference's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines.trellis.text.tokenizer import PromptTokenizer, vocabulary_of
from pipeline.errors import WeightsUnusable
from tests.fakes.clip_vocabulary import NoVocabulary, prompt_tokenizer, vocabulary_folder

START, END = 49406, 49407


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    try:
        return prompt_tokenizer()
    except NoVocabulary as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
def test_a_text_without_words_is_start_and_ends(tokenizer: PromptTokenizer, text: str) -> None:
    tokenized = tokenizer.tokenize(text)

    assert tokenized.ids.tolist() == [START, *[END] * 76]
    assert (tokenized.tokens, tokenized.unread) == (0, "")


def test_the_end_of_a_long_prompt_is_told_word_for_word(tokenizer: PromptTokenizer) -> None:
    words = "red  BLUE " * 40  # one token each

    tokenized = tokenizer.tokenize(words)

    assert tokenized.tokens == 80
    assert tokenized.ids[-1] == END and END not in tokenized.ids[:-1]
    assert tokenized.unread == "BLUE red  BLUE red  BLUE"


def test_75_tokens_are_read_as_a_whole(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.tokenize("cat " * 75).unread == ""
    assert tokenizer.tokenize("cat " * 76).unread == "cat"


def test_signs_of_every_script_have_tokens(tokenizer: PromptTokenizer) -> None:
    for text in ("👨‍👩‍👧 ❤️", "木製の椅子", "фарфоровая чашка", "\u202eabc", "\U0010ffff"):
        tokenized = tokenizer.tokenize(text)
        assert tokenized.tokens > 0, text
        assert int(tokenized.ids.max()) == END


def test_the_tokenizer_of_the_test_weights_reads_any_text_by_its_bytes() -> None:
    tokenizer = PromptTokenizer.of_bytes()

    assert tokenizer.tokenize("ab").ids.tolist()[:4] == [512, ord("a") - 33, 256 + ord("b") - 33, 513]
    assert tokenizer.tokenize("木").tokens == 3
    assert tokenizer.tokenize("x" * 10_000).tokens == 10_000


def test_the_vocabulary_has_bytes_merges_and_specials() -> None:
    vocabulary = vocabulary_of([("t", "h"), ("th", "e</w>")])

    assert len(vocabulary) == 512 + 2 + 2
    assert (vocabulary["th"], vocabulary["the</w>"], vocabulary["<|endoftext|>"]) == (512, 513, 515)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", None, "vocab.json is missing"),
        ("merges.txt", None, "merges.txt is missing"),
        ("vocab.json", "{", "is damaged"),
        ("merges.txt", "#version\na b c\n", "is damaged"),
    ],
)
def test_a_vocabulary_that_cannot_be_read_is_an_error_of_the_weights(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    try:
        folder = vocabulary_folder()
    except NoVocabulary as reason:
        pytest.skip(str(reason))
    for other in ("vocab.json", "merges.txt"):
        if other != name:
            (tmp_path / other).write_bytes((folder / other).read_bytes())
    if content is not None:
        (tmp_path / name).write_text(content)

    with pytest.raises(WeightsUnusable, match=message):
        PromptTokenizer.from_folder(tmp_path)
