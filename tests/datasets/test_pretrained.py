import json

from flan_qa_pipeline.datasets.pretrained import PretrainedDataset

OPTIONS = "tokenizer_config.json"


def test_a_loaded_tokenizer_saves_what_it_was_loaded_from(tokenizer, tmp_path):
    first, second = (
        PretrainedDataset(filepath=str(tmp_path / name), kind="tokenizer") for name in "ab"
    )
    first.save(tokenizer)
    second.save(first.load())
    options = json.loads((tmp_path / "b" / OPTIONS).read_text())
    assert "local_files_only" not in options
    assert second.load().get_vocab() == tokenizer.get_vocab()
