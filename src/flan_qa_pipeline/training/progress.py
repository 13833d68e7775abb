"""How training shows itself on the terminal."""

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback


class LossInProgressBar(ProgressCallback):
    """The Trainer's progress bar, described, with the newest loss in it instead of printed lines.

    It leaves the terminal when training ends or begins anew with a smaller batch.
    """

    training_bar: tqdm | None

    def __init__(self, description: str):
        super().__init__()
        self._description = description

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            self.training_bar.close()
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, desc=self._description, dynamic_ncols=True, leave=False
            )
        self.current_step = 0

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw no second bar for the evaluation inside training."""

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
