"""Paths and URLs keep their host and every folder; a missing package is named."""

import pytest

from flan_qa_pipeline.data.filesystems import filesystem_of
from flan_qa_pipeline.datasets.squad_file import SquadFileDataset
from flan_qa_pipeline.errors import InputError


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/a.json", "/data/a.json"),
        ("file:///data/a.json", "/data/a.json"),
        ("memory://squad/a.json", "/squad/a.json"),
        ("webhdfs://host:50070/data/a.json", "/data/a.json"),
        ("https://host/data/a.json", "https://host/data/a.json"),
        ("hf://datasets/a/b@main/c.parquet", "datasets/a/b@main/c.parquet"),
    ],
)
def test_the_whole_path_is_kept(url, path):
    assert filesystem_of(url)[1] == path


def test_the_host_is_kept():
    filesystem, _ = filesystem_of("webhdfs://namenode:50070/data/a.json")
    assert filesystem.url.startswith("http://namenode:50070/")
    dataset = SquadFileDataset(filepath="webhdfs://namenode:50070/data/a.json")
    assert filesystem_of(dataset.files.url)[0].url.startswith("http://namenode:50070/")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("s3://bucket/a.json", r"Install s3fs to access S3"),
        ("gs://bucket/a.json", r"install gcsfs"),
        ("az://container/a.json", r"Install adlfs"),
        ("abfss://container@account.dfs.core.windows.net/a.json", r"Install adlfs"),
        ("hdfs://namenode:8020/a.json", r"(libjvm|libhdfs)"),
    ],
)
def test_what_is_not_installed_is_named(url, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        filesystem_of(url)
    assert str(error.value).startswith(f"{url}: ")
    assert len(str(error.value)) < 250
