"""How many programs that a model writes do what they should: written, run against their tests, counted by pass@k.

Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", sections 2.1 (pass@k) and 2.2 (HumanEval);
Austin et al. 2021, "Program Synthesis with Large Language Models", section 2.1 (MBPP).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from tsumugu.core.errors import InputError
from tsumugu.data.readers import read_rows
from tsumugu.data.rows import Row, require_columns
from tsumugu.evaluation.isolation import Outcome, run_program
from tsumugu.evaluation.scoring import Item, Prediction

KIND = "code-generation"
STOPS = {"humaneval": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"), "mbpp": ("[DONE]",)}
"""What ends a program. Source: Chen et al., section 2.2; Austin et al., figure 1."""
TOGETHER = 8
"""Problems that are solved side by side where each gets one program."""
_MBPP = (
    "You are an expert Python programmer, and here is your task: {text} "
    "Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
)


@dataclass(frozen=True)
class Problem:
    """A program to write.

    Attributes:
        id: its name.
        form: humaneval or mbpp.
        prompt: what the model goes on with.
        solution: one that is right.
        tests: what stands behind a program to test it.
    """

    id: str
    form: str
    prompt: str
    solution: str
    tests: str

    def program(self, completion: str) -> str:
        """The program with its tests."""
        head = self.prompt if self.form == "humaneval" else ""
        return f"{head}{completion}\n\n{self.tests}\n"


def read_problems(path: str | Path, *, limit: int | None = None) -> list[Problem]:
    """The problems of a file in the form of HumanEval or MBPP.

    Raises:
        InputError: it is neither; the row and the column are named.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{limit} problems are none", where="limit", mend="at least 1")
    found: list[Problem] = []
    for row in read_rows(path):
        found.append(_problem(row))
        if len(found) == limit:
            break
    if len({each.id for each in found}) < len(found):
        raise InputError("two problems have one task_id", where=str(path))
    return found


def _problem(row: Row) -> Problem:
    values = row.values
    if "entry_point" in values:
        require_columns(("task_id", "prompt", "test"), values, row.where)
        tests = f"{values['test']}\ncheck({values['entry_point']})"
        solution = values.get("canonical_solution", "")
        return Problem(str(values["task_id"]), "humaneval", values["prompt"], solution, tests)
    require_columns(("task_id", "text", "test_list"), values, row.where)
    tests = values["test_list"]
    if not isinstance(tests, list) or not all(isinstance(each, str) for each in tests):
        raise InputError("is no list of tests", where=f"{row.where}, column 'test_list'")
    asked = "\n".join(tests)
    prompt = _MBPP.format(text=values["text"], tests=asked)
    behind = f"{values.get('test_setup_code') or ''}\n{asked}"
    return Problem(str(values["task_id"]), "mbpp", prompt, values.get("code", ""), behind)


def read_completions(path: str | Path, problems: Sequence[Problem]) -> list[list[str]]:
    """The completions of each problem out of a file of rows with `task_id` and `completion`.

    Raises:
        InputError: a column is not there, or a problem has none.
    """
    by_id: dict[str, list[str]] = defaultdict(list)
    for row in read_rows(path):
        require_columns(("task_id", "completion"), row.values, row.where)
        by_id[str(row.values["task_id"])].append(str(row.values["completion"]))
    for each in problems:
        if each.id not in by_id:
            raise InputError(f"there is no completion of {each.id}", where=str(path))
    return [by_id[each.id] for each in problems]


def read_shown(path: str | Path | None, shots: int) -> list[Problem]:
    """The first problems of a file, with their solutions, for prompts to show.

    Raises:
        InputError: there are not so many, or one has no solution.
    """
    if not shots:
        return []
    if path is None or shots < 0:
        raise InputError("there are no solved problems to show", where="shots", mend="name a file of them with train")
    found = read_problems(path, limit=shots)
    if len(found) < shots or not all(each.solution.strip() for each in found):
        raise InputError(f"there are no {shots} problems with solutions", where=str(path))
    return found


def complete(
    task: Any,
    problems: Sequence[Problem],
    samples: int,
    options: Mapping[str, Any],
    shown: Sequence[Problem] = (),
) -> Iterator[list[str]]:
    """What a model writes for each problem: `samples` programs, drawn where there are several.

    Args:
        task: text generation.
        problems: in the order of what is given.
        samples: for each.
        options: of generation; where programs are drawn, temperature 0.8 and top-p 0.95 when left out.
        shown: solved problems that stand before each. Source: Austin et al. 2021, section 3.1.
    """
    drawn = {"temperature": 0.8, "top_p": 0.95, "seed": 0, "num_return_sequences": samples} if samples > 1 else {}
    # Programs that are drawn are to depend on no other problem.
    at_once = TOGETHER if samples == 1 else 1
    solved = [
        f"{each.prompt}{each.solution.rstrip()}\n{'[DONE]' if each.form == 'mbpp' else ''}\n\n".replace("\r\n", "\n")
        for each in shown
    ]
    for form, mine in groupby(problems, key=lambda each: each.form):
        asked = {"max_new_tokens": 384, "stop_strings": STOPS[form], **drawn, **options}
        # A line break at the end would be a token of its own, where models know it with the indentation after it.
        lead = "\n" if form == "humaneval" else ""
        while some := ["".join(solved) + each.prompt.removesuffix(lead) for each in islice(mine, at_once)]:
            for found in task(some, return_full_text=False, **asked):
                yield [one["generated_text"].removeprefix(lead) for one in found]


def judge(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    *,
    seconds: float = 5.0,
    memory: int = 1 << 30,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Item]:
    """Run the programs; each problem gives how many passed as prediction, of how many as reference.

    Args:
        problems: the problems.
        completions: of each.
        seconds, memory: of a program, see `run_program`.
        progress: called with how many problems were judged.
    """

    def run(given: tuple[Problem, str]) -> Outcome:
        return run_program(given[0].program(given[1]), seconds=seconds, memory=memory)

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        jobs = [(problem, each) for problem, mine in zip(problems, completions, strict=True) for each in mine]
        outcomes = threads.map(run, jobs)
        for problem, mine in zip(problems, completions, strict=True):
            found = [next(outcomes) for _ in mine]
            ways = {"completions": list(mine), "outcomes": [each.why or "passed" for each in found]}
            passed = sum(each.passed for each in found)
            yield Item(problem.id, (problem.prompt,), len(mine), Prediction(passed), ways)
            if progress is not None:
                progress(1)
