"""Losses: functions of tensors, for any training loop."""
