"""Learning-rate schedules that are set in epochs and run in steps."""

from collections.abc import Mapping
from typing import Any

from fairchem.core.modules.scheduler import CosineLRLambda


def with_schedule(optim: Mapping[str, Any], steps_per_epoch: int) -> dict[str, Any]:
    """`optim` with the function that `scheduler_params` describes, if it has this block.

    Upstream's own trainer reads the block for Equiformer v2 only. The cosine goes from 1 to `lr_min_factor`
    at the end of `max_epochs`:

    ```yaml
    optim:
      scheduler: LambdaLR
      scheduler_params:
        lambda_type: cosine
        warmup_epochs: 0.01
        warmup_factor: 0.2
        lr_min_factor: 0.01
    ```

    Args:
        optim: the checked block of a config; it is not changed.
        steps_per_epoch: batches of the training set on one rank.
    """
    if optim.get("scheduler") != "LambdaLR" or "lr_lambda" in optim:
        return dict(optim)
    params = optim["scheduler_params"]
    function = CosineLRLambda(
        # of epochs with few steps, a hundredth is none; upstream would divide by it
        warmup_epochs=max(1, int(params["warmup_epochs"] * steps_per_epoch)),
        warmup_factor=params["warmup_factor"],
        epochs=optim["max_epochs"] * steps_per_epoch,
        lr_min_factor=params["lr_min_factor"],
    )
    return {**optim, "lr_lambda": function}
