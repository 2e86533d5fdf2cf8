"""Readers of task vectors: fine-tuned checkpoints, LoRA adapters and safetensors deltas."""
