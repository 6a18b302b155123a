"""Fine-tuning: a task's examples teach a pre-trained model, on the one training loop."""
