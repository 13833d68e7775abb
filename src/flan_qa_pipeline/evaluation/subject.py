"""What a result is about, as titles name it: the base model and the corpus."""

from pathlib import PurePath

from flan_qa_pipeline.config.parameters import DataParameters, ModelParameters
from flan_qa_pipeline.hub import PROTOCOL, DataFiles

EMBEDDED_CORPUS = "the embedded starter corpus"
EMBEDDED_FILES = {"starter_train.json", "starter_validation.json"}


def base_name(model: str) -> str:
    """Return a hub id as it is, and the last part of a folder's path.

    >>> base_name("google/flan-t5-base"), base_name("data/06_models/starter_t5")
    ('google/flan-t5-base', 'starter_t5')
    """
    path = PurePath(model)
    return path.name if path.is_absolute() or len(path.parts) > 2 else model


def corpus_name(file: str) -> str:
    """Name the corpus of a file: the embedded one, a dataset of the hub, or the file itself.

    >>> corpus_name("data/01_raw/starter_validation.json"), corpus_name("../squad/dev-v2.0.json")
    ('the embedded starter corpus', 'dev-v2.0.json')
    """
    if file.startswith(PROTOCOL):
        return DataFiles.of(file).repo_id
    name = PurePath(file).name
    return EMBEDDED_CORPUS if name in EMBEDDED_FILES else name


def scored_on(data: DataParameters) -> str:
    """Name the corpora of the validation questions, which may come from both files."""
    files = [data.validation_file]
    if data.validation_fraction is not None:
        files.insert(0, data.train_file)
    return " and ".join(dict.fromkeys(map(corpus_name, files)))


def subject(model: ModelParameters, data: DataParameters) -> str:
    """Name the base model and the corpus, as in "starter_t5 on the embedded starter corpus"."""
    return f"{base_name(model.name)} on {scored_on(data)}"
