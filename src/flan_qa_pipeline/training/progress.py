"""Progress of a training: a bar on the terminal, and a log in TensorBoard or MLflow."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback
from transformers.trainer_callback import ProgressCallback

logger = logging.getLogger(__name__)


class LastingTensorBoard(TensorBoardCallback):
    """Logs a training to TensorBoard, whole even if it is resumed or its folder is removed.

    A resumed training first logs what was logged before it was interrupted. If the folder
    disappears, the log starts again in a new one; TensorBoard's own thread would print a traceback
    and end the training.

    Args:
        folder: where the log is written, whatever TENSORBOARD_LOGGING_DIR says.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.logging_dir = str(folder)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        for entry in state.log_history:
            then = replace(state, global_step=entry["step"])
            logs = {name: value for name, value in entry.items() if name != "step"}
            super().on_log(args, then, control, logs=logs)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restore_folder()
        super().on_log(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restore_folder()
        super().on_train_end(args, state, control, **kwargs)

    def _restore_folder(self) -> None:
        if self.tb_writer is None or Path(self.tb_writer.log_dir).is_dir():
            return
        logger.warning(
            "%s was removed during training; training continues, and its log starts again there.",
            self.tb_writer.log_dir,
        )
        Path(self.tb_writer.log_dir).mkdir(parents=True)


class NumbersInMlflow(MLflowCallback):
    """Logs a training to MLflow, without the texts in its log, of which MLflow warns."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        numbers = {name: value for name, value in logs.items() if not isinstance(value, str)}
        super().on_log(args, state, control, logs=numbers, **kwargs)


class LossInProgressBar(ProgressCallback):
    """Shows the newest loss in the Trainer's progress bar, where transformers prints lines.

    The bar leaves the terminal when training ends, or restarts with a smaller batch.

    Args:
        description: the text in front of the bar.
    """

    training_bar: tqdm | None

    def __init__(self, description: str):
        super().__init__()
        self._description = description

    def close(self) -> None:
        """Remove the bar from the terminal, whether training has ended or stopped at an error."""
        if self.training_bar is not None:
            self.training_bar.close()
        self.training_bar = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, desc=self._description, dynamic_ncols=True, leave=False
            )
        self.current_step = 0

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw no second bar for an evaluation during training."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None:
            losses = {name: logs[name] for name in ("loss", "eval_loss") if name in logs}
            self.training_bar.set_postfix(losses, refresh=False)
