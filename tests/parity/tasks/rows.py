"""The Python of the task files here: each way in which tasks of the harness make rows and values of rows."""

from functools import partial


def endings(dataset):
    """As HellaSwag has it: columns made of columns, rows left out."""

    def with_query(row):
        says = "because" if row["question"] == "cause" else "therefore"
        options = [row["choice1"].lower(), row["choice2"].lower()]
        return {"query": f"{row['premise'].rstrip('.')} {says}", "choices": options, "gold": row["label"]}

    return dataset.map(with_query).filter(lambda row: len(row["premise"]) % 5 > 0)


def which(row):
    """As WinoGrande has it: the text is the index of a choice, each of which is a prompt."""
    return {"cause": 0, "effect": 1}[row["question"]] if row["label"] is None else row["label"]


def sentences(row):
    return [row["choice1"], row["choice2"]]


def rest(row):
    return row["premise"]


def asked(row, *, thinking):
    """As MMLU-Pro has it: one function, prepared in several ways."""
    options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDE", row["texts"], strict=True))
    return f"Question: {row['question']}\n{options}\n" + ("Thinking:" if thinking else "Answer:")


test_text = partial(asked, thinking=False)
shot_text = partial(asked, thinking=True)


def shot_target(row):
    return f"[{row['correct']}] it is, so the answer is {row['correct']}"


def fixed():
    """Shots that are written out."""
    sums = [("one and two", "3"), ("two and two", "4")]
    return [{"Body": f"How much is {asked}?", "Question": "Say it.", "Answer": answer} for asked, answer in sums]


def body(row):
    return f"{row['Body']} {row['Question']}\nAnswer:"


def number(row):
    return str(row["Answer"])


def questions(rows, **_):
    """A data set that no file holds, of what the task says."""
    import datasets

    made = [{"text": f"What is {n} plus {n}?", "sum": str(2 * n)} for n in range(rows)]
    return {"train": datasets.Dataset.from_list(made[:3]), "test": datasets.Dataset.from_list(made[3:])}
