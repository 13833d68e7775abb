"""Models and promotions are kept on this machine alone."""

import pytest
from kedro.io import DatasetError

from flan_qa_pipeline.datasets.adapter import AdapterDataset
from flan_qa_pipeline.datasets.local_path import local_path
from flan_qa_pipeline.datasets.merged_model import MergedModelDataset
from flan_qa_pipeline.datasets.pretrained import PretrainedDataset
from flan_qa_pipeline.datasets.promotion import PromotionDataset


@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        (AdapterDataset, {}),
        (MergedModelDataset, {}),
        (PretrainedDataset, {"kind": "tokenizer"}),
        (PromotionDataset, {}),
    ],
)
def test_an_address_of_another_file_system_is_refused(dataset, options):
    with pytest.raises(DatasetError, match=r"s3://bucket/x is on another file system \(s3\)"):
        dataset(filepath="s3://bucket/x", **options)


def test_local_paths_stay_as_they_are(tmp_path):
    assert str(local_path("data/06_models/adapter")) == "data/06_models/adapter"
    assert str(local_path(str(tmp_path))) == str(tmp_path)
