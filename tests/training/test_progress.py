"""Progress of a training on the terminal and in TensorBoard's folder."""

import gc

from transformers import TrainerControl, TrainerState, TrainingArguments

from flan_qa_pipeline.training.progress import LastingTensorBoard, LossInProgressBar


def test_one_described_bar_that_leaves_the_terminal(capsys):
    gc.collect()  # bars that earlier tests have left open would stand above this one
    bar, state = LossInProgressBar("Train the adapter"), TrainerState(max_steps=4)
    bar.on_train_begin(None, state, None)
    first = bar.training_bar
    bar.on_train_begin(None, state, None)
    assert first.disable
    bar.on_log(None, state, None, logs={"loss": 2.5, "learning_rate": 0.1})
    assert bar.training_bar.postfix == "loss=2.5"
    bar.on_train_end(None, state, None)
    shown = capsys.readouterr().err
    assert "Train the adapter:   0%" in shown
    assert shown.endswith("\r") and not shown.split("\r")[-2].strip()


def test_the_log_goes_to_the_folder_given_and_not_to_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    arguments = TrainingArguments(output_dir=str(tmp_path / "output"), report_to="none")
    state, control = TrainerState(), TrainerControl()
    board = LastingTensorBoard(tmp_path / "log")
    board.on_train_begin(arguments, state, control)
    board.on_log(arguments, state, control, logs={"loss": 1.0})
    board.on_train_end(arguments, state, control)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
