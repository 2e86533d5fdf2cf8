"""Where a task vector is read from: a fine-tuned checkpoint, a LoRA adapter or a safetensors delta; a reader each."""
