"""Kedro datasets of new questions and of their growing answers."""

from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import pandas as pd
from kedro.io import AbstractDataset
from kedro.io.core import get_filepath_str
from kedro_datasets.pandas import CSVDataset

from flan_qa_pipeline.data.question_files import QuestionFile


class QuestionFileDataset(AbstractDataset[NoReturn, QuestionFile]):
    """A file of new questions that is read in chunks (see `QuestionFile`).

    Example:
    ```yaml
    new_questions:
      type: flan_qa_pipeline.datasets.question_file.QuestionFileDataset
      filepath: data/01_raw/example_questions.csv
    ```
    """

    def __init__(self, *, filepath: str, metadata: dict[str, Any] | None = None):
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def load(self) -> QuestionFile:
        return QuestionFile(Path(self._filepath))

    def save(self, data: NoReturn) -> None:
        raise NotImplementedError("A file of new questions is only read.")

    def _exists(self) -> bool:
        return Path(self._filepath).is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


class GrowingCSVDataset(CSVDataset):
    """A CSV file to which each save of a run adds rows: what a generator node yields.

    Takes the arguments of `pandas.CSVDataset`. The first save of a run makes the file, or a new
    version of it; a run that is interrupted leaves the rows saved so far. Half a surrogate pair,
    which UTF-8 cannot say, is written as its escape.

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
        text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        with self._fs.open(self._growing, mode=mode, **text) as file:
            data.to_csv(file, header=begins, **self._save_args)
        self._invalidate_cache()
