"""An average of the weights (EMA) that forgets the initial ones: for fine-tuning and other short runs."""

from typing import Any

from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchtnt.framework.callback import Callback
from torchtnt.framework.state import State


class EMAWarmup(Callback):
    """Decay of `min(ema_decay, (1 + n) / (10 + n))` after n steps; one entry of `runner.callbacks`."""

    def on_train_step_start(self, state: State, unit: Any) -> None:
        """Set the decay of this step."""
        n = unit.train_progress.num_steps_completed
        if unit.ema_model is not None:
            unit.ema_model.multi_avg_fn = get_ema_multi_avg_fn(min(unit.ema_decay, (1 + n) / (10 + n)))
