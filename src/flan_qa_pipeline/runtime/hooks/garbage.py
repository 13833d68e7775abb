"""Hooks that keep Python's garbage collector off what lives as long as the run."""

import gc

from kedro.framework.hooks import hook_impl


class GarbageHooks:
    """Keeps garbage collections off the objects that exist before the nodes run.

    These are half a million, mostly of imports. Going through all of them takes a quarter of a
    second, and a long evaluation triggers it again and again.
    """

    @hook_impl
    def before_pipeline_run(self) -> None:
        gc.freeze()

    @hook_impl
    def after_pipeline_run(self) -> None:
        gc.unfreeze()

    @hook_impl
    def on_pipeline_error(self) -> None:
        gc.unfreeze()
