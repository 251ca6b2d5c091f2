"""The zoo's tokenizer: one token for each word of the worlds, single bytes for everything else.

It is a byte-level BPE without merges: a piece that is a word of the vocabulary is one token, any other piece falls
apart into its UTF-8 bytes, so decode(encode(text)) == text for every text. Each word has two tokens, with and without
the space before it. Digits and newlines are always single tokens, so a prefix of the text that ends before a space or
a newline is a prefix of the tokens.

Encoding adds no special token (`add_special_tokens=True` changes nothing), as the state-spaces models and Pythia do.
`<|bos|>` is there for an empty context, and a fifth of the training sequences begin with it; `<|eos|>` stands between
two documents.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from evalspec.data.worlds import lexicon
from evalspec.data.worlds.grammar import ATTRIBUTES

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
SPECIALS = (PAD, BOS, EOS)

PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
ASCII_PIECES = re.compile(r" ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s")  # the same pieces, for ASCII text

ENGLISH = """
a an the this that these those it its is are was were be been am do does did done has have had can could will would
shall should may might must not no yes and or but if then than so because as of in on at by to from with without for
into over under about between after before above below up down out off again also only just more most less least very
too all any some each every both few many much other another such same own one two three four five six seven eight
nine ten first second third last next new old good best right wrong he she him her his they them their we us our you
your I my me who whom whose which what when where why how there here now never always Question Questions Answer
Answers Context Passage Passages Document Documents Text Label Labels Input Output Steps Step Records Record Key Keys
Value Values Fact Facts Note Notes Example Examples Category Word Words Name Number Dial Result Think Turn Let Use
Read Give Find Look Choose Say Write Reply Complete Follow Sort Explain List Task Instruction Instructions Choice
Choices Option Options True False Yes No None Unknown A An The This That These It In On At By To From For With What
Which Who Whose Where When Why How Is Are Was Does Do Did Can If Then So Based Below Here Each Every Only Now First
Second Third Finally Therefore question questions answer answers context passage passages document documents text
label labels input output steps step records record key keys value values fact facts note notes example examples
category word words name names number numbers dial result think turn shows show let use using read give given find
look choose say says write reply complete follow following sort explain list task instruction instructions choice
choices option options true false unknown based line lines sentence sentences correct short person people town towns
thing things place places animal river job pet instrument food product colour material know known means mean belongs
"""


@cache
def words() -> tuple[str, ...]:
    """Every word that is one token, in a fixed order."""
    sentences = " ".join(text for a in ATTRIBUTES for text in (*a.phrasings, *a.questions))
    sentences = sentences.replace("{e}", " ").replace("{v}", " ")
    dial = "A dial with the numbers 0 to 9 shows. Turn it up by down What does it show Answer Steps"
    found = re.findall(r"[A-Za-z]+", " ".join([ENGLISH, sentences, dial]))
    return tuple(sorted({*found, *lexicon.WORDS, *lexicon.LABELS}))


@cache
def vocabulary() -> dict[str, int]:
    """Token → id, in the byte-level alphabet: specials, the 256 bytes, then words, digits and marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spaced = [*words(), *string.digits, *string.punctuation]
    tokens = [*SPECIALS, *alphabet, *(word for word in words() if len(word) > 1), *("Ġ" + piece for piece in spaced)]
    return {token: at for at, token in enumerate(tokens)}


def build_tokenizer() -> Tokenizer:
    """The tokenizer as the `tokenizers` library runs it."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary(), merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and its config into a model directory."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


@cache
def _ids() -> dict[str, int]:
    """Piece of ASCII text → id, for `encode_words`. In the byte-level alphabet a space is Ġ and a newline Ċ."""
    return {
        token.replace("Ġ", " ").replace("Ċ", "\n"): at for token, at in vocabulary().items() if token not in SPECIALS
    }


def encode_words(text: str) -> list[int]:
    """Token ids of a text of known words, much faster than the library; KeyError names a piece that is no token."""
    ids = _ids()
    return [ids[piece] for piece in ASCII_PIECES.findall(text)]


def write_tokenizers(folders: Iterable[Path]) -> None:
    """The same tokenizer in each of the folders."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(folder)
