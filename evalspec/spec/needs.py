"""What each metric asks of a task and what a task yields, declared before anything runs.

Here stand only declarations, so that a spec can be checked without importing the functions that compute;
the functions are in `evalspec.metrics`, under the same names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["generate", "choose", "score"]
Evidence = Literal["output", "choices", "likelihood", "retrieval"]

EVIDENCE_OF_KIND: dict[str, Evidence] = {"generate": "output", "choose": "choices", "score": "likelihood"}


@dataclass(frozen=True)
class Declaration:
    """What a metric needs (`evidence`), whether it is cut at a rank or a position (`at_k`), which way is better, which
    of a metric block's options mean something to it.

    `compares`: an output is held against `prompt.target`. `needs` names what else of a task it looks at: `retrieval`
    (the passages shown), `unknown` (`prompt.unknown`), `steps` (`prompt.steps`). `unconditional`: each choice is also
    scored without its prompt; what a plugin declares of that asks for nothing.
    """

    name: str
    evidence: Evidence
    at_k: bool = False
    higher_is_better: bool = True
    says: str = ""
    options: tuple[str, ...] = ()
    compares: bool = True
    needs: tuple[Literal["retrieval", "unknown", "steps"], ...] = ()
    unconditional: bool = False


_COMPARING = ("literal", "ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore")

METRICS: dict[str, Declaration] = {
    d.name: d
    for d in (
        Declaration("exact_match", "output", says="the normalised output equals a target", options=_COMPARING),
        Declaration("token_f1", "output", says="bag-of-words F1 with the best target (SQuAD)"),
        Declaration("contains", "output", says="a target stands somewhere in the output"),
        Declaration(
            "grounded", "output", compares=False, needs=("retrieval",), says="the output stands in a passage shown"
        ),
        Declaration(
            "abstained", "output", compares=False, needs=("unknown",), says="the output is one of `prompt.unknown`"
        ),
        Declaration("contains_all", "output", says="share of the targets that stand somewhere in the output"),
        Declaration("rouge1", "output", says="ROUGE-1: F of shared words with the best target"),
        Declaration("rouge2", "output", says="ROUGE-2: F of shared pairs of words with the best target"),
        Declaration("rougeL", "output", says="ROUGE-L: F of the longest common subsequence with the best target"),
        Declaration("bleu", "output", says="BLEU of all outputs together, 0 to 100 (sacrebleu)"),
        Declaration("chrf", "output", says="chrF of all outputs together, 0 to 100 (sacrebleu)"),
        Declaration("ter", "output", higher_is_better=False, says="translation edit rate of all outputs, in percent"),
        Declaration(
            "steps_correct", "output", needs=("steps",), says="share of the right steps that stand in their places"
        ),
        Declaration("first_wrong_step", "output", needs=("steps",), says="place of the first wrong or missing step"),
        Declaration(
            "right_answer_wrong_steps",
            "output",
            higher_is_better=False,
            needs=("steps",),
            says="the answer is right although a step is not",
        ),
        Declaration("accuracy", "choices", says="the likeliest choice is the target"),
        Declaration("accuracy_norm", "choices", says="the likeliest choice per character is the target"),
        Declaration("accuracy_bytes", "choices", says="the likeliest choice per UTF-8 byte is the target"),
        Declaration(
            "accuracy_pmi",
            "choices",
            unconditional=True,
            says="the choice that the prompt makes likelier by most is the target",
        ),
        Declaration("f1", "choices", says="F1 of the second choice over all samples, the first being `no`, say"),
        Declaration("mcc", "choices", says="Matthews' correlation of the choices taken with the right ones"),
        Declaration("choice_probability", "choices", says="probability of the target among the choices"),
        Declaration("log_loss", "choices", higher_is_better=False, says="−log of that probability"),
        Declaration("brier", "choices", higher_is_better=False, says="squared error of the choices' probabilities"),
        Declaration(
            "expected_calibration_error",
            "choices",
            higher_is_better=False,
            says="how far confidence is from accuracy, in 15 bins",
        ),
        Declaration("greedy", "likelihood", says="every token of the target is the likeliest one"),
        Declaration("target_perplexity", "likelihood", higher_is_better=False, says="exp of the mean loss per target"),
        Declaration("perplexity", "likelihood", higher_is_better=False, says="exp of the mean loss per token"),
        Declaration("word_perplexity", "likelihood", higher_is_better=False, says="exp of the loss per word"),
        Declaration("byte_perplexity", "likelihood", higher_is_better=False, says="exp of the loss per UTF-8 byte"),
        Declaration("bits_per_byte", "likelihood", higher_is_better=False, says="loss per UTF-8 byte, in bits"),
        Declaration(
            "nll",
            "likelihood",
            at_k=True,
            higher_is_better=False,
            says="loss per token, in nats, behind k/2 to k tokens",
        ),
        Declaration("recall", "retrieval", at_k=True, says="share of the gold passages among the first k"),
        Declaration("precision", "retrieval", at_k=True, says="share of the first k that are gold"),
        Declaration("reciprocal_rank", "retrieval", says="1 / rank of the first gold passage, 0 when absent"),
        Declaration("ndcg", "retrieval", at_k=True, says="normalised discounted cumulative gain at k"),
    )
}


def metric_of(label: str) -> str:
    """The metric behind the name under which its results are stored: `recall@5`, `exact_match(ignore_case)`."""
    return re.split(r"[@(]", label, maxsplit=1)[0]


# Names that a spec may use without a plugin. What they do stands in `evalspec.retrieval` and `evalspec.data`,
# under the same names; `evalspec/zoo/` holds the weights.
RETRIEVERS: dict[str, str] = {
    "none": "no passages",
    "oracle": "the gold passages, filled up with distractors",
    "bm25": "BM25 over stemmed words",
    "dense": "cosine similarity of sentence embeddings",
    "fusion": "reciprocal rank fusion of several retrievers",
}

STEPS: dict[str, str] = {
    "strip": "without the white space at both ends",
    "remove_whitespace": "the same, under lm-evaluation-harness's name",
    "first_line": "the first line that is not blank",
    "lower": "in lower case",
    "upper": "in upper case",
    "last_number": "the last number, without commas and currency signs",
    "choice_letter": "the letter of a choice: after `answer is`, else the last in parentheses, else the last alone",
}

GENERATORS: dict[str, str] = {
    "world.questions": "questions about a small invented world, answered by one of its passages",
    "world.passages": "the passages of that world, near misses among them",
    "world.labels": "words to label by category, the labels' meaning set anew in each prompt",
    "world.records": "key-value records to look up in a prompt",
    "world.arithmetic": "sums with written steps",
    "world.patterns": "words that come again and again, and which one comes next",
    "world.phone_book": "full names with a number or a town each, and one name to look up",
    "world.haystack": "needles (facts) in filler: facts of a world, or any file of documents",
    "world.variables": "chains of assignments among other chains, and what a variable is in the end",
    "world.multi_document": "a question and n documents, one of which answers it",
}

ZOO: dict[str, str] = {
    "transformer": "a small Transformer (Llama)",
    "mamba": "a small Mamba",
    "mamba2": "a small Mamba-2",
}

# Entry-point groups in which plugins declare further names.
PLUGINS: dict[str, str] = {
    "metric": "evalspec.metrics",
    "retriever": "evalspec.retrievers",
    "generator": "evalspec.generators",
    "step": "evalspec.filters",
}
