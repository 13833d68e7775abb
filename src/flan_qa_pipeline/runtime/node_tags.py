"""The tags of nodes that the runner and the hooks act on."""

TRAINS = "train"
ANSWERS_NEW_QUESTIONS = "inference"
USES_ADAPTER = {"predict", "merge"}
LOADS_BASE = {"quantize", "predict"}
RUNS_IN_ALL_PROCESSES = {"quantize", "train", "predict", "merge", "pretrain_base"}
COMPUTES = RUNS_IN_ALL_PROCESSES | {"memory", "pack"}
