"""What MindFormers stores with weights of any model."""

TRAINING_STATE = (
    r"(adam_m|adam_v|moment1|moment2|moments|accum)\..*",
    r".*\.(key_past|value_past)",
    r"(global_step|learning_rate|scale_sense|loss_scale|beta1_power|beta2_power)",
    r"(epoch_num|step_num|current_iterator_step|last_overflow_iterator_step)",
)
"""Names in a training checkpoint that are no weights: optimizer, key-value caches, counters."""
