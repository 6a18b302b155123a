"""Answer the rows of an input, window by window, and put each result, and each row without one, where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsumugu.cli.console import progress, stderr
from tsumugu.cli.inputs import Inputs
from tsumugu.cli.windows import Problem, windows
from tsumugu.core.errors import InputError
from tsumugu.data.resumable import Output
from tsumugu.data.rows import Row

if TYPE_CHECKING:
    from tsumugu.tasks.answers import Alone
    from tsumugu.tasks.workers import Workers

ABOUT_ROWS = ("text", "inputs", "row 0", None)
"""What a task's error names when it is about its one input."""

Show = Callable[[dict[str, Any], Any], None]


@dataclass(kw_only=True)
class Running:
    """One run of a task over an input.

    Attributes:
        name: of the task, for progress.
        solver: what answers.
        options: of the task's calls.
        file: where results and bad rows go.
        show: what shows a result, where no file takes it.
        lines: whether it shows the lines of a terminal.
        problems: where what reads the input tells of bad rows; None where the first ends the run.
        reported: whether a file takes the bad rows.
        quiet: say nothing.
    """

    name: str
    solver: Alone | Workers
    options: dict[str, Any]
    file: Output
    show: Show | None
    lines: bool
    problems: list[Problem] | None
    reported: bool
    quiet: bool
    bad: int = 0
    good: int = 0

    def answer(self, inputs: Inputs, read: Callable[[Row], Any], size: int) -> None:
        """Answer all rows.

        Args:
            inputs: the rows.
            read: makes a row an input of the task.
            size: rows that are answered together.

        Raises:
            InputError: a row cannot be read or answered, and bad rows are not passed over.
            KeyboardInterrupt: as it came; says what is kept.
        """
        file = self.file
        if file.done and not self.quiet:
            stderr().print(f"going on after row {file.done:,}", style="dim", markup=False, soft_wrap=True)
        self.good = file.done
        found = windows(inputs.rows, read, size, problems=self.problems, done=file.done, digest=file.digest)
        how = {"lines": self.lines, "patient": self.problems is not None}
        try:
            with progress(quiet=self.quiet) as display:
                bar = display.add_task(self.name, total=inputs.total, completed=file.done)
                for window, results in self.solver.map(found, lambda each: each.inputs, self.options, **how):
                    for problem in window.problems:
                        self._tell(problem)
                    self._check(window.rows, results)
                    for row, result in zip(window.rows, results, strict=True):
                        if isinstance(result, InputError):
                            self._tell(Problem(_named(result, row), row))
                        else:
                            self._put(row, result, named=bool(inputs.files))
                    if window.whole:
                        file.mark(window.done, window.digest)
                    display.advance(bar, len(window.rows))
        except KeyboardInterrupt:
            if file.keeps:
                raise KeyboardInterrupt(f"interrupted; {_GO_ON.format(file.keeps)}") from None
            raise
        except InputError as error:
            if not file.keeps:
                raise
            mend = "; ".join(each for each in (error.mend, _GO_ON.format(file.keeps)) if each)
            raise InputError(error.what, where=error.where, mend=mend) from None
        if self.bad and not self.quiet:
            stderr().print(f"passed over {self.bad:,} rows", style="dim", markup=False, soft_wrap=True)

    def _check(self, rows: list[Row], results: list[Any]) -> None:
        """Raise what ends the run: a row without a result, or what is wrong with all of them alike."""
        errors = [each for each in results if isinstance(each, InputError)]
        if not errors:
            return
        if self.problems is None:
            raise _named(errors[0], rows[len(results) - 1])
        alike = {str(each) for each in errors}
        if not self.good and len(errors) == len(rows) > 1 and len(alike) == 1:
            raise errors[0]

    def _put(self, row: Row, result: Any, *, named: bool) -> None:
        self.good += 1
        if self.show is not None:
            self.show(row.values, result)
            return
        values = row.values if not named or "file" in row.values else {"file": row.source, **row.values}
        self.file.write(beside(values, result))

    def _tell(self, problem: Problem) -> None:
        self.bad += 1
        if self.reported:
            self.file.report(problem.record())
        elif not self.quiet:
            stderr().print(f"passed over: {problem.error}", style="dim", markup=False, soft_wrap=True)


_GO_ON = "{:,} rows are done, the same command goes on after them"


def plain(value: Any) -> Any:
    """What JSON has in place of an array or a tensor."""
    return value.tolist()


def beside(values: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A row as it is written: what was read, and the result beside it; a column that was there stays as it was."""
    return values | {f"predicted_{name}" if name in values else name: value for name, value in found.items()}


def _named(error: InputError, row: Row) -> InputError:
    """The error with its row named, where it is about one."""
    if error.where not in ABOUT_ROWS or row.source == "input":
        return error
    return InputError(error.what, where=row.where, mend=error.mend)
