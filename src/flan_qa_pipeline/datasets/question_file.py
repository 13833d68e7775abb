"""Kedro datasets for new questions, for tables with texts, and for answers that grow."""

import re
from typing import Any

import pandas as pd
from kedro.io.core import get_filepath_str

from flan_qa_pipeline.data.question_files import QuestionFile
from flan_qa_pipeline.data.row_files import RowFiles
from flan_qa_pipeline.datasets.previewed import TableDataset
from flan_qa_pipeline.datasets.row_files import RowFilesDataset

FORMULA = re.compile(
    r"'*[=+\-@\t\r\n＝＋－＠]"
)  # https://owasp.org/www-community/attacks/CSV_Injection
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*%?")


class QuestionFileDataset(RowFilesDataset[QuestionFile]):
    """Reads a file of new questions in chunks (see `QuestionFile`).

    Example:
    ```yaml
    new_questions:
      type: flan_qa_pipeline.datasets.question_file.QuestionFileDataset
      filepath: data/01_raw/example_questions.csv
    ```
    """

    def __init__(
        self,
        *,
        filepath: str,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__(RowFiles(filepath, credentials=credentials), metadata)

    def load(self) -> QuestionFile:
        files = self.fetched()
        return QuestionFile(files.url, credentials=files.credentials)


class TextCSVDataset(TableDataset):
    """A CSV file of texts by other people, safe to open in a spreadsheet.

    Takes the arguments of `pandas.CSVDataset`. A text that a spreadsheet would read as a formula is
    saved with a leading apostrophe, as OWASP advises against CSV injection, and loaded without it;
    numbers stay as they are. A lone surrogate, which UTF-8 cannot encode, is saved as its escape.

    Example:
    ```yaml
    rejected_train_questions:
      type: flan_qa_pipeline.datasets.question_file.TextCSVDataset
      filepath: data/08_reporting/rejected_train_questions.csv
    ```
    """

    # Python 3.11 quotes a text only if it holds a character of the line terminator
    DEFAULT_SAVE_ARGS = TableDataset.DEFAULT_SAVE_ARGS | {"lineterminator": "\r\n"}

    def load(self) -> pd.DataFrame:
        return super().load().map(_unescaped)

    def save(self, data: pd.DataFrame) -> None:
        super().save(data.map(_escaped))


class GrowingCSVDataset(TextCSVDataset):
    """A CSV file to which each save of a run adds the rows that a generator node yields.

    Saves texts as `TextCSVDataset` does. The first save of a run makes the file, or a new version
    of it. An interrupted run leaves the rows that it has saved.

    Example:
    ```yaml
    answers:
      type: flan_qa_pipeline.datasets.question_file.GrowingCSVDataset
      filepath: data/07_model_output/answers.csv
      versioned: true
    ```
    """

    grows = True
    _growing: str | None = None

    def save(self, data: pd.DataFrame) -> None:
        begins = self._growing is None
        if begins:
            self._growing = get_filepath_str(self._get_save_path(), self._protocol)
        mode = "w" if begins else "a"
        with self._fs.open(self._growing, mode=mode, encoding="utf-8", newline="") as file:
            data.map(_escaped).to_csv(file, header=begins, **self._save_args)
        self._invalidate_cache()


def _escaped(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.encode(errors="backslashreplace").decode()
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def _unescaped(value: Any) -> Any:
    escaped = isinstance(value, str) and value.startswith("'") and FORMULA.match(value)
    return value[1:] if escaped else value
