"""Parameter-efficient tuning: LoRA (Hu et al. 2021)."""
